"""Recipes, paper rows, passes, cells, sweeps and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_sharp import CRSAM, GAM, LPF, SAM, AcceleratedGAM, Every
from hf_sharp.comparison.cells import Cell, method_of, with_equal_passes
from hf_sharp.comparison.metrics import Metric
from hf_sharp.comparison.papers import read_row, read_rows
from hf_sharp.comparison.passes import passes_per_step
from hf_sharp.comparison.recipes import flags, is_plain, overrides, read_recipe
from hf_sharp.comparison.results import provenance, save_results
from hf_sharp.comparison.sweeps import Axis, best, grid
from hf_sharp.comparison.tables import markdown, summary

PAPER = """
names:
  dataset: {c10: {dataset_name: cifar10}}
  model: {small: {model: resnet8}, big: {model: resnet18}}
  augmentation: {none: }
  method: {sgd: {plain: true}, sam: {sharpness: sam, rho: 0.05}}
rules:
  - set: {num_train_epochs: 2, rho: 0.1}
  - {when: {model: [big, huge]}, set: {num_train_epochs: 3}}
  - {when: {model: big, method: sam}, set: {rho: 0.3}}
rows:
  - {table: 1, dataset: c10, model: small, augmentation: none, method: sgd, published: {accuracy: [90.0, 0.1]}}
  - {table: 1, dataset: c10, model: big, augmentation: none, method: sam, published: {accuracy: [91.0]}}
  - {table: 2, dataset: c10, model: big, augmentation: none, method: sam, published: {accuracy: [91.0]}, overrides: {rho: 9}}
