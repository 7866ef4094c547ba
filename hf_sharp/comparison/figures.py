"""Figures of a comparison, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_sharp.comparison.metrics import Metric
from hf_sharp.comparison.tables import Summary
from hf_sharp.measure.figures.style import finish, look, panels, save

_SIZE = 6.5, 4.2


def save_speeds(summaries: Sequence[Summary], metric: Metric, file: Path) -> None:
    """The metric against the training speed in ratio to the first recipe's, with standard deviations.

    Args:
        summaries: one per recipe.
        metric: of the vertical axis.
        file: where the figure goes, without suffix.
    """
    figure, [[axes]] = panels(1, size=_SIZE)
    for i, found in enumerate(summaries):
        if found.done:
            how = look(i)
            error, color = _deviation(found.last), how.color
            axes.errorbar(1 / found.time, mean(found.last), error, fmt=how.marker, color=color, capsize=3, label=found.name)
    finish(axes, x=f"training speed, first recipe: {summaries[0].name} = 1", y=metric.label, legend=False)
    _legend(figure, axes)
    save(figure, file)


def save_curves(runs: Mapping[str, Mapping[int, Mapping[str, Any]]], metric: Metric, file: Path) -> None:
    """The metric over the epochs, mean over the seeds; arguments as in `save_speeds`, the runs by recipe and seed."""
    from matplotlib.ticker import MaxNLocator

    figure, [[axes]] = panels(1, size=_SIZE)
    for i, (name, results) in enumerate(runs.items()):
        histories = [run["history"] for run in results.values()]
        if histories:
            columns = list(zip(*histories, strict=False))
            means = [mean(metric.shown(entry) for entry in column) for column in columns]
            how = look(i)
            every = max(1, len(means) // 10)
            style: dict[str, Any] = {"color": how.color, "linestyle": how.line, "marker": how.marker, "markevery": every}
            axes.plot([column[0]["epoch"] for column in columns], means, markersize=4, label=name, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, x="epoch", y=metric.label, legend=False)
    _legend(figure, axes)
    save(figure, file)


def save_sweep(
    scores: Mapping[str, Mapping[str, Sequence[float]]], field: str, metric: Metric, file: Path, held_out: bool
) -> None:
    """The metric against the values of a field, a line per recipe.

    Values that are all numbers stand on a number line (a logarithmic one, where all are > 0) with a tick at each; others
    side by side, in their order.

    Args:
        scores: recipe to value, as text, to the metric of each run.
        field: the field's name.
        metric: of the vertical axis.
        file: where the figure goes, without suffix.
        held_out: whether the metric is over held-out training images.
    """
    values = list(dict.fromkeys(value for points in scores.values() for value in points))
    numbers = [_number(value) for value in values]
    places = numbers if all(map(isfinite, numbers)) else [float(i) for i in range(len(values))]
    at = dict(zip(values, places, strict=True))
    figure, [[axes]] = panels(1, size=_SIZE)
    for i, (name, points) in enumerate(scores.items()):
        there = sorted((value for value, found in points.items() if found), key=at.__getitem__)
        means, deviations = [mean(points[v]) for v in there], [_deviation(points[v]) for v in there]
        how = look(i)
        style: dict[str, Any] = {"color": how.color, "linestyle": how.line, "marker": how.marker, "capsize": 3}
        axes.errorbar([at[v] for v in there], means, deviations, label=name, **style)
    if places is numbers and min(numbers) > 0:
        axes.set_xscale("log")
    axes.set_xticks(places, values)
    axes.minorticks_off()
    finish(axes, x=field, y=f"{metric.label}{' (held-out images)' if held_out else ''}", legend=False)
    _legend(figure, axes)
    save(figure, file)


def _legend(figure: Any, axes: Any) -> None:
    """A legend beside the axes, where it covers nothing."""
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
