"""Saved under one backend and resumed under it equals uninterrupted, bit for bit; a consolidated checkpoint is plain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_sharp import SAM, SharpnessAwareTrainer
from tests.backends.launches import SLOW, launch
from tests.models import arguments, collated
from tests.problems import Perceptron
from tests.reference import Problem, flat, sam
from tests.workers.trainers import Loadable, samples

KINDS = ["ddp", "fsdp2", "zero3", *(pytest.param(kind, marks=SLOW) for kind in ("hsdp", "zero0", "zero1", "zero2"))]


def went_on(core: Perceptron) -> torch.Tensor:
    """The weights after two steps of the slow twin of SAM from those of a network."""
    w = flat(core)
    for first in (0, 8):
        w = w - 0.1 * sam(Problem(core, collated(samples("alone", 16, torch.float64)[first : first + 8])), w, 0.05)
    return w


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(kind: str, tmp_path: Path) -> None:
    """Weights, optimizer state, random streams and the vectors that the method keeps, on each rank."""
    ranks = 4 if kind == "hsdp" else 2
    launch("resuming", kind, tmp_path, ranks=ranks)
    for rank in range(ranks):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True)
        assert found["memory"] == 1
        assert found["optimizer"] >= 6
        assert found["differences"] == []
        assert found["consolidated"] == 0.0
    # without any of it the consolidated model goes on under another backend, and in one process
    wanted = went_on(Loadable.from_pretrained(tmp_path / "final", dtype=torch.float64).core)
    model = Loadable.from_pretrained(tmp_path / "final", dtype=torch.float64)
    model.dropout.p = 0.0
    args = arguments(
        tmp_path / "alone",
        max_steps=2,
        per_device_train_batch_size=8,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
    )
    SharpnessAwareTrainer(model, args, train_dataset=samples("alone", 16, torch.float64), method=SAM()).train()
    assert float((flat(model) - wanted).abs().max()) <= 1e-12
    assert float((found["went_on"] - wanted).abs().max()) <= 1e-12
