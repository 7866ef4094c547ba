"""What each rank of the DDP tests runs: all cases in one launch, results on rank 0 in one file.

    torchrun --nproc-per-node 2 -m tests.workers.ddp FILE

Run without torchrun it computes the same cases in one process on the union of the ranks' data.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from hf_sharp import GAM, AbstractMethod, SharpStep
from tests.problems import EXAMPLES, Perceptron, batch_for, generic
from tests.reference import flat

RANKS = 2
STEPS = 10
NOISY = ("lpf", "rgsam", "rsam")
METHODS: dict[str, AbstractMethod] = {**EXAMPLES, "gam_exact": GAM(rho=0.2, alpha=0.5, hvp="exact")}


def piece(step: int, micro: int, rank: int) -> dict[str, Tensor]:
    """The micro-batch of one rank."""
    return batch_for(Perceptron(), seed=1000 * step + 10 * micro + rank)


def union(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several micro-batches as one."""
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def micro_batches(step: int, accumulation: int, perturb_over: str, rank: int | None) -> list[dict[str, Tensor]]:
    """Those of one optimizer step; without a rank those of all ranks, as one process must see them."""
    if rank is not None:
        return [piece(step, micro, rank) for micro in range(accumulation)]
    if perturb_over == "device":
        return [piece(step, micro, r) for micro, r in itertools.product(range(accumulation), range(RANKS))]
    return [union([piece(step, micro, r) for r in range(RANKS)]) for micro in range(accumulation)]


def loss_of(model: nn.Module, micro_batches: int, batch: dict[str, Tensor]) -> Tensor:
    """The loss of one of several micro-batches."""
    return model(**batch)["loss"] / micro_batches


def train(method: AbstractMethod, accumulation: int, clip: float | None, perturb_over: str, **ddp: Any) -> Tensor:
    """The flat weights after ten steps of a bare loop."""
    rank = dist.get_rank() if dist.is_initialized() else None
    model: nn.Module = generic(Perceptron())
    core = model
    if rank is not None:
        model = DistributedDataParallel(model, **ddp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp = SharpStep(model, optimizer, method, steps=STEPS, perturb_over=perturb_over)
    for step in range(STEPS):
        pieces = micro_batches(step, accumulation, perturb_over, rank)
        n = len(pieces)
        for i, batch in enumerate(pieces):
            sharp(partial(loss_of, model, n), batch, last=i == n - 1, micro_batches=n)
        if clip is not None:
            clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return flat(core)


def cases() -> dict[str, Tensor]:
    """The weights that each case ends with."""
    out = {}
    for name, accumulation, clip in itertools.product(METHODS, (1, 4), (None, 0.5)):
        out[f"batch {name} {accumulation} {clip}"] = train(METHODS[name], accumulation, clip, "batch")
    for name, over in itertools.product(METHODS, ("micro_batch", "device")):
        if not (name in NOISY and over == "device"):  # there each rank draws its own
            out[f"{over} {name}"] = train(METHODS[name], 2, None, over)
    for option in ("gradient_as_bucket_view", "static_graph", "find_unused_parameters"):
        options = {option: True} if dist.is_initialized() else {}
        # PyTorch's own static_graph fails under no_sync in the first step
        out[f"batch {option}"] = train(METHODS["crsam"], 1 if option == "static_graph" else 2, None, "batch", **options)
        if option != "static_graph":
            out[f"device {option}"] = train(METHODS["sam"], 2, None, "device", **options)
    return out


def collectives(method: AbstractMethod, perturb_over: str) -> dict[str, int]:
    """How often each reduction of more than one number ran in one optimizer step of two micro-batches."""
    model = DistributedDataParallel(generic(Perceptron()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, method, steps=1, perturb_over=perturb_over)
    sent: Counter[str] = Counter()

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP wants no annotation or the evaluated one
        sent["buckets"] += 1
        work = dist.all_reduce(bucket.buffer().div_(RANKS), async_op=True).get_future()
        return work.then(lambda future: future.value()[0])

    model.register_comm_hook(None, hook)
    plain = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.numel() > 1 and not kwargs.get("async_op"):
            sent["direct"] += 1
        return plain(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        for micro in range(2):
            sharp(lambda b: model(**b)["loss"] / 2, piece(0, micro, dist.get_rank()), last=micro == 1, micro_batches=2)
    finally:
        dist.all_reduce = plain
    return dict(sent)


def main() -> None:
    """Run everything, make sure that DDP is in force and that the ranks agree, and let rank 0 write the results."""
    torch.set_default_dtype(torch.float64)
    if "RANK" not in os.environ:
        torch.save({"weights": cases()}, sys.argv[1])
        return
    dist.init_process_group("gloo")
    assert dist.get_world_size() == RANKS
    weights = cases()
    for name, w in weights.items():
        other = w.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(other, w), f"the ranks ended with different weights: {name}"
    counts = {
        f"{over} {name}": collectives(METHODS[name], over) for name in METHODS for over in ("batch", "micro_batch", "device")
    }
    if dist.get_rank() == 0:
        torch.save({"weights": weights, "collectives": counts}, sys.argv[1])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
