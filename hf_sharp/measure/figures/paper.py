"""The papers' toy figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_sharp.measure.figures.style import COLORMAP, finish, look, panels
from hf_sharp.measure.toys import Hill, Maximum, Point2, curve, valley

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trajectories(paths: Mapping[str, Sequence[Sequence[Point2]]]) -> Figure:
    """Paths in the valley, one panel per method (Kwon et al., 2021, Figure 3).

    Args:
        paths: several per method.
    """
    import numpy as np
    import torch

    figure, (row,) = panels(len(paths), sharex=True, sharey=True, size=(4.4, 3.8))
    w1, w2 = torch.meshgrid(torch.linspace(0.0, 0.45, 200), torch.linspace(-0.03, 0.32, 200), indexing="xy")
    losses = valley(w1, w2).numpy()
    drawn: Any = None
    for axes, (name, several) in zip(row, paths.items(), strict=True):
        drawn = axes.contourf(w1.numpy(), w2.numpy(), losses, 14, cmap=COLORMAP)
        x = np.linspace(0.125, 0.45, 100)
        axes.plot(x, 0.04 / x, color="white", linewidth=1.6, label="minima")
        for i, path in enumerate(several):
            style = look(i + 1)
            points = np.asarray(path)
            axes.plot(*points.T, color="white", linewidth=2.6)
            axes.plot(
                *points.T, color=style.color, linewidth=1.2, marker=style.marker, markevery=[0], label=f"from {path[0]}"
            )
            axes.plot(
                *points[0], marker=style.marker, color=style.color, markeredgecolor="white", markersize=7, linestyle="none"
            )
            axes.plot(*points[-1], marker="X", color=style.color, markeredgecolor="white", markersize=9, linestyle="none")
        finish(axes, x="$w_1$", y="$w_2$" if axes is row[0] else "", title=f"{name} (cross: end)", legend=False)
        axes.legend(fontsize="small", facecolor="0.75", loc="upper right")
        axes.grid(visible=False)
    figure.colorbar(drawn, ax=row, label="loss")
    return figure


def regions(found: Mapping[str, tuple[Maximum, Maximum]]) -> Figure:
    """Maximisation regions around two points of equal loss, and where the loss is largest (Kwon et al., 2021, Figure 1).

    Args:
        found: the maxima around both points, by the name of the region.
    """
    import numpy as np

    figure, (row,) = panels(len(found), sharex=True, sharey=True, size=(5.4, 3.1))
    for axes, (name, pair) in zip(row, found.items(), strict=True):
        x = np.linspace(0.05, 5.2, 400)
        axes.plot(x, 1 / x, color="#0072b2", linestyle="-", label="loss at $w$ and $w'$")
        axes.plot(x, pair[0].loss / x, color="#d55e00", linestyle="--", label="largest loss around $w$")
        for maximum, marker, label in zip(pair, ("o", "^"), ("$w$", "$w'$"), strict=True):
            axes.plot(*_outline(maximum), color="black", linewidth=1)
            axes.plot(*maximum.at, marker=marker, color="black", linestyle="none", label=label)
            axes.plot(*maximum.where, marker="*", color="white", markeredgecolor="black", markersize=12, linestyle="none")
        axes.set_xlim(0, 5.2)
        axes.set_ylim(-0.3, 2.2)
        axes.set_aspect("equal")
        finish(axes, x="$w_1$", y="$w_2$" if axes is row[0] else "", title=f"{name} (star: largest loss)")
    return figure


def _outline(maximum: Maximum) -> Any:
    import numpy as np

    region, at = maximum.region, np.asarray(maximum.at)
    angle = np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    if region.p != 2:
        circle = circle / np.abs(circle).max(axis=0)
    t = np.abs(at) if region.adaptive else np.ones(2)
    return at[:, None] + region.rho * t[:, None] * circle


def hills(pairs: Mapping[str, Sequence[tuple[Hill, float, float]]], rho: float = 1.0, reach: float = 1.25) -> Figure:
    """One-dimensional valleys with their zeroth- and first-order flatness (Zhang et al., 2023, Figure 1).

    Args:
        pairs: two valleys with R0 and R1 each, by the name of the panel.
        rho: the radius.
        reach: how far to either side the curves are drawn.
    """
    figure, (row,) = panels(len(pairs), size=(4.8, 3.6))
    for axes, (name, pair) in zip(row, pairs.items(), strict=True):
        for i, (hill, r0, r1) in enumerate(pair):
            x, y = curve(hill, reach)
            style = look(i)
            label = f"{hill.name}: $R_0$ = {r0:.2f}, $R_1$ = {r1:.2f}"
            axes.plot(x, y, color=style.color, linestyle=style.line, label=label)
        for edge in (-rho, rho):
            axes.axvline(edge, color="0.5", linewidth=0.8, linestyle=":")
        axes.set_ylim(top=axes.get_ylim()[1] * 1.3)
        finish(axes, x=r"$\theta$ (dotted: the radius)", y="loss", title=name)
    return figure
