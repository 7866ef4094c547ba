"""Every optimizer that steps after the backward goes on working."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_sharp import RSAM, SAM, SharpnessAwareTrainer


class Net(nn.Module):
    """A small classifier with a norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.body(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(kind: type[Trainer], optim: str, folder: Path, **kwargs: Any) -> nn.Module:
    set_seed(0)
    data = [{"x": torch.randn(6), "labels": i % 3} for i in range(24)]
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=3,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim=optim,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = kind(Net(), args, train_dataset=data, eval_dataset=data[:8], **kwargs)
    trainer.train()
    return trainer.model


OPTIMS = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad", "schedule_free_adamw"]


@pytest.mark.parametrize("optim", OPTIMS)
def test_neutral_is_plain(optim: str, tmp_path: Path) -> None:
    """Bit for bit, with evaluations in between.

    The noise is too small to move a weight, but its shift and its restoring are real: a schedule-free optimizer that
    swapped its weights inside them would lose the swap.
    """
    plain = trained(Trainer, optim, tmp_path)
    for method in (SAM(rho=0.0), RSAM(rho=0.0, gamma=1e-30)):
        sharp = trained(SharpnessAwareTrainer, optim, tmp_path, method=method)
        for a, b in zip(plain.parameters(), sharp.parameters(), strict=True):
            assert torch.equal(a, b), method


@pytest.mark.parametrize("optim", OPTIMS)
def test_sam_changes_the_run(optim: str, tmp_path: Path) -> None:
    plain = trained(Trainer, optim, tmp_path)
    sharp = trained(SharpnessAwareTrainer, optim, tmp_path, method=SAM(rho=0.5))
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), sharp.parameters(), strict=True))
