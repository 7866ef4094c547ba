"""What each rank of the tests of the GradScaler runs: float16 autocast in a bare loop.

    torchrun --nproc-per-node 2 -m tests.workers.scaler KIND FILE

KIND is ddp or fsdp2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp import GradScaler
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_sharp import GSAM, SharpStep
from tests.problems import Perceptron, generic
from tests.reference import Problem, error, gsam
from tests.workers.loops import RANKS, piece, union

METHOD = GSAM(rho=0.05, alpha=0.4)
CASES = {"first": None, "pass 0": 0, "pass 1": 1, "later": None}
"""In which pass the loss is infinite."""


def bits(model: Any) -> list[Tensor]:
    """This rank's weights."""
    return [(p.to_local() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def flattened(tensors: Iterable[Tensor]) -> Tensor:
    """Whole tensors as one vector in float64."""
    return torch.cat([(x.full_tensor() if isinstance(x, DTensor) else x).detach().double().reshape(-1) for x in tensors])


def errors(logged: float, w: Tensor, direction: Tensor) -> dict[str, float]:
    """How far the norm in the logs and the direction are from those in float64 without a scale."""
    truth = Problem(Perceptron(), union([piece(0, 0, rank) for rank in range(RANKS)]))
    norm = float(truth.gradient(w)[1].norm())
    return {"direction": error(direction, gsam(truth, w, 0.05, 0.4)), "grad_norm": abs(logged - norm) / norm}


def main() -> None:
    """Step with finite losses, then with one that is infinite in the first or the second pass on one rank, then again with
    finite ones."""
    kind, file = sys.argv[1:]
    dist.init_process_group("gloo")
    model: Any = generic(Perceptron()).float()
    model = DistributedDataParallel(model) if kind == "ddp" else fully_shard(model)
    assert isinstance(model, DistributedDataParallel if kind == "ddp" else FSDPModule)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, METHOD, scaler=scaler)
    found: dict[str, Any] = {}
    for case, poisoned in CASES.items():
        count = 0

        def loss_of(batch: dict[str, Tensor]) -> Tensor:
            nonlocal count
            with torch.autocast("cpu", torch.float16):
                out = model(x=batch["x"].float())["logits"]
            loss = torch.nn.functional.cross_entropy(out.float(), batch["labels"])
            bad = count == poisoned and dist.get_rank() == 1  # noqa: B023
            count += 1
            return loss * float("inf") if bad else loss

        before, scale, w = bits(model), scaler.get_scale(), flattened(model.parameters())
        sharp(loss_of, piece(0, 0, dist.get_rank()), observe=poisoned is None)
        scaler.unscale_(optimizer)
        found[case] = {}
        if poisoned is None:
            direction = flattened(p.grad for p in model.parameters())
            found[case]["errors"] = errors(sharp.scalars()["sharpness/grad_norm"], w, direction)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert count == 2
        kept = all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))
        found[case].update(kept=kept, scale=scaler.get_scale() / scale)
    torch.save(found, f"{file}-{dist.get_rank()}")


if __name__ == "__main__":
    main()