"""


def test_recipe_is_laid_over_the_defaults_beside_it(tmp_path: Path) -> None:
    (tmp_path / "defaults.yaml").write_text("rho: 0.05\nmodel: a\n")
    (tmp_path / "sam.yaml").write_text("rho: 0.1\nsharpness: sam\n")
    assert read_recipe(tmp_path / "sam.yaml") == {"rho": 0.1, "model": "a", "sharpness": "sam"}
    assert read_recipe(tmp_path / "defaults.yaml") == {"rho": 0.05, "model": "a"}


def test_flags_and_back() -> None:
    given = {"a": 1e-05, "b": [1, 2], "c": {"x": [1]}, "d": False, "e": "text", "f": None}
    line = ["--a", "1e-05", "--b", "1", "2", "--c", '{"x": [1]}', "--d", "false", "--e", "text"]
    assert flags(given) == line
    assert overrides(line) == {"a": "1e-05", "b": ["1", "2"], "c": '{"x": [1]}', "d": "false", "e": "text"}
    assert overrides(["--a=1", "--b"]) == {"a": "1", "b": True}


def test_rules_apply_in_order(tmp_path: Path) -> None:
    file = tmp_path / "paper.yaml"
    file.write_text(PAPER)
    first, second, third = read_rows(file)
    common = {"dataset_name": "cifar10"}
    assert first.settings == {**common, "model": "resnet8", "plain": True, "num_train_epochs": 2, "rho": 0.1}
    assert second.settings == {**common, "model": "resnet18", "sharpness": "sam", "num_train_epochs": 3, "rho": 0.3}
    assert third.settings["rho"] == 9
    assert (read_row(file, 3), third.table, second.published) == (third, 2, {"accuracy": [91.0]})


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (SAM(), 2),
        (CRSAM(), 3),
        (GAM(), 4),
        (GAM(base=SAM()), 5),
        (AcceleratedGAM(), 4),
        (LPF(gamma=0.001, draws=8), 8),
        (Every(10, SAM()), 1.1),
    ],
)
def test_passes(method: Any, passes: float) -> None:
    assert passes_per_step(method) == pytest.approx(passes)


def test_equal_passes_give_sgd_twice_sams_epochs() -> None:
    recipes = {"sgd": {"plain": True}, "sam": {"sharpness": "sam"}, "crsam": {"sharpness": "crsam"}}
    equal = with_equal_passes({name: {**recipe, "num_train_epochs": 20} for name, recipe in recipes.items()})
    assert {name: recipe["num_train_epochs"] for name, recipe in equal.items()} == {"sgd": 60, "sam": 30, "crsam": 20}
    assert method_of(equal["sam"]) == SAM()
    assert method_of({"sharpness": "sam", **overrides(["--rho", "0.1"])}) == SAM(rho=0.1)  # text, from a command line


def test_equal_passes_where_steps_are_counted() -> None:
    """``max_steps`` is what the Trainer heeds."""
    given = {"max_steps": "300", "num_train_epochs": 20}
    equal = with_equal_passes({"sgd": {"plain": "true", **given}, "sam": {"sharpness": "sam", **given}})
    assert {name: recipe["max_steps"] for name, recipe in equal.items()} == {"sgd": 600, "sam": 300}
    unset = with_equal_passes({"sgd": {"plain": True, **given, "max_steps": -1}, "sam": {"num_train_epochs": 20}})
    assert {name: recipe["num_train_epochs"] for name, recipe in unset.items()} == {"sgd": 40, "sam": 20}


def test_text_from_the_command_line_is_read_as_the_scripts_read_it() -> None:
    eta = Axis("sharpness_args.eta", (0.1, 0.2))
    points = grid({"sharpness": "asam", "sharpness_args": '{"p": 2.0}'}, [eta])
    assert points["sharpness_args.eta=0.2"]["sharpness_args"] == {"p": 2.0, "eta": 0.2}
    for words, plain in (("false", False), ("no", False), ("0", False), ("true", True), ("", True)):
        settings = overrides(["--plain", *words.split()])
        assert is_plain(settings) == plain
        assert (method_of(settings) is None) == plain
        assert len(grid(settings, [eta])) == (1 if plain else 2)


def test_grid_and_choice() -> None:
    axes = [Axis.read(["rho", "0.1", "0.2"]), Axis.read(["sharpness_args.eta", "0", "0.01"])]
    points = grid({"sharpness": "asam", "sharpness_args": {"p": 2.0}}, axes)
    assert list(points)[:2] == ["rho=0.1,sharpness_args.eta=0", "rho=0.1,sharpness_args.eta=0.01"]
    assert points["rho=0.2,sharpness_args.eta=0.01"] == {
        "sharpness": "asam",
        "rho": 0.2,
        "sharpness_args": {"p": 2.0, "eta": 0.01},
    }
    assert list(grid({"plain": True}, axes)) == [""]


def test_the_best_point_is_the_one_in_the_metrics_direction_and_is_a_number() -> None:
    scores = {"nan": [float("nan"), 9.0], "a": [1.0, 3.0], "b": [2.5], "c": []}
    assert best(scores, Metric.of("accuracy")) == "b"
    assert best(scores, Metric.of("cross_entropy")) == "a"
    assert best(scores, Metric.of("wer", "smaller")) == "a"
    with pytest.raises(ValueError, match="A choice needs a run that succeeded"):
        best({"nan": [float("nan")]}, Metric.of("accuracy"))


def test_best_evaluation_in_the_metrics_direction() -> None:
    losses = [float("nan"), 0.5, 0.25, 1.0]
    history = [{"epoch": float(i), "cross_entropy": x, "accuracy": 0.1} for i, x in enumerate(losses)]
    results = {0: {"last": history[-1], "history": history, "seconds": 1.0, "passes_per_step": 1.0}}
    metric = Metric.of("cross_entropy")
    row = summary("sgd", results, 0, results, metric)
    assert (row.last, row.best, row.best_epoch) == ([1.0], [0.25], 2.0)  # as it is: only shares are in %
    assert "| last epoch, cross_entropy |" in markdown([row], metric)


SCRIPT = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given["--rho"] == "9":
    raise SystemExit("the run broke")
folder = pathlib.Path(given["--output_dir"])
calls = folder / "calls"
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
(folder / "results.json").write_text(json.dumps({"seed": given["--seed"], "resume": given["--resume_from_checkpoint"]}))
"""


def test_cells_run_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    cell = Cell("sam", {"rho": 0.1}, 3, tmp_path / "sam" / "seed3", script)
    assert cell.result() is None
    assert cell.run() == cell.result() == {"seed": "3", "resume": "true"}
    broken = Cell("sam", {"rho": 9}, 3, tmp_path / "broken", script)
    assert broken.run() is None
    assert broken.error() == "the run broke"


