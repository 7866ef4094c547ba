"""What each rank of the tests of the GradScaler runs: float16 autocast in a bare loop.

    torchrun --nproc-per-node 2 -m tests.workers.scaler KIND FILE

KIND is ddp or fsdp2.
"""

from __future__ import annotations

import os
import sys
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
from tests.workers.loops import piece


def bits(model: Any) -> list[Tensor]:
    """This rank's weights."""
    return [(p.to_local() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def main() -> None:
    """Step with finite losses, then with one that is infinite in the first or the second pass on one rank."""
    kind, file = sys.argv[1:]
    dist.init_process_group("gloo")
    model: Any = generic(Perceptron()).float()
    model = DistributedDataParallel(model) if kind == "ddp" else fully_shard(model)
    assert isinstance(model, DistributedDataParallel if kind == "ddp" else FSDPModule)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, GSAM(rho=0.05), scaler=scaler)
    found: dict[str, Any] = {}
    for poisoned in (None, 0, 1):
        count = 0

        def loss_of(batch: dict[str, Tensor]) -> Tensor:
            nonlocal count
            with torch.autocast("cpu", torch.float16):
                out = model(x=batch["x"].float())["logits"]
            loss = torch.nn.functional.cross_entropy(out.float(), batch["labels"])
            bad = count == poisoned and dist.get_rank() == 1  # noqa: B023
            count += 1
            return loss * float("inf") if bad else loss

        before, scale = bits(model), scaler.get_scale()
        sharp(loss_of, piece(0, 0, dist.get_rank()))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert count == 2
        kept = all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))
        found[str(poisoned)] = {"kept": kept, "scale": scaler.get_scale() / scale}
    torch.save(found, f"{file}-{dist.get_rank()}")
    os._exit(0)  # gloo's threads can abort a process whose interpreter closes


if __name__ == "__main__":
    main()
