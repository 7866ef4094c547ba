"""How figures look: readable in black and white and for colour-blind eyes, since every run has a line style of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_sharp.measure.records import put

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, Any]]
"""Results of one quantity as `Result.to_dict` gives them, by the name of the run."""
COLORMAP = "cividis"
BARS = "bars: one standard error"


@dataclass(frozen=True)
class Look:
    """The look of one run.

    Attributes:
        color: of Okabe and Ito's colour-blind safe set, from dark to light.
        line: the line style.
        marker: the marker.
        hatch: for bars.
    """

    color: str
    line: Any
    marker: str
    hatch: str


LOOKS = (
    Look("#000000", "-", "o", ""),
    Look("#d55e00", "--", "s", "///"),
    Look("#0072b2", ":", "^", "..."),
    Look("#009e73", "-.", "D", "xxx"),
    Look("#cc79a7", (0, (5, 1, 1, 1, 1, 1)), "v", "\\\\\\"),
    Look("#e69f00", (0, (1, 3)), "P", "++"),
)


def finite(nested: Iterable[Any]) -> list[float]:
    """The finite ones of all numbers in nested lists; JSON has the others as text."""
    out: list[float] = []
    for x in nested:
        if isinstance(x, list | tuple):
            out += finite(x)
        elif isfinite(float(x)):
            out.append(float(x))
    return out


def look(i: int) -> Look:
    """The look of the i-th run."""
    return LOOKS[i % len(LOOKS)]


def panels(columns: int, rows: int = 1, *, size: tuple[float, float] = (4.2, 3.4), **options: Any) -> tuple[Figure, Any]:
    """A figure, and its axes as a nested list of rows."""
    from matplotlib.figure import Figure as Blank

    figure = Blank(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).tolist()


def unit(results: Results) -> str:
    """What a distance of 1 is along the random directions of landscapes."""
    kinds = {r.get("settings", {}).get("normalization", "filter") for r in results.values()}
    return "1: the length of each filter" if kinds == {"filter"} else "1: a step of length 1"


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str = "") -> None:
    """One legend for all panels, above them."""
    figure.legend(
        handles,
        labels,
        ncols=min(4, len(labels)),
        title=title or None,
        loc="outside upper center",
        frameon=False,
        fontsize="small",
        title_fontsize="small",
    )


def finish(axes: Axes, *, x: str, y: str, title: str = "", legend: bool = True) -> None:
    """Labels, a light grid and a legend."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.25, linewidth=0.6)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def save(figure: Figure, file: Path) -> list[Path]:
    """Write a figure as PNG and SVG, and return the two files; each appears whole or not at all.

    Args:
        figure: to write.
        file: where, without suffix.
    """
    written = []
    for kind in ("png", "svg"):
        path = file.with_name(f"{file.name}.{kind}")
        put(path, lambda part, kind=kind: figure.savefig(part, format=kind, dpi=150))  # type: ignore[misc]
        written.append(path)
    return written