def test_what_lies_in_a_cells_folder_is_moved_aside_and_never_removed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    cell = Cell("sam", {"rho": 0.1}, 3, tmp_path / "sam" / "seed3", script)
    cell.run()
    (cell.folder / "notes.txt").write_text("mine")
    other = Cell("sam", {"rho": 0.2}, 3, cell.folder, script)
    assert other.result() is None  # made with other settings
    assert other.run() is not None
    assert (cell.folder / "calls").read_text() == "x"  # nothing of the earlier run was left
    assert (tmp_path / "sam" / "seed3.before1" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "sam" / "seed3.before1" / "calls").read_text() == "x"
    foreign = Cell("sgd", {"rho": 0.1}, 0, tmp_path / "foreign", script)
    foreign.folder.mkdir()
    (foreign.folder / "notes.txt").write_text("mine")
    assert foreign.run() is not None
    assert (tmp_path / "foreign.before1" / "notes.txt").read_text() == "mine"


def test_another_script_or_launcher_is_another_run(tmp_path: Path) -> None:
    script, second = tmp_path / "script.py", tmp_path / "second.py"
    for file in (script, second):
        file.write_text(SCRIPT)
    cell = Cell("sam", {"rho": 0.1}, 3, tmp_path / "sam" / "seed3", script)
    cell.run()
    assert Cell("sam", {"rho": 0.1}, 3, cell.folder, second).result() is None
    assert Cell("sam", {"rho": 0.1}, 3, cell.folder, script, (sys.executable, "-O")).result() is None
    assert cell.result() is not None


@pytest.mark.parametrize("name", ["settings.json", "results.json"])
def test_half_written_files_make_a_run_that_is_not_done(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    cell = Cell("sam", {"rho": 0.1}, 3, tmp_path / "sam" / "seed3", script)
    cell.run()
    (cell.folder / name).write_text('{"set')
    assert cell.result() is None
    assert cell.run() == cell.result() == {"seed": "3", "resume": "true"}


def test_figures_of_sweeps_over_what_is_no_number(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from hf_sharp.comparison.figures import save_sweep

    accuracy = Metric.of("accuracy")
    axis = Axis.read(["augmentation", "[basic]", "[basic, cutout]"])
    scores = {"sam": dict(zip(map(str, axis.values), ([90.0, 91.0], [92.0]), strict=True))}
    save_sweep(scores, "augmentation", accuracy, tmp_path / "a", held_out=True)
    assert "['basic', 'cutout']" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    save_sweep({"sam": {"0.05": [1.0], "0.2": [2.0]}}, "rho", accuracy, tmp_path / "b", held_out=False)
    drawn = (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "<!-- 0.05 -->" in drawn
    assert "<!-- 0.2 -->" in drawn


def run(last: float, best_: float, seconds: float) -> dict[str, Any]:
    history = [{"epoch": 1.0, "accuracy": best_}, {"epoch": 2.0, "accuracy": last}]
    return {"last": history[-1], "history": history, "seconds": seconds, "passes_per_step": 2.0}


def test_table_by_hand() -> None:
    first = {0: run(0.5, 0.6, 10.0), 1: run(0.7, 0.6, 20.0)}
    second = {0: run(0.8, 0.9, 30.0), 1: run(0.8, 0.9, 40.0)}
    accuracy = Metric.of("accuracy")
    rows = [
        summary("sgd", first, 0, first, accuracy),
        summary("sam", second, 1, first, accuracy),
        summary("gam", {}, 3, first, accuracy),
    ]
    assert markdown(rows, accuracy).split("\n") == [
        "| recipe | runs         | last epoch, %  | best epoch, % | best at | epochs | passes | time |",
        "| ------ | ------------ | -------------- | ------------- | ------- | ------ | ------ | ---- |",
        "| sgd    | 2            | 60.00 +- 14.14 | 65.00 +- 7.07 | 1.5     | 2      | 4.0    | 1.00 |",
        "| sam    | 2 (1 failed) | 80.00 +- 0.00  | 90.00 +- 0.00 | 1.0     | 2      | 4.0    | 2.50 |",
        "| gam    | 0 (3 failed) | -              | -             | -       | -      | -      | -    |",
    ]


def test_results_appear_whole(tmp_path: Path) -> None:
    found = provenance()
    assert found.keys() == {"versions", "commit", "device"}
    file = save_results(tmp_path / "run", found)
    assert json.loads(file.read_text(encoding="utf-8")) == found
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]
