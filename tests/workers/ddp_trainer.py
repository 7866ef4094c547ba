"""What each rank of the DDP tests runs through the Trainer; results of all ranks in one folder.

    torchrun --nproc-per-node 2 -m tests.workers.ddp_trainer FOLDER

Run without torchrun it trains the same cases in one process with batches of twice the size.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from hf_sharp import SAM, SharpnessAwareTrainer
from tests.models import arguments, bits, mixed, reseed, rows, snapshot
from tests.problems import EXAMPLES, Perceptron, batch_for, generic
from tests.reference import flat

RANKED = "RANK" in os.environ


def union_arguments(folder: Path, **changed: Any) -> TrainingArguments:
    """Arguments under which one process sees in a batch what two ranks see in two."""
    size = 4 if RANKED else 8
    return arguments(
        folder, per_device_train_batch_size=size, gradient_accumulation_steps=2, max_steps=6, optim="sgd", **changed
    )


def equal_to_one_process(folder: Path) -> dict[str, Any]:
    """The weights in float64 after six steps, for every method, and the logs of one of them."""
    data = [{key: x[0] for key, x in batch_for(Perceptron(), 1, seed=i).items()} for i in range(96)]
    out: dict[str, Any] = {}
    for name, method in EXAMPLES.items():
        trainer = SharpnessAwareTrainer(
            generic(Perceptron()), union_arguments(folder, max_grad_norm=0.5), train_dataset=data, method=method
        )
        trainer.train()
        assert isinstance(trainer.model_wrapped, DistributedDataParallel) == RANKED
        out[name] = flat(trainer.model)
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        out[f"logs {name}"] = [{k: v for k, v in entry.items() if isinstance(v, float)} for entry in logs]
    return out


def neutral(folder: Path) -> dict[str, bool]:
    """Whether SAM(rho=0) leaves the plain Trainer's bits on this rank, with dropout and BatchNorm."""
    ends: list[dict[str, Any]] = []
    for kind, more in ((Trainer, {}), (SharpnessAwareTrainer, {"method": SAM(rho=0.0)})):
        reseed(0)
        model: nn.Module = mixed()
        args = arguments(folder, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=6)
        trainer = kind(model, args, train_dataset=rows("mixed", 48), **more)
        trainer.train()
        ends.append({"weights": snapshot(model), "logs": [e["loss"] for e in trainer.state.log_history if "loss" in e]})
    plain, sharp = ends
    return {
        "weights": all(bits(x) == bits(sharp["weights"][name]) for name, x in plain["weights"].items()),
        "logs": plain["logs"] == sharp["logs"],
    }


def main() -> None:
    """Run both parts and write what this rank found."""
    folder = Path(sys.argv[1])
    rank = os.environ.get("RANK", "alone")
    found = {"equal": equal_to_one_process(folder / f"out-{rank}")}
    if RANKED:
        found["neutral"] = neutral(folder / f"out-{rank}")
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
