"""Every backend gives one process's numbers on the union of the ranks' data, through the Trainer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.backends.launches import EXACT, SLOW, launch
from tests.models import neutral_methods
from tests.workers.loops import localities, methods, settings

EXACT_KINDS = ["ddp", pytest.param("fsdp2", marks=SLOW)]
KINDS = [*EXACT_KINDS, *(pytest.param(kind, marks=SLOW) for kind in ("zero0", "zero1", "zero2", "zero3"))]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each rank found under one kind of training; each kind is launched once."""
    folder = tmp_path_factory.mktemp("trainers")

    @cache
    def launched(kind: str) -> list[dict[str, Any]]:
        launch("trainers", kind, folder)
        return [torch.load(folder / f"{kind}-{rank}.pt", weights_only=True) for rank in range(1 + ("alone" not in kind))]

    return launched


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_one_process(kind: str, found: Any) -> None:
    """Weights of every method at accumulation 1 and 4 and clipping off and on, to the bounds of the bare loops."""
    (alone,), (single,) = found("alone"), found("alone32")
    for rank in found(kind):
        assert len(rank["grid"]) == len(settings(kind)) * len(methods(kind))
        for name, end in rank["grid"].items():
            bound = 1e-12 if kind in EXACT else 1e-6
            if kind not in EXACT and name in single["grid"]:  # the logarithm of CR-SAM rounds more
                rounding = (single["grid"][name]["weights"] - alone["grid"][name]["weights"]).abs().max()
                assert rounding < 1e-4
                bound = max(bound, 10 * float(rounding))
            assert float((end["weights"] - alone["grid"][name]["weights"]).abs().max()) <= bound, name


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_equal_one_process(kind: str, found: Any) -> None:
    """The weights with the other values of perturb_over, which differ, and with a reduction after each micro-batch."""
    (alone,) = found("alone")
    wanted = {**alone["others"], "each": alone["grid"]["gsam 4 0.5"]}
    for rank in found(kind):
        assert rank["others"].keys() == {*localities(kind), *(["each"] if kind in EXACT else [])}
        for name, end in rank["others"].items():
            gap = float((end["weights"] - wanted[name]["weights"]).abs().max())
            assert gap <= (1e-12 if kind in EXACT else 1e-6), name
        ends = [rank["others"][name]["weights"] for name in localities(kind)]
        assert all(float((ends[0] - end).abs().max()) > 1e-4 for end in ends[1:])


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_logs_equal_one_process(kind: str, found: Any) -> None:
    """Every number of every log, ours and the Trainer's own."""
    for rank in found(kind):
        for name, end in rank["grid"].items():
            alone = found("alone")[0]["grid"][name]["logs"]
            assert len(end["logs"]) == len(alone) == 10
            for ours, theirs in zip(end["logs"], alone, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("kind", KINDS)
def test_neutral_is_plain_on_each_rank(kind: str, found: Any) -> None:
    """The weights' bits and the logged losses, with dropout, accumulation and clipping; and under autocast to bfloat16."""
    settings = [*neutral_methods(), *(["bf16 gsam", "sync_each_batch gsam"] if kind in EXACT else [])]
    for rank in found(kind):
        assert rank["neutral"] == dict.fromkeys(settings, True)
