"""Which way a metric is better, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_LARGER = ("accuracy", "top5", "f1", "bleu", "token_bleu", "chrf")
_SMALLER = ("loss", "cross_entropy", "calibration_error", "perplexity")
_SHARES = ("accuracy", "top5", "calibration_error")


@dataclass(frozen=True)
class Metric:
    """A metric of a run's results.

    Args:
        name: its key in the results.
        larger: whether larger values are better.
        share: whether it is from 0 to 1, and written in %.
    """

    name: str
    larger: bool = True
    share: bool = False

    @classmethod
    def of(cls, name: str, better: str | None = None) -> Metric:
        """The metric of this name.

        Args:
            name: its key.
            better: ``"larger"`` or ``"smaller"``, needed where the name is not known.

        Raises:
            ValueError: which way it is better is not known.
        """
        if better is None and name not in (*_LARGER, *_SMALLER):
            raise ValueError(
                f"The metric must be one of {', '.join((*_LARGER, *_SMALLER))}, or come with its direction, got {name!r}. "
                "Pass e.g. --metric accuracy, or --better larger."
            )
        return cls(name, name in _LARGER if better is None else better == "larger", name in _SHARES)

    @property
    def label(self) -> str:
        """The name with its unit."""
        return f"{self.name}, %" if self.share else self.name

    @property
    def unit(self) -> str:
        """What stands behind a head of the table."""
        return "%" if self.share else self.name

    def shown(self, entry: Mapping[str, Any]) -> float:
        """The value in an evaluation, as it is written; NaN where it is none."""
        value = entry[self.name]
        return (100 if self.share else 1) * float("nan" if value is None else value)

    def best_entry(self, history: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The best evaluation, the first one of several; those that are not finite do not count where others are."""
        entries = list(history)
        finite = [entry for entry in entries if math.isfinite(self.shown(entry))]
        return self.best(finite or entries, self.shown)

    def best(self, things: Iterable[T], value: Callable[[T], float]) -> T:
        """The thing with the best value."""
        return max(things, key=value) if self.larger else min(things, key=value)
