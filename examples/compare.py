"""Runs recipes beside each other, several seeds each, and writes one table.

    python examples/compare.py configs/cifar10/{sgd,sam,asam}.yaml --seeds 3
    python examples/compare.py configs/cifar10/{sgd,sam}.yaml --match passes
    python examples/compare.py configs/cifar10/{sam,asam}.yaml --sweep rho 0.05 0.1 0.2 0.5 1.0
    python examples/compare.py configs/cifar10/sam.yaml --sweep rho 0.05 0.1 0.2 --sweep weight_decay 0.0005 0.001
    python examples/compare.py configs/cifar10/{sgd,sam}.yaml --launcher "accelerate launch" -- --num_train_epochs 30

Runs that are done are not repeated, so the same command goes on where it was cut off; where a run's folder holds something
else, e.g. a run with other settings, that is moved aside. A sweep chooses its values on a
held-out tenth of the training data, and then trains with the chosen ones on all of it; a single value is taken as it is.
What follows ``--`` goes to all runs. Under ``--match passes`` the points of a sweep have the same number of passes, too.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_sharp.comparison.cells import Cell, with_equal_passes
from hf_sharp.comparison.figures import save_curves, save_speeds, save_sweep
from hf_sharp.comparison.metrics import Metric
from hf_sharp.comparison.recipes import overrides, read_recipe
from hf_sharp.comparison.results import provenance, save_json
from hf_sharp.comparison.sweeps import Axis, axes_of, best, grid, lines
from hf_sharp.comparison.tables import check_metric, markdown, summary

SCRIPT = Path(__file__).parent / "classification" / "train.py"

Runs = dict[str, dict[int, dict[str, Any]]]


def run_all(recipes: Mapping[str, Mapping[str, Any]], folder: Path, args: argparse.Namespace) -> Runs:
    """Recipe to seed to results, of the runs that succeeded."""
    cells = [
        Cell(name, recipe, seed, folder / name / f"seed{seed}", args.script, args.launcher)
        for seed in args.seeds
        for name, recipe in recipes.items()
    ]
    runs: Runs = {name: {} for name in recipes}
    with tqdm(cells, unit=" runs") as bar:
        for cell in bar:
            bar.set_postfix_str(f"{cell.name}, seed {cell.seed}")
            result = cell.result() or cell.run()
            if result is None:
                bar.write(f"{cell.name}, seed {cell.seed} failed: {cell.error()} (see {cell.folder / 'log.txt'})")
            else:
                check_metric(result, args.metric)
                runs[cell.name][cell.seed] = result
    return runs


def chosen(recipes: Mapping[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The recipes with the values of the sweep that are best on held-out training images."""
    axes = [Axis.read(words) for words in args.sweep]
    points = {name: grid(recipe, axes) for name, recipe in recipes.items()}
    if args.match == "passes":
        points = points_with_equal_passes(points)
    result = {}
    drawn: dict[tuple[str, str], dict[str, dict[str, Sequence[float]]]] = {}
    for name, own in points.items():
        if len(own) == 1:
            [result[name]] = own.values()
            continue
        held_out = {f"{name},{point}": {**settings, "holdout": 0.1} for point, settings in own.items()}
        runs = run_all(held_out, args.output_dir / "sweep", args)
        found = {p: [args.metric.shown(r["last"]) for r in runs[f"{name},{p}"].values()] for p in own}
        winner = best(found, args.metric)
        print(f"{name}: {winner} is best on the held-out images")
        result[name] = own[winner]
        used = axes_of(recipes[name], axes)
        if len(used) > 2:
            print(f"{name}: no figure, since it would have {len(used)} axes. Sweep at most two fields at once for one.")
            continue
        file = used[0].field if len(used) == 1 else f"{used[0].field}_{name}"
        drawn.setdefault((file, used[0].field), {}).update(lines(name, used, found))
    for (file, field), scores in drawn.items():
        save_sweep(scores, field, args.metric, args.output_dir / file, held_out=True)
    return result


def points_with_equal_passes(points: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The points of all recipes' sweeps, by recipe and point, each with as many passes as the longest of them all."""
    pairs = [(name, point) for name, own in points.items() for point in own]
    equal = with_equal_passes({f"{name},{point}" if point else name: points[name][point] for name, point in pairs})
    return {name: {p: equal[f"{name},{p}" if p else name] for p in own} for name, own in points.items()}


def arguments(line: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    words = list(line)
    extra: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, extra = words[:cut], words[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path, help="YAML files of settings; the first one is the measure of time")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (%(default)s)")
    parser.add_argument("--match", choices=["epochs", "passes"], default="epochs", help="what is equal (%(default)s)")
    parser.add_argument("--sweep", nargs="+", action="append", default=[], metavar="WORD", help="a field and its values")
    parser.add_argument("--metric", default="accuracy", help="what the table is about (%(default)s)")
    parser.add_argument("--better", choices=["larger", "smaller"], help="which way a metric of another name is better")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare"), help="where the results go (%(default)s)")
    parser.add_argument("--script", type=Path, default=SCRIPT, help="the training script")
    parser.add_argument("--launcher", default="", help="what runs it, e.g. 'accelerate launch' (this Python)")
    args = parser.parse_args(words)
    try:
        args.metric = Metric.of(args.metric, args.better)
    except ValueError as error:
        parser.error(str(error))
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}. Use e.g. --seeds 3.")
    if not args.script.is_file():
        parser.error(f"--script must be an existing file, got {args.script}. Use e.g. --script train.py.")
    length = next((words[0] for words in args.sweep if words[0] in ("num_train_epochs", "max_steps")), None)
    if args.match == "passes" and length:
        parser.error(f"--match passes sets the length of the runs, got --sweep {length}. Use --match epochs.")
    args.seeds, args.extra = range(args.seeds), overrides(extra)
    args.launcher = tuple(shlex.split(args.launcher))
    if args.launcher and shutil.which(args.launcher[0]) is None:
        parser.error(f"--launcher must begin with a program, got {args.launcher[0]!r}. Use e.g. 'accelerate launch'.")
    return args


def main(line: Sequence[str] | None = None) -> None:
    """Runs what is not done yet, and reports."""
    args = arguments(sys.argv[1:] if line is None else line)
    recipes = {file.stem: {**read_recipe(file), **args.extra} for file in args.recipes}
    if len(recipes) < len(args.recipes):
        raise ValueError(f"Recipes must have different names, got {[file.stem for file in args.recipes]}. Rename one.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.sweep:
        recipes = chosen(recipes, args)
    elif args.match == "passes":
        recipes = with_equal_passes(recipes)
    runs = run_all(recipes, args.output_dir, args)
    first = next(iter(runs.values()))
    rows = [summary(name, found, len(args.seeds) - len(found), first, args.metric) for name, found in runs.items()]
    table = markdown(rows, args.metric)
    save_speeds(rows, args.metric, args.output_dir / "speed")
    save_curves(runs, args.metric, args.output_dir / "epochs")
    report = {"recipes": recipes, "rows": [asdict(row) for row in rows], **provenance()}
    save_json(args.output_dir / "comparison.json", report)
    (args.output_dir / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\nTable, figures and all results: {args.output_dir}")


if __name__ == "__main__":
    main()
