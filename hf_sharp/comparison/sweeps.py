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
from hf_sharp.comparison.recipes import is_plain
from hf_sharp.descriptions import read_yaml

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


def axes_of(settings: Mapping[str, Any], axes: Sequence[Axis]) -> list[Axis]:
    """The axes that a recipe has: a plain one has none of a method.

    >>> axes_of({"plain": True}, [Axis("rho", (0.05,)), Axis("learning_rate", (0.1,))])
    [Axis(field='learning_rate', values=(0.1,))]
    """
    plain = is_plain(settings)
    return [axis for axis in axes if not (plain and axis.field.split(".")[0] in _METHOD_FIELDS)]


def grid(settings: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, dict[str, Any]]:
    """The recipe at each point of the grid, by the point's name; axes of a method leave a plain recipe as it is.

    >>> grid({"sharpness": "sam"}, [Axis("rho", (0.05, 0.1))])
    {'rho=0.05': {'sharpness': 'sam', 'rho': 0.05}, 'rho=0.1': {'sharpness': 'sam', 'rho': 0.1}}

    Raises:
        ValueError: an axis is a field of a field that has none.
    """
    used = axes_of(settings, axes)
    points = {}
    for values in product(*(axis.values for axis in used)):
        point = deepcopy(dict(settings))
        for axis, value in zip(used, values, strict=True):
            _set(point, axis.field.split("."), value)
        points[_name(used, values)] = point
    return points


def lines(name: str, axes: Sequence[Axis], scores: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Sequence[float]]]:
    """The scores of a recipe's points as lines over its first axis, one per combination of values of the others.

    >>> lines("sam", [Axis("rho", (1, 2)), Axis("p", (3,))], {"rho=1,p=3": [90.0], "rho=2,p=3": [91.0]})
    {'sam, p=3': {'1': [90.0], '2': [91.0]}}
    """
    first, others = axes[0], axes[1:]
    return {
        ", ".join([name, *(f"{axis.field}={x}" for axis, x in zip(others, rest, strict=True))]): {
            str(value): scores[_name(axes, (value, *rest))] for value in first.values
        }
        for rest in product(*(axis.values for axis in others))
    }


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


def _name(axes: Sequence[Axis], values: Sequence[Any]) -> str:
    return ",".join(f"{axis.field}={value}" for axis, value in zip(axes, values, strict=True))


def _set(settings: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        given = settings.get(key) or {}
        read = read_yaml(given, key, "'{\"eta\": 0.01}'") if isinstance(given, str) else given
        if not isinstance(read, Mapping):
            raise ValueError(
                f"{key} must be a mapping, for a sweep of {'.'.join(path)}, got {given!r}. Write e.g. '{{\"eta\": 0.01}}'."
            )
        settings[key] = dict(read)
        settings = settings[key]
    settings[path[-1]] = value
