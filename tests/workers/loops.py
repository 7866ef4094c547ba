"""What each rank of the backends' tests runs in bare loops: all cases in one launch, results on rank 0 in one file.

    torchrun --nproc-per-node 2 -m tests.workers.loops KIND FILE [METHOD ...]

KIND is ddp, fsdp2, hsdp (on four ranks), zero0, zero1, zero2 or zero3, the last three also with _offload behind them, zero1
and zero2 with _round_robin, and all of DeepSpeed's with _sequence. Without torchrun, as ``alone``, it computes the same
cases in one process on the union of the data of UNION_OF ranks; as ``alone32`` those of CR-SAM in float32. With names of
methods it runs fewer cases, of these methods only.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Optimizer

from hf_sharp import GAM, AbstractMethod, SharpStep
from hf_sharp.backends.replicated import Replicated
from hf_sharp.leaving import leave
from tests.problems import EXAMPLES, Perceptron, batch_for, generic
from tests.reference import flat
from tests.workers.engines import engine, full_weights

RANKS = int(os.environ.get("WORLD_SIZE", os.environ.get("UNION_OF", "2")))
STEPS = 10
EXACT = {"gam_exact": GAM(rho=0.2, alpha=0.5, hvp="exact")}


def methods(kind: str) -> dict[str, AbstractMethod]:
    """One setting of every method that the kind can run."""
    if kind == "alone32":
        return {"crsam": EXAMPLES["crsam"]}
    return EXAMPLES if kind in ("fsdp2", "hsdp") or kind.startswith("zero3") else {**EXAMPLES, **EXACT}


def localities(kind: str) -> tuple[str, ...]:
    """The values of perturb_over beside "batch"."""
    together = kind in ("fsdp2", "hsdp") or kind.startswith("zero3") or kind.endswith("sequence")
    return ("micro_batch",) if together else ("micro_batch", "device")


EVERY: list[tuple[int, float | None]] = [(1, None), (1, 0.5), (4, None), (4, 0.5)]
"""Values of accumulation and clipping."""
FEW = [EVERY[0], EVERY[-1]]


def settings(kind: str) -> list[tuple[int, float | None]]:
    """Those that a kind runs: two for ZeRO-0, which shares its steps with the other stages."""
    return FEW if kind == "zero0" else EVERY


def in_float32(kind: str) -> bool:
    """Whether a kind trains in float32 instead of float64."""
    return kind.startswith("zero") or kind == "alone32"


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


@dataclass
class Setup:
    """A model as a loop calls it, and what steps it."""

    kind: str
    model: nn.Module
    optimizer: Optimizer
    accelerator: Accelerator | None

    def weights(self) -> Tensor:
        """The whole trainable weights, the same on all ranks, in the order of the unwrapped model."""
        if self.accelerator is not None:
            return full_weights(self.model)
        core = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in core.parameters()]
        return torch.cat([p.detach().reshape(-1) for p in whole]).double() if self.kind in ("fsdp2", "hsdp") else flat(core)

    def close(self, clip: float | None) -> None:
        """Clip, step and clear, as a loop does; a DeepSpeed engine did it inside the backward."""
        if self.accelerator is None:
            if clip is not None:
                clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad()


def setup(kind: str, accumulation: int, clip: float | None, **ddp: Any) -> Setup:
    """The small model under one kind of training, after looking what is in force."""
    model: nn.Module = generic(Perceptron())
    if in_float32(kind):
        model.float()
    if kind.startswith("zero"):
        wrapped, optimizer, accelerator = engine(kind, model, accumulation, clip)
        assert wrapped.zero_optimization_stage() == int(kind[4])
        assert wrapped.zero_use_cpu_optimizer() == kind.endswith("offload")
        assert wrapped.zero_round_robin_gradients() == ("round_robin" in kind)
        assert wrapped.sequence_parallel_size == (RANKS if kind.endswith("sequence") else 1)
        return Setup(kind, wrapped, optimizer, accelerator)
    if kind == "ddp":
        model = DistributedDataParallel(model, **ddp)
    elif kind in ("fsdp2", "hsdp"):
        core: Any = model
        mesh = (
            init_device_mesh("cpu", (2, RANKS // 2), mesh_dim_names=("replicate", "shard"))
            if kind == "hsdp"
            else init_device_mesh("cpu", (RANKS,))
        )
        fully_shard(core.inner, mesh=mesh)
        fully_shard(core, mesh=mesh)
        assert core.outer.weight.device_mesh.ndim == (2 if kind == "hsdp" else 1)
        assert all(isinstance(p, DTensor) for p in core.parameters())
    return Setup(kind, model, SGD(model.parameters(), lr=0.1, momentum=0.9), None)


def loss_of(model: nn.Module, micro_batches: int, batch: dict[str, Tensor]) -> Tensor:
    """The loss of one of several micro-batches."""
    return model(**batch)["loss"] / micro_batches


def as_the_model(kind: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch in the model's precision."""
    return {k: x.float() if in_float32(kind) and x.is_floating_point() else x for k, x in batch.items()}


def drawing_as(rank: int | None) -> AbstractContextManager[Any]:
    """Let one process draw the noise of one of the ranks under "device", where each draws its own."""
    return nullcontext() if rank is None else patch.object(Replicated, "rank", rank)


