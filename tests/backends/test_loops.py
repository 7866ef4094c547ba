"""Every backend gives one process's numbers on the union of the ranks' data, in bare loops."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.launches import EXACT, ROOT, SLOW, launch
from tests.backends.textbook import TWINS, trained
from tests.workers.loops import EVERY, STEPS, localities, methods, micro_batches, settings, union

KINDS = [*EXACT, "zero3", *(pytest.param(kind, marks=SLOW) for kind in ("zero0", "zero1", "zero2"))]
OPTIONS = [
    *("zero1_offload", "zero2_offload", "zero3_offload"),
    *("zero1_round_robin", "zero2_round_robin", "zero2_round_robin_offload"),
    *("zero0_sequence", "zero1_sequence", "zero2_sequence", "zero3_sequence"),
]

PASSES = {"accelerated_gam": 4, "crsam": 3, "during": 1, "gam": 5, "gam_exact": 4, "lpf": 3}
"""Of the first step; the other methods have two."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the ranks found under one kind of training; each kind is launched once."""
    folder = tmp_path_factory.mktemp("loops")

    @cache
    def launched(kind: str) -> dict[str, Any]:
        launch("loops", kind, folder / kind)
        return torch.load(folder / kind, weights_only=True)

    return launched


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_one_process(kind: str, found: Any) -> None:
    """Every method, accumulation 1 and 4, clipping off and on, and the values of perturb_over; and DDP's options.

    DeepSpeed trains in float32: 1e-6. The logarithm of CR-SAM divides small differences, and rounds more: it may be off by
    ten times what one process is in float32, which is not much.
    """
    ranks, alone, single = found(kind)["weights"], found("alone")["weights"], found("alone32")["weights"]
    assert len(ranks) == (len(settings(kind)) + len(localities(kind))) * len(methods(kind)) + 1 + 9 * (kind == "ddp")
    gaps = {name: float((w - alone[name]).abs().max()) for name, w in ranks.items()}
    bounds = dict.fromkeys(gaps, 1e-12)
    if kind not in EXACT:
        rounding = {name: 10 * float((w - alone[name]).abs().max()) for name, w in single.items()}
        assert max(rounding.values()) < 1e-3
        bounds = {name: max(1e-6, rounding.get(name, 0.0)) for name in gaps}
    assert {name: gap for name, gap in gaps.items() if not gap <= bounds[name]} == {}


@SLOW
@pytest.mark.parametrize("kind", OPTIONS)
def test_options_of_deepspeed(kind: str, found: Any, tmp_path: Path) -> None:
    """Methods that ask for all that a backend does, with masters kept by the CPU, with weights cut in another order than the
    optimizer's, and with ranks that share their samples: a part of a sample is here what a rank has else."""
    names = ["asam", "gam", "gsam", "rsam", *(["gam_exact"] if "zero3" not in kind else [])]
    launch("loops", kind, tmp_path / kind, *names)
    ranks = torch.load(tmp_path / kind, weights_only=True)
    assert len(ranks["weights"]) == (2 + len(localities(kind))) * len(names)
    gaps = {name: float((w - found("alone")["weights"][name]).abs().max()) for name, w in ranks["weights"].items()}
    assert {name: gap for name, gap in gaps.items() if not gap <= 1e-6} == {}
    if kind in ("zero0_sequence", "zero1_sequence", "zero2_sequence"):
        assert ranks["refused"] == (
            "perturb_over='device' needs whole samples on each device, got sequence parallelism over 2 ranks. Use "
            "perturb_over='batch' or 'micro_batch'."
        )


@SLOW
@pytest.mark.parametrize("kind", EXACT)
def test_ranks_with_interpreters_of_their_own(kind: str, found: Any, tmp_path: Path) -> None:
    """Under torchrun, where sets are in another order on each rank; the forked ranks of the other tests share it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    worker = ["tests.workers.loops", kind, str(tmp_path / kind), "gsam", "rsam"]
    done = subprocess.run([*launcher, *worker], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    weights = torch.load(tmp_path / kind, weights_only=True)["weights"]
    assert len(weights) == 2 * (2 + len(localities(kind)))
    assert all(float((w - found("alone")["weights"][name]).abs().max()) <= 1e-12 for name, w in weights.items())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fsdp2" and "zero3" not in str(kind)])
def test_the_three_kinds_of_sharing_differ(kind: str, found: Any) -> None:
    """On the same data, for a method without noise; and each rank has noise of its own under "device"."""
    ranks = found(kind)["weights"]
    kinds = [ranks["micro_batch sam"], ranks["device sam"], ranks["batch sam"]]
    assert all(float((a - b).abs().max()) > 1e-4 for i, a in enumerate(kinds) for b in kinds[:i])
    assert float((ranks["micro_batch rsam"] - ranks["device rsam"]).abs().max()) > 1e-4


@pytest.mark.parametrize("name", methods("alone"))
def test_one_process_equals_the_textbook(name: str, found: Any) -> None:
    """What the ranks are compared with: ten steps of momentum SGD with slow twins, one batch of all samples in each."""
    assert TWINS.keys() == methods("alone").keys()
    alone = found("alone")["weights"]
    for accumulation, clip in EVERY:
        batches = [union(micro_batches(step, accumulation, "batch", None)) for step in range(STEPS)]
        wanted = trained(name, batches, clip, momentum=0.9)
        gap = float((alone[f"batch {name} {accumulation} {clip}"] - wanted).abs().max())
        assert gap <= 1e-12, (accumulation, clip, gap)
    for accumulation in (1, 4):
        plain, clipped = (alone[f"batch {name} {accumulation} {clip}"] for clip in (None, 0.5))
        assert float((plain - clipped).abs().max()) > 1e-3, "clipping must have something to do"


@pytest.mark.parametrize("name", methods("ddp"))
def test_reductions(name: str, found: Any) -> None:
    """ "device" reduces once per optimizer step whatever the method's passes; "batch" once per pass, as many as it has;
    "micro_batch" once per pass and micro-batch."""
    counts = found("ddp")["collectives"]
    assert counts[f"device {name}"] == {"direct": 1}
    assert sum(counts[f"batch {name}"].values()) == PASSES.get(name, 2)
    assert sum(counts[f"micro_batch {name}"].values()) == 2 * PASSES.get(name, 2)


def test_gradients_that_some_ranks_have(found: Any) -> None:
    """The average of what both ranks have, or only the second one, or none, in two precisions and in several pieces."""
    averages = found("ddp")["averages"]
    wanted = [1.5, 1.5, 0.5, 0.5, None, 1.5]
    assert [x if x is None else x.unique().tolist() for x in averages] == [x if x is None else [x] for x in wanted]
    double, single = torch.float64, torch.float32
    assert [x.dtype for x in averages if x is not None] == [double, single, double, single, single]
