"""Four ranks: shards of unequal size, ranks that hold nothing of a weight, and replicas of shards (HSDP)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.launches import SLOW, launch
from tests.workers.loops import localities

METHODS = ("gsam", "rsam")
KINDS = ("hsdp", "fsdp2", "ddp", "zero0", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The weights of one process on the union of four ranks' data."""
    file = tmp_path_factory.mktemp("shards") / "alone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNION_OF", "4")
        launch("loops", "alone", file, *METHODS)
    return torch.load(file, weights_only=True)["weights"]


@pytest.mark.parametrize("kind", [kind if kind == "hsdp" else pytest.param(kind, marks=SLOW) for kind in KINDS])
def test_four_ranks_equal_one_process(kind: str, alone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The last layer's three rows on four ranks leave one with nothing; ZeRO cuts parameters in the middle."""
    launch("loops", kind, tmp_path / kind, *METHODS, ranks=4)
    found = torch.load(tmp_path / kind, weights_only=True)["weights"]
    assert len(found) == (2 + len(localities(kind))) * len(METHODS)
    bound = 1e-6 if kind.startswith("zero") else 1e-12
    assert all(float((w - alone[name]).abs().max()) <= bound for name, w in found.items())
