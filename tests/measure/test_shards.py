"""What cannot be measured on weights that the ranks hold in pieces is refused on all of them, and nothing has moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.backends.launches import launch

EXACT = "hvp='exact' needs all weights in each process, got sharded ones. Use hvp='difference'."
GROUPS = (
    "Groups of samples need all weights in each process, got sharded ones, which are at one place at a time. "
    "Measure the sharpness of all samples, m=None."
)
ZERO3 = "Weights must be in memory to be moved, got those of DeepSpeed ZeRO-3. Measure the saved checkpoint."


@pytest.mark.slow
def test_refused(tmp_path: Path) -> None:
    """Two ranks under FSDP2, then under ZeRO-3; differences under FSDP2 are measured, and a look between two steps of
    training, after which FSDP2 has whole weights in the model for a while, changes nothing."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    launch("measuring", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "exact": [EXACT, EXACT],
        "groups": [GROUPS],
        "difference": [None, None],
        "zero3": [ZERO3, ZERO3],
    }
