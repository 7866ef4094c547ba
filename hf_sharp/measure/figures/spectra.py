"""Figures of distributions: eigenvalues, spectral densities, numbers of extrema."""

from __future__ import annotations

from collections.abc import Mapping
from math import log, pi
from typing import TYPE_CHECKING, Any

from hf_sharp.measure.figures.style import Results, finish, look, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def eigenvalues(stages: Mapping[str, Results], bins: int = 24) -> Figure:
    """Histograms of the largest eigenvalues of several runs, one row per stage of training, on common bins.

    Args:
        stages: results of `TopEigenvalues` by run, by the name of the stage (two epochs, say). Where a result has the value
            ``trace``, it is named in the legend.
        bins: how many.

    References:
        Zhang et al., GAM, CVPR 2023, Figure 3.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    every = [x for results in stages.values() for r in results.values() for x in r["arrays"]["eigenvalues"]]
    edges = np.linspace(min(0.0, min(every)), max(every) * 1.02, bins + 1)
    figure, rows = panels(1, len(stages), size=(6.4, 2.9), sharex=True)
    for (axes,), (stage, results) in zip(rows, stages.items(), strict=True):
        for i, (name, result) in enumerate(results.items()):
            found, style = result["arrays"]["eigenvalues"], look(i)
            trace = result["values"].get("trace")
            label = rf"{name}: $\lambda_1$ = {found[0]:.3g}" + ("" if trace is None else f", trace = {float(trace):.3g}")
            axes.hist(found, edges, histtype="bar", color=style.color, alpha=0.25, hatch=style.hatch, edgecolor=style.color)
            axes.hist(found, edges, histtype="step", color=style.color, linestyle=style.line, linewidth=1.6, label=label)
        axis = "eigenvalue of the Hessian" if stage == list(stages)[-1] else ""
        many = len(found) >= 20
        finish(axes, x=axis, y=f"count of the top {len(found)}" + (" (log scale)" if many else ""), title=stage)
        if many:
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def density(results: Results) -> Figure:
    """Spectral densities with a band of one standard error, on one grid and with bumps of one width.

    They are drawn from the nodes and weights of the Lanczos runs, since each result's own density has bumps as wide as its
    own range asks for, which look like differences between runs.
    """
    import numpy as np

    figure, ((axes,),) = panels(1, size=(6.4, 3.8))
    grid, width = common_grid(results)
    top = 0.0
    for i, (name, result) in enumerate(results.items()):
        style, runs = look(i), bumps(result, grid, width)
        mean, error = runs.mean(axis=0), runs.std(axis=0, ddof=1) / len(runs) ** 0.5
        top = max(top, float(mean.max()))
        axes.plot(grid, mean, color=style.color, linestyle=style.line, label=name)
        axes.fill_between(grid, np.maximum(mean - error, 1e-12), mean + error, color=style.color, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(top * 1e-7, top * 3)
    x = f"eigenvalue of the Hessian (bumps of width {width:.2g})"
    finish(axes, x=x, y="density (log scale; band: one standard error)")
    return figure


def common_grid(results: Results) -> tuple[Any, float]:
    """One grid for the densities of all runs, and the bumps' standard deviation, by Papyan's rule for the whole range."""
    import numpy as np

    nodes = [node for r in results.values() for run in r["arrays"]["nodes"] for node in run]
    settings = [r["settings"] for r in results.values()]
    half = (max(nodes) - min(nodes)) / 2 * 1.05 or 1.0
    middle = (max(nodes) + min(nodes)) / 2
    steps, kappa = min(s["lanczos"] for s in settings), min(s["kappa"] for s in settings)
    width = half * 2 / ((steps - 1) * (8 * log(kappa)) ** 0.5)
    reach = half + 6 * width  # room for the outermost bumps
    return np.linspace(middle - reach, middle + reach, max(s["points"] for s in settings)), width


def bumps(result: Mapping[str, Any], grid: Any, width: float) -> Any:
    """The density of each Lanczos run on a grid, shape (runs, points)."""
    import numpy as np

    out = []
    for nodes, weights in zip(result["arrays"]["nodes"], result["arrays"]["weights"], strict=True):
        apart = (grid[None] - np.asarray(nodes)[:, None]) / width
        out.append(np.asarray(weights) @ (np.exp(-(apart**2) / 2) / (width * (2 * pi) ** 0.5)))
    return np.stack(out)


def extrema(results: Results) -> Figure:
    """How many directions have how many local minima and maxima, one panel each, runs side by side.

    References:
        Zhang et al., GAM, CVPR 2023, Figure 2.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (row,) = panels(2, sharey=True)
    most = max(max(*r["arrays"]["minima"], *r["arrays"]["maxima"]) for r in results.values())
    width = 0.8 / len(results)
    for axes, kind in zip(row, ("minima", "maxima"), strict=True):
        for i, (name, result) in enumerate(results.items()):
            counts, style = result["arrays"][kind], look(i)
            heights = [sum(c == n for c in counts) for n in range(most + 1)]
            places = [n + (i - (len(results) - 1) / 2) * width for n in range(most + 1)]
            axes.bar(places, heights, width, facecolor="white", edgecolor=style.color, hatch=style.hatch or None, label=name)
        axes.set_xticks(range(most + 1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        rho = next(iter(results.values()))["settings"]["rho"]
        finish(axes, x=f"local {kind} within the radius {rho:g}", y="number of directions" if kind == "minima" else "")
    return figure
