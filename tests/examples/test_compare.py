"""The comparison runner, run small as a user runs it: tables, figures, resuming, sweeps, failures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from tests.scripts import example

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return example("compare")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three results of SGD and SAM on the digits, made by one command."""
    folder = tmp_path_factory.mktemp("compare")
    recipes = [str(DIGITS / f"{name}.yaml") for name in ("sgd", "sam")]
    command = [sys.executable, str(ROOT / "examples" / "compare.py"), *recipes, "--seeds", "1", "--match", "passes"]
    command += ["--output_dir", str(folder), "--", "--num_train_epochs", "1", "--use_cpu", "true"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert (folder / "table.md").read_text(encoding="utf-8") in done.stdout
    assert "2/2" in done.stderr  # the progress bar
    return folder


def result(folder: Path, name: str, seed: int = 0) -> dict[str, Any]:
    return json.loads((folder / name / f"seed{seed}" / "results.json").read_text(encoding="utf-8"))


def test_table_and_figures(small: Path) -> None:
    head, _, *rows = (small / "table.md").read_text(encoding="utf-8").strip().split("\n")
    assert [cell.strip() for cell in head.strip("|").split("|")][:4] == ["recipe", "runs", "last epoch, %", "best epoch, %"]
    for row, name in zip(rows, ("sgd", "sam"), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [name, "1"]
        assert cells[2] == f"{100 * result(small, name)['last']['accuracy']:.2f}"
        assert cells[6] == "2.0"  # SGD had two epochs, SAM one
    assert result(small, "sgd")["last"]["epoch"] == 2
    assert result(small, "sam")["last"]["epoch"] == 1
    for name in ("speed.png", "epochs.png"):
        assert (small / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((small / "comparison.json").read_text(encoding="utf-8"))
    assert report.keys() == {"recipes", "rows", "versions", "commit", "device"}
    assert report["recipes"]["sam"]["rho"] == 0.05


def test_done_runs_are_not_repeated_and_a_cell_comes_out_the_same_again(
    small: Path, compare: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [str(DIGITS / f"{name}.yaml") for name in ("sgd", "sam")]
    line += ["--seeds", "1", "--match", "passes", "--output_dir", str(small)]
    line += ["--", "--num_train_epochs", "1", "--use_cpu", "true"]
    was = result(small, "sam")
    kept = (small / "sgd" / "seed0" / "results.json").stat().st_mtime_ns
    (small / "sam" / "seed0" / "results.json").unlink()
    compare.main(line)
    assert (small / "sgd" / "seed0" / "results.json").stat().st_mtime_ns == kept
    again = result(small, "sam")
    for found in (was, again):
        for part in (found["last"], *found["history"]):
            for name in ("runtime", "samples_per_second", "steps_per_second"):
                part.pop(name, None)
        found["best"] = found["history"]
        del found["seconds"], found["commit"]
    assert again == was


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A training script that knows its accuracy at once."""
    file = tmp_path / "script.py"
    file.write_text(
        "import json, pathlib, sys\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "rho, seed, rate = float(given.get('--rho', 0)), int(given['--seed']), float(given['--learning_rate'])\n"
        "if rho > 1 and seed == 1: raise SystemExit('diverged')\n"
        "accuracy = 0.9 - (rho - 0.2) ** 2 - (rate - 0.1) ** 2 + 0.001 * seed - (0.1 if '--holdout' in given else 0)\n"
        "entry = {'epoch': float(given['--num_train_epochs']), 'accuracy': accuracy}\n"
        "results = {'last': entry, 'history': [entry], 'seconds': 1.0, 'passes_per_step': 2.0}\n"
        "(pathlib.Path(given['--output_dir']) / 'results.json').write_text(json.dumps(results))\n"
    )
    return file


def test_sweep_chooses_on_held_out_images_and_failures_are_counted(
    compare: ModuleType, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = [str(DIGITS / "sam.yaml"), "--seeds", "2", "--script", str(script), "--output_dir", str(out)]
    compare.main([*line, "--sweep", "rho", "0.1", "0.2", "0.4"])
    assert "sam: rho=0.2 is best on the held-out images" in capsys.readouterr().out
    assert (out / "rho.png").read_bytes().startswith(b"\x89PNG")
    assert result(out, "sam", 1)["last"]["accuracy"] == pytest.approx(0.901)
    held = json.loads((out / "sweep" / "sam,rho=0.2" / "seed0" / "settings.json").read_text(encoding="utf-8"))
    assert held["settings"]["holdout"] == 0.1
    compare.main([*line, "--", "--rho", "1.5"])
    printed = capsys.readouterr()
    assert "| sam    | 1 (1 failed) |" in printed.out
    assert "sam, seed 1 failed: diverged" in printed.out + printed.err


def swept(compare: ModuleType, script: Path, out: Path, names: str, *words: str) -> dict[str, Any]:
    """The recipes that a sweep over the digits' ends with."""
    files = [str(DIGITS / f"{name}.yaml") for name in names.split()]
    compare.main([*files, "--seeds", "1", "--script", str(script), "--output_dir", str(out), *words])
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))["recipes"]


def test_a_sweep_of_one_value_is_that_value(compare: ModuleType, script: Path, tmp_path: Path) -> None:
    recipes = swept(compare, script, tmp_path / "out", "sgd sam", "--sweep", "rho", "0.4")
    assert recipes["sam"]["rho"] == 0.4
    assert recipes["sgd"].get("rho") is None  # a plain recipe has no method
    assert not (tmp_path / "out" / "sweep").exists()


def test_passes_are_equal_in_a_sweep_and_after_it(compare: ModuleType, script: Path, tmp_path: Path) -> None:
    """SAM, CR-SAM and GAM make 2, 3 and 4 passes per step; the script prefers no method, so the first one is chosen."""
    out, words = tmp_path / "out", ("--match", "passes", "--sweep", "sharpness", "crsam", "gam")
    recipes = swept(compare, script, out, "sgd sam", *words, "--", "--num_train_epochs", "6")
    assert recipes["sam"]["sharpness"] == "crsam"
    assert {name: recipe["num_train_epochs"] for name, recipe in recipes.items()} == {"sgd": 24, "sam": 8}
    files = {method: out / "sweep" / f"sam,sharpness={method}" / "seed0" / "settings.json" for method in ("crsam", "gam")}
    found = {method: json.loads(file.read_text(encoding="utf-8"))["settings"] for method, file in files.items()}
    assert {method: settings["num_train_epochs"] for method, settings in found.items()} == {"crsam": 8, "gam": 6}


def test_figures_of_sweeps_over_two_fields(
    compare: ModuleType, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, two = tmp_path / "out", ("--sweep", "rho", "0.1", "0.2", "--sweep", "learning_rate", "0.1", "0.3")
    recipes = swept(compare, script, out, "sgd sam", *two)
    assert (recipes["sam"]["rho"], recipes["sam"]["learning_rate"], recipes["sgd"]["learning_rate"]) == (0.2, 0.1, 0.1)
    drawn = (out / "rho_sam.svg").read_text(encoding="utf-8")
    assert "<!-- sam, learning_rate=0.1 -->" in drawn
    assert "<!-- sam, learning_rate=0.3 -->" in drawn
    assert (out / "learning_rate.svg").exists()  # the plain recipe has this field alone
    capsys.readouterr()
    swept(compare, script, tmp_path / "three", "sam", *two, "--sweep", "weight_decay", "0.1", "0.2")
    assert "sam: no figure, since it would have 3 axes. Sweep at most two fields" in capsys.readouterr().out


def test_a_sweep_of_the_length_cannot_have_equal_passes(compare: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for field in ("num_train_epochs", "max_steps"):
        with pytest.raises(SystemExit):
            compare.arguments([str(DIGITS / "sam.yaml"), "--match", "passes", "--sweep", field, "1", "2"])
        said = f"--match passes sets the length of the runs, got --sweep {field}. Use --match epochs."
        assert said in capsys.readouterr().err
