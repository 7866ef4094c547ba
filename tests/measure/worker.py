"""What each process of the data-parallel test runs; rank 0 writes the results.

    accelerate launch --multi_gpu --num_processes 2 -m tests.measure.worker FOLDER

Run without a launcher it measures the same in one process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from hf_sharp.measure import (
    QUANTITIES,
    ApproximationRatio,
    How,
    Sharpness,
    SharpnessCallback,
    Surface,
    Trace,
    loss_surface,
    parse_quantity,
)
from tests.measure.models import Classifier, Fused, Lossless, Normalised, batches, made
from tests.measure.test_quantities import SMALL
from tests.models import arguments

HOW = {
    "exact": How(),
    "difference": How(hvp="difference"),
    "batch": How(statistics="batch"),
}


def measured(folder: Path) -> dict[str, Any]:
    """Every quantity, on more and on fewer batches than processes."""
    accelerator = Accelerator(cpu=True)
    out: dict[str, Any] = {}
    for mode, how in HOW.items():
        model = accelerator.prepare(made(Normalised() if mode == "batch" else Classifier()))
        assert isinstance(model, DistributedDataParallel) == (accelerator.num_processes > 1)
        for size in (8, 20):
            with loss_surface(model, batches(20, size), how=how) as f:
                for name in QUANTITIES:
                    extra = {"checkpoint": str(folder / f"{mode}.pt")} if name == "loss_between" else {}
                    found = parse_quantity({"name": name, **SMALL[name], **extra}).measure(f)
                    assert found.about["processes"] == accelerator.num_processes
                    out[f"{mode} {size} {name}"] = [found.values, found.errors, found.arrays]
    return out


def sharded(folder: Path) -> dict[str, Any]:
    """What sharded weights allow, on more and on fewer batches than processes; in one process with whole weights."""
    out: dict[str, Any] = {}
    for size in (8, 20):
        model = made(Classifier())
        if dist.is_initialized():
            fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
            assert all(isinstance(p, DTensor) for p in model.parameters())
        with loss_surface(model, batches(20, size), how=How(hvp="difference")) as f:
            for name in QUANTITIES:
                if name != "approximation_ratio":  # of groups of samples
                    extra = {"checkpoint": str(folder / "exact.pt")} if name == "loss_between" else {}
                    found = parse_quantity({"name": name, **SMALL[name], **extra}).measure(f)
                    out[f"{size} {name}"] = [found.values, found.errors, found.arrays]
            if dist.is_initialized():
                out.setdefault("refused", []).append(refusals(f))
    return out


def refusals(f: Surface) -> list[str]:
    """What sharded weights do not allow."""
    said = []
    for ask in (lambda: ApproximationRatio().measure(f), lambda: Sharpness(m=2).measure(f)):
        try:
            ask()
        except ValueError as error:
            said.append(str(error))
    return said


def agreed() -> list[list[str]]:
    """What each process is told where one of them alone has a batch, and meets an error with it."""
    told = []
    for model, data in ((made(Fused()), batches(20, 20)), (Lossless(), [{"x": torch.ones(2, 2)}])):
        try:
            with loss_surface(model, data) as f:
                Trace(draws=2).measure(f)
        except ValueError as error:
            told.append(str(error))
    everyone = [told] * (dist.get_world_size() if dist.is_initialized() else 1)
    if dist.is_initialized():
        dist.all_gather_object(everyone, told)
    return everyone


def trained(folder: Path) -> list[dict[str, float]]:
    """What a callback logs in a Trainer's run, whose processes share its batches."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    data = [{"x": x, "labels": y} for b in batches(20) for x, y in zip(b["x"], b["labels"], strict=True)]
    args = arguments(folder / "out", max_steps=4, per_device_train_batch_size=4 // ranks, optim="sgd")
    trainer = Trainer(made(Classifier()), args, train_dataset=data)
    assert args.world_size == ranks
    trainer.add_callback(SharpnessCallback(trainer, ["trace", "sharpness"], {"train": batches(20, 8)}, every=2))
    trainer.train()
    return [e for e in trainer.state.log_history if "sharpness/train/trace" in e]


def main() -> None:
    """Measure, and let rank 0 write."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {"measured": measured(folder), "trained": trained(folder), "sharded": sharded(folder), "agreed": agreed()}
    if int(os.environ.get("RANK", "0")) == 0:
        name = "alone" if "RANK" not in os.environ else "together"
        (folder / f"{name}.json").write_text(json.dumps(found))
    os._exit(0)  # gloo's threads can abort a process whose interpreter closes


if __name__ == "__main__":
    main()
