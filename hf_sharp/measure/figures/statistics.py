"""The figure of a sharpness measure against the generalization gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_sharp.measure.figures.style import finish, finite, panels
from hf_sharp.measure.result import Found

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def correlation(found: Mapping[str, Found]) -> Figure:
    """Scatter plots of measures against the generalization gap, with Kendall's tau.

    Args:
        found: what `rank_correlation` found, by the name of the measure.

    References:
        Kwon et al., ASAM, ICML 2021, Figure 2.
    """
    columns = min(2, len(found))
    figure, rows = panels(columns, -(-len(found) // columns), size=(4.2, 3.3), sharey=True)
    flat = [axes for row in rows for axes in row]
    for axes, (name, result) in zip(flat, found.items(), strict=False):
        axes.scatter(result.arrays["measure"], result.arrays["gap"], s=18, facecolor="white", edgecolor="black", linewidth=1)
        if min(finite(result.arrays["measure"]), default=0.0) > 0:
            axes.set_xscale("log")
        title = rf"$\tau$ = {result.values['tau']:.2f}, $\Psi$ = {result.values['psi']:.2f}"
        finish(axes, x=name, y="gap of test to training loss" if axes in [row[0] for row in rows] else "", title=title)
    for axes in flat[len(found) :]:
        axes.set_axis_off()
    return figure
