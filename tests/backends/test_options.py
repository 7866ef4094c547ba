"""What models bring with them, on each backend: checkpointing, LoRA, tied, frozen and unused weights, torch.compile."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.backends.launches import EXACT, SLOW, launch
from tests.workers.options import METHODS, OPTIONS, SIDE

KINDS = ["ddp", "fsdp2", *(pytest.param(kind, marks=SLOW) for kind in ("zero1", "zero2", "zero3"))]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The weights under one kind of training; each kind is launched once."""
    folder = tmp_path_factory.mktemp("options")

    @cache
    def launched(kind: str) -> dict[str, torch.Tensor]:
        launch("options", kind, folder / kind)
        return torch.load(folder / kind, weights_only=True)

    return launched


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_one_process(kind: str, found: Any) -> None:
    ranks, alone = found(kind), found("alone")
    left_out = 0 if kind in EXACT else 1
    assert len(ranks) == (len(OPTIONS) - left_out) * len(METHODS)
    bound = 1e-12 if kind in EXACT else 1e-6
    assert {name: gap for name, w in ranks.items() if not (gap := float((w - alone[name]).abs().max())) <= bound} == {}


def test_the_options_are_in_force(found: Any) -> None:
    """Checkpointing and compiling change no number; the other options train other weights."""
    alone = found("alone")
    for name in ("checkpointing gsam", "reentrant gsam", "compiled gsam"):
        assert float((alone[name] - alone["plain gsam"]).abs().max()) < 1e-12
    fickle = {name: alone[f"fickle {name}"] for name in METHODS}
    assert not torch.equal(fickle["gsam"][:3], SIDE)  # -alpha g is left of the first pass' gradient
    assert torch.equal(fickle["rsam"][:3], SIDE)  # the second pass' gradient is all
    sizes = {option: alone[f"{option} gsam"].numel() for option in OPTIONS}
    assert sizes["lora"] < sizes["frozen"] < sizes["plain"] < sizes["unused"]
