"""What Trainers gather over the ranks inside their loss; the results of each rank in one file.

    torchrun --nproc-per-node 2 -m tests.workers.gathering FOLDER

Without torchrun it trains in one process, with batches of twice the size. FOLDER/encoder has a model for
sentence-transformers, where that library is installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from hf_sharp import GAM, SAM, AbstractMethod, SharpnessAwareMixin
from tests.models import arguments, llama, rows, snapshot

RANK = int(os.environ.get("RANK", "0"))
RANKS = int(os.environ.get("WORLD_SIZE", "1"))


class GatheringTrainer(Trainer):
    """Gathers a metric and a token count in every call of its loss, as TRL's do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics: list[float] = []
        self.tokens = 0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        count = (inputs["labels"] != -100).sum()
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.metrics.append(self.accelerator.gather_for_metrics(loss.detach()[None]).mean().item())
        self.tokens += int(self.accelerator.gather_for_metrics(count[None]).sum())
        return loss


class SharpGatheringTrainer(SharpnessAwareMixin, GatheringTrainer):
    """The same, sharpness-aware."""


def data() -> list[dict[str, Any]]:
    """Rows of which every second one has fewer labels, so that the ranks' batches have different numbers of tokens."""
    out = rows("llama", 24)
    for i, row in enumerate(out):
        row["labels"][: (i * 5) % 6] = -100
    return out


def trained(folder: Path, method: AbstractMethod | None, *, dropout: float = 0.0, **changed: Any) -> dict[str, Any]:
    """Weights, metrics, counts and logged losses after three steps of two micro-batches."""
    perturb_over = changed.pop("perturb_over", "batch")
    args = arguments(
        folder / f"rank-{RANK}",
        per_device_train_batch_size=4 // RANKS,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        max_steps=3,
        train_sampling_strategy="sequential",
        include_num_input_tokens_seen="all",
        **changed,
    )
    model = llama(dropout=dropout).double()
    given: dict[str, Any] = {"train_dataset": data()}
    if method is None:
        trainer = GatheringTrainer(model, args, **given)
    else:
        trainer = SharpGatheringTrainer(model, args, method=method, perturb_over=perturb_over, **given)
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel) == (RANKS > 1)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": snapshot(model),
        "metrics": trainer.metrics,
        "tokens": trainer.tokens,
        "losses": [entry["loss"] for entry in logs],
        "seen": [entry["num_input_tokens_seen"] for entry in logs],
    }


def cached(folder: Path, perturb_over: str) -> dict[str, Any]:
    """The weights that a ranking loss with and without a gradient cache of its own leaves."""
    from tests.trainers.test_sentence_transformers import trainer_for

    changed = {"optim": "sgd", "gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": 0.0}
    out = {}
    for loss in ("ranking", "cached"):
        method = SAM(rho=0.1)
        trainer = trainer_for(
            folder / "encoder", loss, method, folder / f"rank-{RANK}", 0.0, perturb_over=perturb_over, **changed
        )
        trainer.model.double()
        trainer.train()
        assert isinstance(trainer.model_wrapped, DistributedDataParallel)
        out[loss] = snapshot(trainer.model)
    return out


def main() -> None:
    """Run all cases and write what this rank found."""
    folder = Path(sys.argv[1])
    found = {
        "sam": trained(folder, SAM(rho=0.1)),
        "gam": trained(folder, GAM(rho=0.1)),
        "sam apart": trained(folder, SAM(rho=0.1), average_tokens_across_devices=False),
        "plain": trained(folder, None, dropout=0.1),
        "neutral": trained(folder, SAM(rho=0), dropout=0.1),
    }
    if RANKS > 1:
        if (folder / "encoder").exists():
            found["cache"] = {perturb_over: cached(folder, perturb_over) for perturb_over in ("batch", "device")}
        found["device"] = trained(folder, SAM(rho=0.1), perturb_over="device")
    torch.save(found, folder / f"{RANKS}-{RANK}.pt")


if __name__ == "__main__":
    main()
