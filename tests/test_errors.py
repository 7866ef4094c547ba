"""What is refused late is refused without harm, and what is good is not refused. The messages: `test_bad_inputs`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig, Trainer

from hf_sharp import AcceleratedGAM, SharpnessAwareMixin, SharpnessAwareTrainer, parse_method
from tests.models import Mixed, arguments, mixed, rows


class Unreduced(Mixed):
    """Returns one loss per sample."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = super().forward(x)["logits"]
        assert labels is not None
        return {"loss": torch.nn.functional.cross_entropy(logits, labels, reduction="none"), "logits": logits}


def test_a_loss_with_many_numbers(tmp_path: Path) -> None:
    """Known at the first forward only; the weights are as they were."""
    sharp = SharpnessAwareTrainer(Unreduced(PreTrainedConfig()), arguments(tmp_path), train_dataset=rows("mixed", 4))
    before = [p.clone() for p in sharp.model.parameters()]
    with pytest.raises(ValueError, match=r"^The loss must be one number, got shape \(2,\)\. Reduce it, e\.g\. with loss"):
        sharp.train()
    assert all(torch.equal(a, b) for a, b in zip(before, sharp.model.parameters(), strict=True))


def test_good_input_is_not_refused(tmp_path: Path) -> None:
    """The refusals are not the constructor's only answer."""
    trainer = SharpnessAwareTrainer(
        mixed(), arguments(tmp_path), train_dataset=rows("mixed", 4), method="SAM", perturb="last.*"
    )
    assert isinstance(trainer, Trainer)
    assert issubclass(SharpnessAwareTrainer, SharpnessAwareMixin)
    assert parse_method({"name": "accelerated-gam"}) == AcceleratedGAM()
