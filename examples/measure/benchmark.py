"""Time of Hessian traces and eigenvalues beside curvlinops' and PyHessian's way, on the same model, batch and iterations.

    pip install -e '.[benchmark,measure,vision]'
    python examples/measure/benchmark.py --rounds 7

The sides take turns, in an order that changes from round to round; the table has the median of the rounds' ratios with
quartiles, and below 1 this package is the faster one. Time is that of the CPU, which other work on the machine disturbs
less. curvlinops stands with its own Hessian operator, PyHessian with its own products and power iteration.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from curvlinops import HessianLinearOperator, hutchinson_trace
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from hf_sharp.measure import Surface, TopEigenvalues, Trace, loss_surface
from hf_sharp.measure.records import write_json
from hf_sharp.measure.result import versions
from hf_sharp.vision.models import build

Batch = dict[str, Tensor]
Side = Callable[[], int]
"""Runs one estimate and returns the number of Hessian products that it took."""
VIT = {"image_size": 32, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}
LABELS = [str(i) for i in range(10)]
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet8": lambda: build("resnet8", LABELS),
    "vit": lambda: build("vit", LABELS, VIT | {"intermediate_size": 192}),
}


class Logits(nn.Module):
    """A transformers model as the other two want it: from pixels to logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        return self.model(pixel_values=pixels).logits


def sides(model: PreTrainedModel, data: list[Batch], draws: int, f: Surface) -> dict[str, dict[str, Side]]:
    """By estimator: this package's way and the others'."""
    from pyhessian import hessian

    logits, loss = Logits(model), nn.CrossEntropyLoss()
    pairs = [(batch["pixel_values"], batch["labels"]) for batch in data]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def operator() -> HessianLinearOperator:
        return HessianLinearOperator(logits, loss, parameters, pairs, check_deterministic=False)

    def their_trace() -> int:
        for _ in range(draws):
            hutchinson_trace(operator(), 1)
        return draws

    def their_eigenvalue() -> int:
        counted: list[int] = []
        a = operator().to_scipy(np.float32)
        start = np.random.default_rng(0).standard_normal(a.shape[0]).astype(np.float32)
        eigsh(_Counted(a, counted), k=1, which="LA", v0=start, tol=1e-3, return_eigenvectors=False)
        return len(counted)

    def power(kind: str) -> int:
        given: dict[str, Any] = {"data": pairs[0]} if len(pairs) == 1 else {"dataloader": pairs}
        theirs = hessian(logits, loss, cuda=False, **given)
        products = draws
        if kind == "trace":  # it stops early where the sum of its draws is below 0
            products = len(theirs.trace(maxIter=draws, tol=0))
        else:
            theirs.eigenvalues(maxIter=draws, tol=0)
        logits.zero_grad()
        return products

    def ours(quantity: Trace | TopEigenvalues) -> Side:
        return lambda: quantity.measure(f).about["passes"]["hessian"]

    return {
        "trace": {
            "this": ours(Trace(draws=draws)),
            "curvlinops": their_trace,
            "pyhessian": lambda: power("trace"),
        },
        "eigenvalue": {
            "this": ours(TopEigenvalues(tolerance=1e-3)),
            "curvlinops": their_eigenvalue,
            "pyhessian": lambda: power("eigenvalue"),
        },
    }


class _Counted:
    """A SciPy operator that notes its products."""

    def __new__(cls, a: Any, counted: list[int]) -> Any:
        from scipy.sparse.linalg import LinearOperator

        def times(x: Any) -> Any:
            counted.append(1)
            return a.matvec(x)

        return LinearOperator(a.shape, matvec=times, dtype=a.dtype)


def rounds(all_sides: dict[str, Side], count: int) -> Iterator[dict[str, float]]:
    """CPU seconds per Hessian product of each side, once per round and in turn; the first round is not counted."""
    order = list(all_sides)
    for i in range(count + 1):
        random.Random(i).shuffle(order)
        times = {}
        for name in order:
            start = time.process_time()
            products = all_sides[name]()
            times[name] = (time.process_time() - start) / products
        if i:
            yield {name: times[name] for name in all_sides}


def compare(kind: str, batches: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The ratios of one model on one batch or several."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    shape = (args.batch_size, 3, 32, 32)
    data = [{"pixel_values": torch.randn(shape), "labels": torch.randint(10, (args.batch_size,))} for _ in range(batches)]
    rows = []
    with loss_surface(model, data, check=False) as f, sdpa_kernel(SDPBackend.MATH):
        for estimator, each in sides(model, data, args.draws, f).items():
            found = list(rounds(each, args.rounds))
            for other in ("curvlinops", "pyhessian"):
                ratios = [times["this"] / times[other] for times in found]
                low, _, high = quantiles(ratios, n=4)
                row = {"model": kind, "batches": batches, "estimator": estimator, "beside": other}
                rows.append(row | {"ratio": median(ratios), "low": low, "high": high, "rounds": found})
                line = f"| {kind} | {batches} | {estimator} | {other} | {median(ratios):.2f} [{low:.2f}, {high:.2f}] |"
                print(line, flush=True)
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Prints the table and writes all times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2], help="how many batches the loss is over (1 2)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--draws", type=int, default=10, help="draws of the trace, steps of the power iteration")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--file", type=Path, default=Path("hessian_time.json"))
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    print("| model | batches | estimator | beside | time per product, ratio |\n| --- | ---: | --- | --- | --- |")
    rows = [row for kind in args.models for batches in args.batches for row in compare(kind, batches, args)]
    write_json(args.file, {"rows": rows, "settings": vars(args) | {"file": str(args.file)}, "versions": versions()})


if __name__ == "__main__":
    main()
