"""What one optimizer step costs, against the plain Trainer and against SAM from pytorch_optimizer.

A plain and a sharp Trainer with the same model live in a process each, since what an allocator does depends on what else
lives there. Both are prepared by their own ``train()``, which takes one step, and then go on in turns, one optimizer step
each on the same batch, while the other one sleeps. Who goes first alternates, so that drift hits both alike. A step is what
the Trainer's loop does from ``training_step`` to ``zero_grad``; loading data and logging are left out, since they are the
same. Per pair of steps::

    ratio  = sharp / plain
    bound  = n x plain forward-backward + the rest of the plain step (clipping, optimizer, scheduler, zero_grad)
    excess = sharp / bound - 1

n is the number of passes that the sharp step made, counted in the Trainer. The table has medians over the pairs and, in
brackets, the quartiles. ``allowed`` is ``bound / plain`` plus the allowance: 2 %, and 5 % below batch 16. SAM, ASAM and
GSAM are judged by it; other methods are only reported, at the smallest batch unless they are named. ``faults`` are page
faults per step, sharp / plain: on CPU, memory that the allocator has given back costs time when it is touched anew. How
much that is differs between starts of one program by more than the quartiles in one start say; ``--starts 5`` takes more.

The second table is SAM in a loop without a Trainer: SharpStep beside ``pytorch_optimizer.SAM``, both with AdamW.

    python examples/benchmarks/step_time.py
    python examples/benchmarks/step_time.py --models resnet18 --batches 4 --methods sam crsam --steps 20
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loops import PLAIN_LOOPS, Step
from machine import VERDICT, machine
from settings import method
from subjects import MODELS
from turns import alternate, served

from hf_sharp import METHODS

JUDGED = ("sam", "asam", "gsam")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles, the median in the middle."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def trainer_row(name: str, size: int, steps: Sequence[tuple[Step, Step]]) -> dict[str, Any]:
    """One row of the first table, from pairs of a sharp and a plain step."""
    bounds = [ours.passes * base.forward_backward + base.rest for ours, base in steps]
    allowance = 0.02 if size >= 16 else 0.05
    allowed = statistics.median(bound / base.seconds for bound, (_, base) in zip(bounds, steps, strict=True))
    excess = quartiles([ours.seconds / bound - 1 for bound, (ours, _) in zip(bounds, steps, strict=True)])
    return {
        "method": name,
        "setting": repr(method(name)),
        "passes": statistics.mean(ours.passes for ours, _ in steps),
        "plain_forward_backward": statistics.median(base.forward_backward for _, base in steps),
        "plain_rest": statistics.median(base.rest for _, base in steps),
        "ratio": quartiles([ours.seconds / base.seconds for ours, base in steps]),
        "allowed": allowed * (1 + allowance),
        "excess": excess,
        "within": excess[1] <= allowance if name in JUDGED else None,
        "faults": [statistics.median(side) for side in zip(*((a.faults, b.faults) for a, b in steps), strict=True)],
        "steps": [(asdict(ours), asdict(base)) for ours, base in steps],
    }


def reference_row(steps: Sequence[tuple[Step, Step]]) -> dict[str, Any]:
    """One row of the second table, from pairs of a step by hf_sharp and one by pytorch_optimizer."""
    ratio = quartiles([ours.seconds / theirs.seconds for ours, theirs in steps])
    return {
        "ratio": ratio,
        "within": ratio[1] <= 1.01,
        "faults": [statistics.median(side) for side in zip(*((a.faults, b.faults) for a, b in steps), strict=True)],
        "steps": [(asdict(ours), asdict(theirs)) for ours, theirs in steps],
    }


def trainer_line(row: dict[str, Any]) -> str:
    """A row of the first table, as text."""
    (low, ratio, high), (least, excess, most) = row["ratio"], (100 * x for x in row["excess"])
    plain = f"{1e3 * row['plain_forward_backward']:8.1f} {1e3 * row['plain_rest']:8.1f}"
    return (
        f"{row['model']:9} {row['batch']:5} {row['method']:15} {row['passes']:6.2f} {plain} "
        f"{ratio:6.3f} [{low:.3f}, {high:.3f}] {row['allowed']:7.3f} {excess:+6.1f} [{least:+.1f}, {most:+.1f}] "
        f"{row['faults'][0]:7.0f} / {row['faults'][1]:<7.0f} {VERDICT[row['within']]}"
    )


def reference_line(row: dict[str, Any]) -> str:
    """A row of the second table, as text."""
    low, ratio, high = row["ratio"]
    faults = f"{row['faults'][0]:7.0f} / {row['faults'][1]:<7.0f}"
    return (
        f"{row['model']:9} {row['batch']:5} {ratio:7.3f} [{low:.3f}, {high:.3f}]    1.010 {faults} {VERDICT[row['within']]}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 4], help="samples per step")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="default: all, those not judged at the smallest batch")
    parser.add_argument(
        "--steps", type=int, default=5, help="pairs per row and start; four times as many where judged below batch 16"
    )
    parser.add_argument("--starts", type=int, default=1, help="how often the two processes of a row are started anew")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on CPU")
    parser.add_argument("--output", type=Path, default=Path("step_time.json"), help="where every step goes")
    return parser.parse_args()


def measured(
    ours: str, theirs: str, model: str, size: int, pairs: int, options: argparse.Namespace
) -> list[tuple[Step, Step]]:
    """Pairs of steps from as many pairs of processes as there shall be starts; see `serve` for the names."""
    steps = []
    for _ in range(options.starts):
        what = (model, size, pairs + 1, options.threads)
        with served(ours, *what) as our_step, served(theirs, *what) as their_step:
            steps += alternate(our_step, their_step, pairs)
    return steps


def trainer_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The first table, row by row."""
    for model, size in itertools.product(options.models, options.batches):
        names = options.methods
        if names is None:
            others = [name for name in METHODS if name not in JUDGED]
            names = [*JUDGED, *(others if size == min(options.batches) else [])]
        for name in names:
            pairs = options.steps * (4 if size < 16 and name in JUDGED else 1)
            steps = measured(name, "Trainer", model, size, pairs, options)
            yield {"model": model, "batch": size, **trainer_row(name, size, steps)}


def reference_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The second table, row by row."""
    for model, size in itertools.product(options.models, options.batches):
        steps = measured(*PLAIN_LOOPS, model, size, options.steps * (4 if size < 16 else 1), options)
        yield {"model": model, "batch": size, **reference_row(steps)}


def main() -> None:
    """Measure, print the two tables, and write everything down."""
    options = parse()
    result: dict[str, Any] = {
        "machine": {**machine("pytorch_optimizer"), "threads": options.threads},
        "trainer": [],
        "reference": [],
    }
    print(json.dumps(result["machine"]))
    print(f"model     batch method          passes  fb (ms) rest(ms)  {'ratio':22} allowed  {'excess, %':22}  faults")
    for row in trainer_rows(options):
        print(trainer_line(row), flush=True)
        result["trainer"].append(row)
    print("\nSAM in a plain loop: hf_sharp / pytorch_optimizer\nmodel     batch   ratio                allowed  faults")
    for row in reference_rows(options):
        print(reference_line(row), flush=True)
        result["reference"].append(row)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Every step is in {options.output}.")


if __name__ == "__main__":
    main()
