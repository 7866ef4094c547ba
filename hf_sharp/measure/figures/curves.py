"""Figures of curves: over training, along the ascent, along a line in weight space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from hf_sharp.measure.figures.style import BARS, LOOKS, Results, finish, finite, legend_above, look, panels, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "trace": "trace of the Hessian",
    "normalized_trace": "normalised trace C(w)",
    "top_eigenvalue": "largest eigenvalue",
    "approximation_ratio": "approximation ratio",
    "sharpness": "sharpness",
    "gradient_norm": "gradient norm",
    "loss": "loss",
}


def evolution(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], values: Sequence[str], loaders: tuple[str, str] = ("train", "test")
) -> Figure:
    """How values change over the epochs: one panel per value, the first loader on the left axis, the second on the right.

    Args:
        histories: a `SharpnessCallback`'s history, by the name of the run.
        values: names of values that some measured quantity has.
        loaders: the names of the two loaders.

    Raises:
        ValueError: no history has a value or a loader.

    References:
        Wu, Luo and Wunsch, CR-SAM, AAAI 2024, Figures 1 and 2.
    """
    from matplotlib.ticker import MaxNLocator

    _check(histories, values, loaders)
    figure, rows = panels(2 if len(values) > 1 else 1, (len(values) + 1) // 2, size=(5.6, 3.5))
    flat = [axes for row in rows for axes in row]
    for axes, value in zip(flat, values, strict=False):
        sides = (axes, axes.twinx())
        for side, loader, line in zip(sides, loaders, ("-", "--"), strict=True):
            for i, (name, history) in enumerate(histories.items()):
                epochs, taken, errors = _over_epochs(history, loader, value)
                side.errorbar(
                    epochs,
                    taken,
                    yerr=errors,
                    color=look(i).color,
                    linestyle=line,
                    marker=look(i).marker,
                    markersize=4,
                    markerfacecolor=look(i).color if line == "-" else "white",
                    linewidth=1.4,
                    elinewidth=0.8,
                    label=f"{name}, {loader}",
                )
            side.set_ylabel(f"{LABELS.get(value, value)}, {loader} ({'solid' if line == '-' else 'dashed'})")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25, linewidth=0.6)
    for axes in flat[len(values) :]:
        axes.set_axis_off()
    handles = [pair for side in sides for pair in zip(*side.get_legend_handles_labels(), strict=True)]
    legend_above(figure, [line for line, _ in handles], [label for _, label in handles], BARS)
    return figure


def _over_epochs(
    history: Sequence[Mapping[str, Any]], loader: str, value: str
) -> tuple[list[float], list[float], list[float]]:
    rows = [entry for entry in history if entry["loader"] == loader and value in entry["values"]]
    seen: dict[float, tuple[float, float]] = {}
    for entry in rows:  # where two quantities have the value, the first one measured counts
        error = float(entry["standard_errors"].get(value, 0.0))
        seen.setdefault(entry["epoch"], (float(entry["values"][value]), error if isfinite(error) else 0.0))
    return list(seen), [pair[0] for pair in seen.values()], [pair[1] for pair in seen.values()]


def _check(histories: Mapping[str, Sequence[Mapping[str, Any]]], values: Sequence[str], loaders: Sequence[str]) -> None:
    entries = [entry for history in histories.values() for entry in history]
    for name, given, there in (
        ("values", values, {value for entry in entries for value in entry["values"]}),
        ("loaders", loaders, {entry["loader"] for entry in entries}),
    ):
        for one in given:
            if one not in there:
                known = ", ".join(sorted(there))
                raise ValueError(f"{name} must be what a history has, got {one!r}. Choose from {known}.")


def smoothed(results: Results, y: str, *, logarithmic: bool = False) -> Figure:
    """What `GradientCosine` or `AscentLoss` found over the radius: one panel per run, one line per size of the noise.

    Args:
        results: to draw.
        y: what the vertical axis shows.
        logarithmic: whether it is logarithmic where the values span more than a decade and a half.

    References:
        Liu et al., Random Sharpness-Aware Minimization, NeurIPS 2022, Figures 1 and 2.
    """
    figure, (row,) = panels(len(results), sharey=True)
    known = finite(r["arrays"]["table"] for r in results.values())
    wide = logarithmic and bool(known) and min(known) > 0 and max(known) > 30 * min(known)
    for axes, (name, result) in zip(row, results.items(), strict=True):
        found = result["arrays"]
        for i, (gamma, means, errors) in enumerate(
            zip(found["gammas"], found["table"], found["standard_error"], strict=True)
        ):
            label = "no noise" if gamma == 0 else f"noise {gamma:g}"
            style = look(i)
            axes.errorbar(
                found["rhos"],
                [float(x) for x in means],
                yerr=[float(x) if isfinite(float(x)) else 0.0 for x in errors],
                color=style.color,
                linestyle=style.line,
                marker=style.marker,
                markersize=4,
                label=label,
            )
        finish(axes, x=r"radius $\rho$ of the ascent step", y=y if axes is row[0] else "", title=name, legend=False)
        if wide:
            axes.set_yscale("log")
    handles, labels = row[0].get_legend_handles_labels()
    legend_above(figure, handles, labels, BARS if len(labels) > 1 else "")
    return figure


def line(results: Results) -> Figure:
    """The loss along a filter-normalised random direction, all runs in one panel; on a log scale where it is above 0."""
    figure, ((axes,),) = panels(1, size=(5.6, 3.8))
    _curves(axes, results)
    logarithmic = min(finite(r["arrays"]["losses"] for r in results.values()), default=0.0) > 0
    if logarithmic:
        axes.set_yscale("log")
    finish(axes, x=f"distance ({unit(results)})", y="loss (log scale)" if logarithmic else "loss")
    return figure


def between(results: Results, ends: Mapping[str, tuple[str, str]]) -> Figure:
    """The loss on the line between two checkpoints.

    Args:
        results: of `LossBetween`.
        ends: what stands at 0 and at 1, per run.
    """
    figure, (row,) = panels(len(results))
    for axes, (name, result) in zip(row, results.items(), strict=True):
        _curves(axes, {name: result})
        for x in (0, 1):
            axes.axvline(x, color="0.6", linewidth=0.8, linestyle=":")
        first, second = ends[name]
        finish(axes, x="position on the line", y="loss", title=f"{first} (0) to {second} (1)", legend=False)
    return figure


def _curves(axes: Axes, results: Results) -> None:
    for i, (name, result) in enumerate(results.items()):
        found, style = result["arrays"], LOOKS[i % len(LOOKS)]
        every = max(1, len(found["x"]) // 10)
        axes.plot(
            found["x"],
            [float(x) for x in found["losses"]],
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markersize=4,
            markevery=every,
            label=name,
        )
