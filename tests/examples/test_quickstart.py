"""The quickstart, run small as a user runs it, and one of its cells once more."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hf_sharp import ASAM, parse_method
from tests.scripts import example

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
METHODS = ["adamw", "sam", "asam", "gsam"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which the script ran, and what it said."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, str(SCRIPT), "--epochs", "1", "--seeds", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def quickstart() -> Iterator[ModuleType]:
    """The script as a module; the number of threads, which it sets, is put back."""
    threads = torch.get_num_threads()
    yield example("quickstart")
    torch.set_num_threads(threads)


def cell(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "quickstart_results" / f"{name}_seed0.json").read_text(encoding="utf-8"))


def test_table_has_a_row_per_method(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = run
    lines = done.stdout.splitlines()
    for name, label in zip(METHODS, ["AdamW", "SAM", "ASAM", "GSAM"], strict=True):
        (row,) = [line.split() for line in lines if line.startswith(f"{label} ")]
        assert row[1] == f"{100 * cell(folder, name)['accuracy']:.2f}"
        assert row[2] == f"{cell(folder, name)['train_loss']:.4f}"
        assert row[3] == f"{cell(folder, name)['loss_gap']:.5f}"
        assert float(row[4]) > 0
    assert "{'loss'" not in done.stdout + done.stderr
    assert "20/20" in done.stderr  # the progress bar


def test_files(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = run
    assert sorted(path.name for path in folder.iterdir()) == ["quickstart.png", "quickstart_results"]
    assert (folder / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in (folder / "quickstart_results").iterdir()}
    assert names == {f"{name}_seed0.json" for name in METHODS}
    for name in METHODS:
        result = cell(folder, name)
        assert (result["method"]["name"], result["seed"], result["settings"]["epochs"]) == (name, 0, 1)
        assert 0.1 < result["accuracy"] <= 1
        assert 0 < result["train_loss"] < 1.2 * math.log(10)
        assert 0 < result["loss_gap"] < result["train_loss"]
        assert result["seconds"] > 0
        assert result["versions"].keys() == {"torch", "transformers", "hf_sharp"}
        distances, losses = result["line"]["distance"], result["line"]["loss"]
        assert len(distances) == len(losses) == 21
        assert losses[10] == result["train_loss"]
    assert parse_method(cell(folder, "asam")["method"]) == ASAM(rho=0.2)


def test_cell_comes_out_the_same_again(run: tuple[Path, subprocess.CompletedProcess[str]], quickstart: ModuleType) -> None:
    was = cell(run[0], "gsam")
    again = quickstart.run_cell("gsam", 0, quickstart.Settings(**was["settings"]))
    for result in (was, again):
        del result["seconds"]
    assert again == was


def test_gap_and_line_leave_the_weights_as_they_were(quickstart: ModuleType) -> None:
    data, _ = quickstart.digits(0, 0.9)
    model = quickstart.small_vit().eval()
    before = [w.detach().clone() for w in model.parameters()]
    gap = quickstart.loss_gap(model, data, 0.001)
    quickstart.loss_line(model, data, 0, quickstart.Settings(points=3))
    assert all(torch.equal(w, was) for w, was in zip(model.parameters(), before, strict=True))
    grads = torch.autograd.grad(model(pixel_values=data.images, labels=data.labels).loss, list(model.parameters()))
    slope = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    assert gap == pytest.approx(0.001 * slope, rel=0.1)  # to first order, the gap is the slope times the radius


def test_direction_is_as_long_as_the_weights_in_each_unit(quickstart: ModuleType) -> None:
    model = quickstart.small_vit()
    direction = quickstart.filter_normalised_direction(model, 0)
    for w, d in zip(model.parameters(), direction, strict=True):
        if w.ndim < 2:
            assert not d.any()
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), w.detach().flatten(1).norm(dim=1))
