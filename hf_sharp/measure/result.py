"""What a measurement found, and with what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import accelerate
import torch
import transformers

Values = dict[str, float]


class UndefinedError(ValueError):
    """A quantity that has no value at these weights; a callback logs it as NaN, and the run goes on."""


@dataclass(frozen=True)
class Found:
    """The numbers of a measurement.

    Attributes:
        values: single numbers by name; these go to the logs.
        errors: the standard error of those values that are estimates from random draws or groups of samples.
        arrays: what figures are drawn from: nested lists of numbers.
    """

    values: Values
    errors: Values = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A measurement with everything that is needed to repeat it.

    Attributes:
        name: the quantity's.
        found: its numbers.
        settings: the quantity's own.
        about: of the loss: samples, processes, mode of BatchNorm, parameters, passes.
    """

    name: str
    found: Found
    settings: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def values(self) -> Values:
        """The numbers by name."""
        return self.found.values

    @property
    def errors(self) -> Values:
        """Their standard errors, where they are estimates."""
        return self.found.errors

    @property
    def arrays(self) -> dict[str, Any]:
        """What figures are drawn from."""
        return self.found.arrays

    def scalars(self) -> dict[str, float]:
        """The values and their errors as they are logged: ``trace``, ``trace_se``."""
        return self.values | {f"{name}_se": error for name, error in self.errors.items()}

    def to_dict(self) -> dict[str, Any]:
        """The same with plain values, for JSON; numbers that JSON lacks become text."""
        return _plain(
            {
                "quantity": self.name,
                "values": self.values,
                "standard_errors": self.errors,
                "arrays": self.arrays,
                "settings": dict(self.settings),
                "about": dict(self.about),
                "versions": versions(),
            }
        )


def versions() -> dict[str, str]:
    """Of what a number can depend on."""
    import hf_sharp

    return {
        "hf_sharp": hf_sharp.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def mean_and_error(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; that of one number, or where one is not finite, is not known (NaN)."""
    known = len(numbers) > 1 and all(map(math.isfinite, numbers))
    return mean(numbers), stdev(numbers) / math.sqrt(len(numbers)) if known else math.nan


def largest(numbers: Iterable[float]) -> float:
    """The largest number; NaN where one is NaN, wherever it stands."""
    return max(numbers, key=lambda x: (math.isnan(x), x))


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    return x
