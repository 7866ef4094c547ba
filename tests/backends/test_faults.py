"""An exception on one rank in the middle of a pass ends the training on all of them, and is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from hf_sharp import SharpStep
from tests.backends.launches import EXACT, ROOT, SLOW, launch
from tests.models import collated
from tests.problems import generic
from tests.workers.faults import GOOD_STEPS, METHOD
from tests.workers.trainers import Loadable, SmallConfig, samples

CASES = [
    ("fsdp2", "forward"),
    ("zero2", "forward"),
    *(pytest.param(kind, "forward", marks=SLOW) for kind in ("ddp", "zero1", "zero3")),
    *(pytest.param(kind, "backward", marks=SLOW) for kind in ("ddp", "fsdp2", "zero2")),
]
STARTS, ENDS = 240.0, 30.0
"""How long the training may take until the fault, and from there to the end, in seconds."""


def waited(process: subprocess.Popen[bytes], until: Callable[[], bool], seconds: float) -> bool:
    """Whether a process has ended, or something happened, in time."""
    end = time.monotonic() + seconds
    while process.poll() is None and not until():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def fail(kind: str, place: str, folder: Path) -> None:
    """Launch a training that fails, and fail where it ends late, or as if nothing had been, or without a word."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.workers.faults"]
    env = {**os.environ, "DS_ACCELERATOR": "cpu"}
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", *launcher, kind, place, str(folder)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            started = waited(process, (folder / "fault").exists, STARTS)
            ended = waited(process, lambda: False, ENDS)
        finally:
            process.terminate()  # it ends the ranks
            process.wait()
    said = (folder / "log").read_text()
    assert started, said[-8000:]
    assert (folder / "fault").exists(), said[-8000:]
    assert ended, f"the launcher still runs {ENDS:.0f} s after the fault\n{said[-8000:]}"
    assert process.returncode not in (0, -signal.SIGTERM)
    assert "Traceback (most recent call last)" in said
    assert "in _raise" in said
    assert f"RuntimeError: a fault on rank 1 in the {place}" in said


@pytest.mark.parametrize(("kind", "place"), CASES)
def test_the_launcher_ends(kind: str, place: str, tmp_path: Path) -> None:
    """Within 30 seconds, not with 0, and with the traceback; the rank that failed keeps the weights that it began with."""
    fail(kind, place, tmp_path)
    assert (tmp_path / "restored-1").read_text() == "True"
    other = tmp_path / "restored-0"
    assert not other.exists() or other.read_text() == "True"


@pytest.mark.parametrize("kind", ["zero2", *(pytest.param(kind, marks=SLOW) for kind in ("zero0", "zero1", "zero3"))])
def test_an_interrupted_trainer_has_its_own_weights(kind: str, tmp_path: Path) -> None:
    """All ranks are interrupted in a pass at shifted weights: what is evaluated and saved then are those of two steps."""
    launch("interrupted", kind, tmp_path)
    found, _ = (torch.load(tmp_path / f"found-{rank}", weights_only=True) for rank in range(2))
    assert torch.equal(found["saved"], found["masters"])
    assert found["evaluated"] == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["ddp", *(pytest.param(kind, marks=SLOW) for kind in ("fsdp2", "zero3"))])
def test_no_checkpoint_is_perturbed(kind: str, tmp_path: Path) -> None:
    """Saved after each step, the weights are those of the steps that went well, and of no other place."""
    fail(f"trainer_{kind}", "forward", tmp_path)
    saved = {path.name: load_file(path / "model.safetensors") for path in (tmp_path / "out").iterdir()}
    assert sorted(saved) == [f"checkpoint-{step + 1}" for step in range(GOOD_STEPS)]
    model = Loadable(SmallConfig()).double()
    generic(model.core)
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, METHOD, steps=10)
    for step in range(GOOD_STEPS):
        sharp(
            lambda b: model(**b)["loss"], collated(samples("alone", 8 * GOOD_STEPS, torch.float64)[8 * step : 8 * step + 8])
        )
        optimizer.step()
        optimizer.zero_grad()
        found = parameters_to_vector(
            [saved[f"checkpoint-{step + 1}"][name].double() for name, _ in model.named_parameters()]
        )
        gap = torch.linalg.vector_norm(found - parameters_to_vector(model.parameters()).detach())
        assert float(gap) <= (1e-12 if kind in EXACT else 1e-6)  # a perturbed place is 0.5 away
