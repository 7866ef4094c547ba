"""DDP gives one process's numbers on the union of the ranks' data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.ddp import METHODS

ROOT = Path(__file__).parents[2]


def _launched(file: Path, *prefix: str) -> dict[str, Any]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *prefix, *([] if not prefix else ["-m"]), "tests.workers.ddp", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two ranks found, and what one process found."""
    folder = tmp_path_factory.mktemp("ddp")
    two = _launched(folder / "two.pt", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return two, _launched(folder / "one.pt")


def test_two_ranks_equal_one_process(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Every method, accumulation 1 and 4, clipping off and on; the three kinds of `perturb_over`; DDP's options."""
    two, one = results[0]["weights"], results[1]["weights"]
    assert two.keys() == one.keys()
    assert len(two) > 4 * len(METHODS)
    gaps = {name: float((w - one[name]).abs().max()) for name, w in two.items()}
    assert {name: gap for name, gap in gaps.items() if not gap <= 1e-12} == {}


def test_the_three_kinds_differ(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    two = results[0]["weights"]
    kinds = [two["micro_batch sam"], two["device sam"], two["batch sam 4 None"]]
    assert all(float((a - b).abs().max()) > 1e-6 for i, a in enumerate(kinds) for b in kinds[:i])


@pytest.mark.parametrize("name", METHODS)
def test_reductions(name: str, results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """ "device" reduces once per optimizer step whatever the method's passes; "batch" once per pass, as many as it has."""
    counts = results[0]["collectives"]
    assert counts[f"device {name}"] == {"direct": 1}
    assert counts[f"batch {name}"].get("buckets", 0) >= 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ranks and the single process found through the Trainer."""
    folder = tmp_path_factory.mktemp("trainer")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for prefix in (launcher, []):
        command = [sys.executable, "-m", *prefix, "tests.workers.ddp_trainer", str(folder)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return {rank: torch.load(folder / f"{rank}.pt", weights_only=True) for rank in ("0", "1", "alone")}


def test_the_trainer_on_two_ranks_equals_one_process(trained: dict[str, Any]) -> None:
    """Weights of every method, and every number in the logs, on batches that the ranks share."""
    alone = trained["alone"]["equal"]
    for rank in ("0", "1"):
        for name, value in trained[rank]["equal"].items():
            if isinstance(value, torch.Tensor):
                assert float((value - alone[name]).abs().max()) <= 1e-12, name
            else:
                assert len(value) == len(alone[name]) == 6
                for ours, theirs in zip(value, alone[name], strict=True):
                    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9), name


def test_neutral_is_plain_on_each_rank(trained: dict[str, Any]) -> None:
    assert [trained[rank]["neutral"] for rank in ("0", "1")] == [{"weights": True, "logs": True}] * 2
