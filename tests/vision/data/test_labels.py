"""Label noise: how much, where, and from whom."""

from __future__ import annotations

import pytest
import torch

from hf_sharp.vision.data.labels import human_noise, symmetric_noise

CLEAN = torch.arange(10).repeat(500)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_share_of_wrong_labels_is_exact(rate: float) -> None:
    noisy = symmetric_noise(CLEAN, rate, classes=10, seed=3)
    assert int((noisy != CLEAN).sum()) == round(rate * len(CLEAN))
    assert noisy.min() >= 0
    assert noisy.max() <= 9


def test_every_other_class_is_as_likely() -> None:
    noisy = symmetric_noise(CLEAN, 1.0, classes=10, seed=0)
    steps = torch.bincount((noisy - CLEAN) % 10, minlength=10)
    assert steps[0] == 0
    expected = len(CLEAN) / 9
    chi_square = ((steps[1:] - expected) ** 2 / expected).sum()
    assert chi_square < 26.1  # 8 degrees of freedom, p = 0.001


def test_seed_alone_decides() -> None:
    first = symmetric_noise(CLEAN, 0.4, classes=10, seed=0)
    torch.manual_seed(5)
    assert torch.equal(first, symmetric_noise(CLEAN, 0.4, classes=10, seed=0))
    assert not torch.equal(first, symmetric_noise(CLEAN, 0.4, classes=10, seed=1))
    assert torch.equal(CLEAN, torch.arange(10).repeat(500))


def test_human_labels_are_taken_row_by_row() -> None:
    human = (CLEAN + 1) % 10
    assert torch.equal(human_noise(CLEAN[:100], human, CLEAN, 10, "worse_label", "train", "c10n"), human[:100])
