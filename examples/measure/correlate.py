"""How well sharpness ranks models by their generalization gap: a grid of small networks on scikit-learn's digits, or yours.

    python examples/measure/correlate.py
    python examples/measure/correlate.py --runs runs.json

A file of runs holds a JSON list with ``settings``, ``gap`` and ``measures`` for each, e.g.
``{"settings": {"lr": 0.1, "seed": 0}, "gap": 0.3, "measures": {"trace": 812.0}}``. Without one:

Trains a perceptron with every combination of batch size, learning rate, weight decay and dropout, measures sharpness and
adaptive sharpness of each (p = 2 and infinity) and the gap between test and training loss, and prints Kendall's tau and the
granulated coefficients. A few minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from hf_sharp.measure import AbstractQuantity, Found, Sharpness, loss_surface
from hf_sharp.measure import figures as draw
from hf_sharp.measure.correlation import Run, rank_correlation, read_runs
from hf_sharp.measure.records import write_json
from hf_sharp.measure.result import versions

GRID: dict[str, list[float]] = {
    "batch_size": [16, 64],
    "learning_rate": [0.2, 0.05],
    "weight_decay": [0.0, 1e-3],
    "dropout": [0.0, 0.3],
}
MEASURES: dict[str, AbstractQuantity] = {
    "sharpness, p = 2": Sharpness(rho=0.05, steps=5),
    "adaptive sharpness, p = 2": Sharpness(rho=0.5, adaptive=True, steps=5),
    "sharpness, p = inf": Sharpness(rho=0.0005, p=math.inf, steps=5),
    "adaptive sharpness, p = inf": Sharpness(rho=0.005, p=math.inf, adaptive=True, steps=5),
}


class Perceptron(nn.Module):
    """Two hidden layers with ReLU and dropout, on images of 64 pixels."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 128)),
            *(nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10)),
        )

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss as transformers models return it."""
        return {"loss": cross_entropy(self.layers(x), labels)}


def digits() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and test images from 0 to 1, shape (number, 64), and their labels."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    train, test = train_test_split(range(len(y)), test_size=0.5, random_state=0, stratify=data.target)
    return {"x": x[train], "labels": y[train]}, {"x": x[test], "labels": y[test]}


def train(settings: dict[str, float], data: dict[str, Tensor], steps: int) -> Perceptron:
    """A perceptron after so many steps of SGD; all runs start from the same weights."""
    torch.manual_seed(0)
    model = Perceptron(settings["dropout"])
    decay, lr = settings["weight_decay"], settings["learning_rate"]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    for _ in range(steps):
        rows = torch.randint(len(data["labels"]), (int(settings["batch_size"]),))
        optimizer.zero_grad()
        model(data["x"][rows], data["labels"][rows])["loss"].backward()
        optimizer.step()
    return model.eval()


def measured(settings: dict[str, float], steps: int) -> Run:
    """One run of the grid: its gap between test and training loss, and its sharpness on the training set."""
    training, test = digits()
    model = train(settings, training, steps)
    with loss_surface(model, [training]) as f:
        here = f.loss()
        found = {name: quantity.measure(f).values["sharpness"] for name, quantity in MEASURES.items()}
    with loss_surface(model, [test]) as f:
        gap = f.loss() - here
    return Run(settings, gap, found)


def trained(steps: int) -> list[Run]:
    """All runs of the grid."""
    torch.set_num_threads(1)
    cells = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    return [measured(settings, steps) for settings in tqdm(cells)]


def main(given: Sequence[str] | None = None) -> None:
    """Trains the grid, prints the table and writes runs and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each run (%(default)s)")
    parser.add_argument("--runs", type=Path, help="a JSON file of your own runs, instead of training any")
    parser.add_argument("--hyperparameters", nargs="+", help="which to score; the others are held fixed (all)")
    parser.add_argument("--output_dir", type=Path, default=Path("sharpness"))
    args = parser.parse_args(given)
    runs = trained(args.steps) if args.runs is None else read_runs(args.runs)
    found: dict[str, Found] = {name: rank_correlation(runs, name, args.hyperparameters) for name in runs[0].measures}
    print(table(found))
    content: dict[str, Any] = {
        "runs": [asdict(run) for run in runs],
        "correlation": {name: result.values for name, result in found.items()},
        "settings": {"steps": args.steps, "grid": GRID} if args.runs is None else {"runs": str(args.runs)},
        "versions": versions(),
    }
    write_json(args.output_dir / "correlation.json", content)
    draw.save(draw.correlation(found), args.output_dir / "correlation")


def table(found: dict[str, Found]) -> str:
    """One row per coefficient, one column per measure."""
    lines = ["| | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for name in next(iter(found.values())).values:
        lines.append(f"| {name} | " + " | ".join(f"{result.values[name]:.3f}" for result in found.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
