"""Figures of two-dimensional landscapes; runs that are compared share one colour scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_sharp.measure.figures.style import COLORMAP, Results, finite, panels, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = 13


@dataclass(frozen=True)
class Scale:
    """What all runs' losses are drawn on.

    Attributes:
        low: the smallest finite loss.
        high: the largest one.
        logarithmic: whether all of them are above 0.
    """

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, results: Results) -> Scale:
        """The scale of all runs."""
        known = finite(r["arrays"]["losses"] for r in results.values()) or [0.0]
        low, high = min(known), max(known)
        if high - low <= 1e-3 * abs(low):  # a constant loss
            low, high = low - (abs(low) or 1.0) / 100, high + (abs(low) or 1.0) / 100
        return cls(low, high, low > 0)


def contours(results: Results) -> Figure:
    """Contours of `LossPlane`, one panel per run, on one colour scale, which is logarithmic where all losses are above 0.

    A loss that is not finite leaves a hole.
    """
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    figure, (row,) = panels(len(results), sharex=True, sharey=True, size=(4.2, 3.9))
    scale = Scale.of(results)
    levels = (np.geomspace if scale.logarithmic else np.linspace)(scale.low, scale.high, LEVELS)
    levels[0], levels[-1] = scale.low, scale.high
    drawn: Any = None
    for axes, (name, result) in zip(row, results.items(), strict=True):
        found = result["arrays"]
        norm = (LogNorm if scale.logarithmic else Normalize)(scale.low, scale.high)
        losses = np.ma.masked_invalid(np.asarray(found["losses"], dtype=float))
        drawn = axes.contourf(found["x"], found["y"], losses, levels, cmap=COLORMAP, norm=norm)
        axes.contour(found["x"], found["y"], losses, levels, colors="white", linewidths=0.6)
        for color, width in (("black", 3.2), ("white", 1.4)):  # a dark edge: on light contours white alone is not seen
            axes.plot([0], [0], marker="+", color=color, markersize=9, markeredgewidth=width)
        axes.set_aspect("equal")
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel(f"first direction ({unit(results)})")
    row[0].set_ylabel(f"second direction ({unit(results)})")
    kind = "log scale; " if scale.logarithmic else ""
    bar = figure.colorbar(drawn, ax=row, label=f"loss ({kind}one line per mark)", ticks=levels, format="%.3g")
    bar.minorticks_off()
    return figure


def surfaces(results: Results) -> Figure:
    """The same as surfaces over the plane: one vertical axis and one colour scale for all runs."""
    import numpy as np

    figure, (row,) = panels(len(results), size=(5.2, 4.2), subplot_kw={"projection": "3d"})
    scale = Scale.of(results)
    shown = np.log10 if scale.logarithmic else np.asarray
    low, high = float(shown(scale.low)), float(shown(scale.high))
    label = "log10 of the loss" if scale.logarithmic else "loss"
    drawn: Any = None
    for axes, (name, result) in zip(row, results.items(), strict=True):
        found = result["arrays"]
        x, y = np.meshgrid(found["x"], found["y"])
        losses = np.asarray(found["losses"], dtype=float)
        z = shown(np.where(np.isfinite(losses), losses, np.nan))
        drawn = axes.plot_surface(x, y, z, cmap=COLORMAP, vmin=low, vmax=high, rstride=1, cstride=1, edgecolor="0.3", lw=0.2)
        axes.patch.set_visible(False)  # it would cover the label of the axes beside it
        axes.set_zlim(low, high)
        axes.set_title(name, fontsize="medium", y=0.95)  # the box leaves the top of its panel empty
        axes.set_xlabel(f"first direction\n({unit(results)})", fontsize="small", labelpad=10)
        axes.set_ylabel(f"second direction\n({unit(results)})", fontsize="small", labelpad=10)
        axes.set_zlabel(label)
        axes.view_init(elev=28, azim=-55)
        axes.set_box_aspect(None, zoom=0.85)
        axes.set_xticks([min(found["x"]), 0, max(found["x"])])
        axes.set_yticks([min(found["y"]), 0, max(found["y"])])
        axes.tick_params(labelsize="small", pad=0)
    figure.colorbar(drawn, ax=row, label=label, shrink=0.7, pad=0.08)
    return figure
