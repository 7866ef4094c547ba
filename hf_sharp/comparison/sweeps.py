"""Grids over the fields of a recipe, and the choice of the best point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import product
from math import isfinite
from statistics import mean
from typing import Any

import yaml

from hf_sharp import SharpnessArguments
from hf_sharp.comparison.metrics import Metric

_METHOD_FIELDS = {f.name for f in fields(SharpnessArguments)}


@dataclass(frozen=True)
class Axis:
    """A field of a recipe and its values; ``sharpness_args.alpha`` is a field of a field.

    Raises:
        ValueError: there is no value.
    """

    field: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"A sweep needs values, got none for {self.field!r}. Write e.g. --sweep {self.field} 0.05 0.1.")

    @classmethod
    def read(cls, words: Sequence[str]) -> Axis:
        """An axis as a command line has it: the field, and its values as YAML.

        >>> Axis.read(["rho", "0.05", "0.1"])
        Axis(field='rho', values=(0.05, 0.1))
        """
        return cls(words[0], tuple(yaml.safe_load(word) for word in words[1:]))


def grid(settings: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, dict[str, Any]]:
    """The recipe at each point of the grid, by the point's name; axes of a method leave a plain recipe as it is.

    >>> grid({"sharpness": "sam"}, [Axis("rho", (0.05, 0.1))])
    {'rho=0.05': {'sharpness': 'sam', 'rho': 0.05}, 'rho=0.1': {'sharpness': 'sam', 'rho': 0.1}}
    """
    used = [axis for axis in axes if not (settings.get("plain") and axis.field.split(".")[0] in _METHOD_FIELDS)]
    points = {}
    for values in product(*(axis.values for axis in used)):
        point = deepcopy(dict(settings))
        for axis, value in zip(used, values, strict=True):
            _set(point, axis.field.split("."), value)
        name = ",".join(f"{axis.field}={value}" for axis, value in zip(used, values, strict=True))
        points[name] = point
    return points


def best(scores: Mapping[str, Sequence[float]], metric: Metric) -> str:
    """The point with the best mean score; the first one of several.

    Points whose runs all failed do not count, and neither do those with a score that is not finite.

    Raises:
        ValueError: no point counts.
    """
    means = {name: mean(values) for name, values in scores.items() if values and all(map(isfinite, values))}
    if not means:
        raise ValueError(f"A choice needs a run that succeeded, got none of {', '.join(scores)}. Read their logs.")
    return metric.best(means, means.__getitem__)


def _set(settings: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        settings[key] = dict(settings.get(key) or {})
        settings = settings[key]
    settings[path[-1]] = value
