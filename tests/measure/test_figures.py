"""Figures of what measurements find, also where a loss is not finite or not above 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_sharp.measure import figures
from hf_sharp.measure.figures.spectra import bumps, common_grid
from tests.scripts import example


def plane(*losses: Any) -> dict[str, Any]:
    return {"settings": {}, "arrays": {"x": [-1.0, 0.0, 1.0], "y": [-1.0, 0.0, 1.0], "losses": [list(losses)] * 3}}


@pytest.mark.parametrize(
    "losses", [(1.0, 2.0, "inf"), (1.0, "nan", 3.0), (-3.0, -2.0, -1.0), (0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (0, 1, 2)]
)
def test_landscapes_of_any_losses(losses: tuple[Any, ...], tmp_path: Path) -> None:
    results = {"a": plane(*losses), "b": plane(1.0, 2.0, 3.0)}
    for draw in (figures.contours, figures.surfaces):
        figures.save(draw(results), tmp_path / draw.__name__)
        assert (tmp_path / f"{draw.__name__}.png").stat().st_size > 5000
    along = {"a": {"arrays": {"x": [-1.0, 0.0, 1.0], "losses": list(losses)}}}
    (axes,) = figures.line(along).axes
    positive = all(float(x) > 0 for x in losses if x not in ("nan", "inf"))
    assert axes.get_yscale() == ("log" if positive else "linear")
    (axes,) = figures.between(along, {"a": ("SGD", "sam/end")}).axes
    assert axes.get_title() == "SGD (0) to sam/end (1)"


def test_planes_say_what_a_distance_of_one_is_and_mark_the_weights() -> None:
    found = {"a": {"arrays": {"x": [-1, 0, 1], "y": [-1, 0, 1], "losses": [[1.0, 2.0, 3.0]] * 3}}}
    for axes in (figures.contours(found).axes[0], figures.surfaces(found).axes[0]):
        assert "1: the length of each filter" in axes.get_xlabel()
    under, over = (line for line in figures.contours(found).axes[0].lines if line.get_marker() == "+")
    assert (under.get_color(), over.get_color()) == ("black", "white")
    assert under.get_markeredgewidth() > over.get_markeredgewidth()


def test_surfaces_name_their_vertical_axis() -> None:
    axes: Any = figures.surfaces({"a": plane(1.0, 2.0, 3.0)}).axes[0]
    assert axes.get_zlabel() == "log10 of the loss"


def test_values_that_are_no_numbers_leave_gaps(tmp_path: Path) -> None:
    """In an evolution after a run has diverged, and in a table of radii."""
    history = [
        {"loader": loader, "epoch": float(i), "values": {"trace": x}, "standard_errors": {"trace": x}}
        for loader in ("train", "test")
        for i, x in enumerate((1.0, "nan", "inf"))
    ]
    figures.save(figures.evolution({"SGD": history}, ["trace"]), tmp_path / "evolution")
    arrays = {"rhos": [0.1, 0.2], "gammas": [0.0], "table": [[1.0, "inf"]], "standard_error": [[0.0, "nan"]]}
    figures.save(figures.smoothed({"SGD": {"arrays": arrays}}, "loss", logarithmic=True), tmp_path / "smoothed")


def test_densities_in_one_figure_have_bumps_of_one_width() -> None:
    """An eigenvalue that two runs share looks the same in both, though one has an outlier far away."""
    settings = {"lanczos": 30, "kappa": 3.0, "points": 4096}
    near = {"nodes": [[60.0]] * 2, "weights": [[1.0]] * 2}
    far = {"nodes": [[0.0, 60.0, 200.0]] * 2, "weights": [[0.1, 0.8, 0.1]] * 2}
    results = {name: {"settings": settings, "arrays": arrays} for name, arrays in (("near", near), ("far", far))}
    grid, width = common_grid(results)
    assert grid[0] < 0 < 200 < grid[-1]
    for result in results.values():
        for density in bumps(result, grid, width):
            above = grid[density > density.max() / 2]
            assert above[-1] - above[0] == pytest.approx(2.355 * width, rel=0.05)
            assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.001)
    (axes,) = figures.density(results).axes
    lines = axes.get_lines()
    assert np.array_equal(lines[0].get_xdata(), lines[1].get_xdata())


def test_eigenvalues_are_shown_with_the_trace_that_was_measured() -> None:
    script = example("measure/measure_checkpoint")
    top = {"SAM@end": {"values": {"top_eigenvalue": 2.0}, "arrays": {"eigenvalues": [2.0, 1.0]}}}
    trace = {"SAM@end": {"values": {"trace": 12.5}}}
    shown = script.with_traces(top, {"top_eigenvalues": top, "trace": trace})
    (axes,) = figures.eigenvalues(script.stages(shown)).axes
    assert "trace = 12.5" in axes.get_legend().get_texts()[0].get_text()
    assert script.with_traces(top, {"top_eigenvalues": top}) == top


def test_the_correlation_of_runs_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file; only what is asked about is scored."""
    runs = [
        {"settings": {"lr": lr, "seed": seed}, "gap": lr + seed / 100, "measures": {"trace": lr - seed / 100}}
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    line = ["--runs", str(tmp_path / "runs.json"), "--hyperparameters", "lr", "--output_dir", str(tmp_path / "out")]
    example("measure/correlate").main(line)
    found = json.loads((tmp_path / "out" / "correlation.json").read_text())["correlation"]["trace"]
    assert found["psi_lr"] == found["psi"] == 1
    assert found["tau"] == pytest.approx(1 / 3)
    assert "| psi_lr | 1.000 |" in capsys.readouterr().out