def train(kind: str, method: AbstractMethod, accumulation: int, clip: float | None, over: str, **ddp: Any) -> Tensor:
    """The whole weights after ten steps of a bare loop."""
    rank = dist.get_rank() if dist.is_initialized() else None
    run = setup(kind, accumulation, clip, **ddp)
    sharp = SharpStep(run.model, run.optimizer, method, accelerator=run.accelerator, steps=STEPS, perturb_over=over)
    for step in range(STEPS):
        pieces = micro_batches(step, accumulation, over, rank)
        n = len(pieces)
        for i, batch in enumerate(pieces):
            if run.accelerator is not None:
                run.accelerator.gradient_state._set_sync_gradients(i == n - 1)
            # DeepSpeed divides by itself, but sums over ranks that share their samples, except in ZeRO-3
            summed = kind.endswith("sequence") and kind != "zero3_sequence"
            share = n if run.accelerator is None else RANKS if summed else 1
            with drawing_as(i % RANKS if over == "device" and rank is None else None):
                sharp(partial(loss_of, run.model, share), as_the_model(kind, batch), last=i == n - 1, micro_batches=n)
        run.close(clip)
    return run.weights()


def grid(kind: str, some: dict[str, AbstractMethod], pairs: list[tuple[int, float | None]]) -> dict[str, Tensor]:
    """The weights of some methods with pairs of accumulation and clipping, and with each perturb_over."""
    out = {}
    for name, (accumulation, clip) in itertools.product(some, pairs):
        out[f"batch {name} {accumulation} {clip}"] = train(kind, some[name], accumulation, clip, "batch")
    for name, over in itertools.product(some, localities(kind)):
        out[f"{over} {name}"] = train(kind, some[name], 2, None, over)
    return out


def cases(kind: str) -> dict[str, Tensor]:
    """The weights that each case ends with."""
    some = methods(kind)
    out = grid(kind, some, settings(kind))
    if "sam" in some:  # on the data of the two above
        out["batch sam"] = train(kind, some["sam"], 2, None, "batch")
    for option in ("gradient_as_bucket_view", "static_graph", "find_unused_parameters") if kind in ("alone", "ddp") else ():
        options = {option: True} if kind == "ddp" else {}
        out[f"batch {option}"] = train(kind, some["crsam"], 2, None, "batch", **options)
        out[f"batch exact {option}"] = train(kind, some["gam_exact"], 2, None, "batch", **options)
        out[f"device {option}"] = train(kind, some["sam"], 2, None, "device", **options)
    return out


def few_cases(kind: str, names: list[str]) -> dict[str, Tensor]:
    """The weights of some methods after plain and after accumulated and clipped steps."""
    return grid(kind, {name: methods(kind)[name] for name in names}, FEW)


def refusal(kind: str) -> str:
    """What is said of a perturbation of each rank's own."""
    try:
        train(kind, EXAMPLES["sam"], 1, None, "device")
    except ValueError as error:
        return str(error)
    return ""


def collectives(method: AbstractMethod, over: str) -> dict[str, int]:
    """How often each reduction of more than one number ran under DDP in one optimizer step of two micro-batches."""
    model = DistributedDataParallel(generic(Perceptron()))
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), method, steps=1, perturb_over=over)
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


def averages() -> list[Tensor | None]:
    """What the average over the ranks makes of gradients on both ranks, on the second one only, and on none, in two
    precisions and in pieces of at most 50 bytes."""
    model = nn.ParameterList([nn.Parameter(torch.ones(4, dtype=t)) for t in (torch.float64, torch.float32) * 3])
    backend = Replicated(DistributedDataParallel(model, find_unused_parameters=True), local=True)
    rank = dist.get_rank()
    shares = [1.0 + rank, 1.0 + rank, rank or None, rank or None, None, 1.0 + rank]
    parts = [None if x is None else torch.full_like(p, x) for x, p in zip(shares, model, strict=True)]
    with patch("hf_sharp.backends.replicated._CHUNK_BYTES", 50):
        return backend.average(parts)


def main() -> None:
    """Run everything, make sure that the ranks agree, and let rank 0 write the results."""
    kind, file, *names = sys.argv[1:]
    torch.set_default_dtype(torch.float32 if in_float32(kind) else torch.float64)
    if kind.startswith("alone"):
        torch.save({"weights": few_cases(kind, names) if names else cases(kind)}, file)
        return
    assert "RANK" in os.environ, "start it with torchrun"
    dist.init_process_group("gloo")
    weights = few_cases(kind, names) if names else cases(kind)
    for name, w in weights.items():
        other = w.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(other, w), f"the ranks ended with different weights: {name}"
    found: dict[str, Any] = {"weights": weights}
    if kind == "ddp" and not names:
        found["collectives"] = {
            f"{over} {name}": collectives(method, over)
            for name, method in methods(kind).items()
            for over in ("batch", *localities(kind))
        }
        found["averages"] = averages()
    if kind.endswith("sequence"):
        found["refused"] = refusal(kind)
    if dist.get_rank() == 0:
        torch.save(found, file)
    dist.barrier()


if __name__ == "__main__":
    main()
    leave()
