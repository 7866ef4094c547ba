"""Saved under one backend and resumed under it equals uninterrupted, bit for bit; a consolidated checkpoint is plain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_sharp import SAM, SharpnessAwareTrainer
from tests.backends.launches import SLOW, succeed
from tests.models import arguments
from tests.workers.trainers import Loadable, samples

KINDS = ["ddp", "fsdp2", "zero3", *(pytest.param(kind, marks=SLOW) for kind in ("zero1", "zero2"))]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(kind: str, tmp_path: Path) -> None:
    """Weights, optimizer state, random streams and the vectors that the method keeps, on each rank."""
    succeed("resuming", kind, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True)
        assert found["memory"] == 1
        assert found["optimizer"] >= 6
        assert found["differences"] == []
        assert found["consolidated"] == 0.0
    if kind == "fsdp2":
        return
    # the consolidated model goes on in one process without any of it
    model = Loadable.from_pretrained(tmp_path / "final", dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    args = arguments(tmp_path / "alone", max_steps=2, per_device_train_batch_size=8, optim="sgd", learning_rate=0.1)
    SharpnessAwareTrainer(model, args, train_dataset=samples("alone", 16), method=SAM()).train()
    assert any(not torch.equal(a, b.cpu()) for a, b in zip(before, model.parameters(), strict=True))
