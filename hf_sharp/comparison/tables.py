"""Runs beside each other: one row per recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from hf_sharp.comparison.metrics import Metric

_HEAD = ("recipe", "runs", "last epoch, {}", "best epoch, {}", "best at", "epochs", "passes", "time")


@dataclass(frozen=True)
class Summary:
    """What the runs of one recipe came to.

    Attributes:
        name: the recipe.
        done, failed: runs.
        last, best: the metric after the last epoch and at the best evaluation, shares in %, per run.
        best_epoch: where the best evaluations were, on average.
        epochs: of training.
        passes: forward-backward passes over the training set.
        time: seconds of training in ratio to the first recipe's, median over the seeds that both have.
    """

    name: str
    done: int
    failed: int
    last: list[float]
    best: list[float]
    best_epoch: float
    epochs: float
    passes: float
    time: float

    def row(self) -> tuple[str, ...]:
        """The cells of the table."""
        if not self.done:
            return (self.name, f"0 ({self.failed} failed)", *("-" for _ in _HEAD[2:]))
        runs = str(self.done) if not self.failed else f"{self.done} ({self.failed} failed)"
        numbers = f"{self.best_epoch:.1f}", f"{self.epochs:g}", f"{self.passes:.1f}", f"{self.time:.2f}"
        return self.name, runs, mean_and_deviation(self.last), mean_and_deviation(self.best), *numbers


def summary(
    name: str, runs: Mapping[int, Mapping[str, Any]], failed: int, first: Mapping[int, Mapping[str, Any]], metric: Metric
) -> Summary:
    """The summary of the runs of one recipe.

    Args:
        name: the recipe.
        runs: seed to results.
        failed: how many runs failed.
        first: the first recipe's runs, for the time.
        metric: which of the results' metrics.

    Raises:
        ValueError: the results do not have the metric.
    """
    for run in runs.values():
        check_metric(run, metric)
    results = list(runs.values())
    ratios = [run["seconds"] / first[seed]["seconds"] for seed, run in runs.items() if seed in first]
    tops = [metric.best_entry(run["history"]) for run in results]
    epochs = mean(run["last"]["epoch"] for run in results) if results else 0.0
    return Summary(
        name=name,
        done=len(results),
        failed=failed,
        last=[metric.shown(run["last"]) for run in results],
        best=[metric.shown(entry) for entry in tops],
        best_epoch=mean(entry["epoch"] for entry in tops) if results else 0.0,
        epochs=epochs,
        passes=epochs * mean(run["passes_per_step"] for run in results) if results else 0.0,
        time=median(ratios) if ratios else float("nan"),
    )


def check_metric(run: Mapping[str, Any], metric: Metric) -> None:
    """Raises ValueError where a run's results do not have the metric."""
    if metric.name not in run["last"]:
        listed = ", ".join(name for name in run["last"] if name not in ("epoch", "step"))
        raise ValueError(f"The metric must be one of {listed}, got {metric.name!r}. Pass e.g. --metric accuracy.")


def markdown(summaries: Sequence[Summary], metric: Metric) -> str:
    """The table, aligned, as Markdown."""
    rows = [tuple(head.format(metric.unit) for head in _HEAD), *(summary.row() for summary in summaries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def mean_and_deviation(values: Sequence[float], decimals: int = 2) -> str:
    """``mean +- standard deviation``, the latter where there are several values.

    >>> mean_and_deviation([95.0, 96.0])
    '95.50 +- 0.71'
    """
    text = f"{mean(values):.{decimals}f}"
    return f"{text} +- {stdev(values):.{decimals}f}" if len(values) > 1 else text
