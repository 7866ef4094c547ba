"""Two processes under ``accelerate launch`` find the numbers of one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sharp.measure import QUANTITIES
from tests.measure.models import Classifier, Normalised, made

pytestmark = pytest.mark.slow  # three starts of the interpreter
ROOT = Path(__file__).parents[2]
# Without a GPU in sight this is gloo on the CPU; --cpu would start a single process.
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("parallel")
    for mode, kind in (("exact", Classifier), ("difference", Classifier), ("batch", Normalised)):
        torch.save(made(kind(), seed=1).state_dict(), folder / f"{mode}.pt")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for prefix in ([*LAUNCH, "-m"], []):
        command = [sys.executable, "-m", *prefix, "tests.measure.worker", str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    together, alone = (json.loads((folder / f"{name}.json").read_text()) for name in ("together", "alone"))
    return together, alone


def gaps(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested results differ by more than 1e-6."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [line for key in a for line in gaps(a[key], b[key], f"{path} {key}")]
    if isinstance(a, list):
        assert len(a) == len(b)
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in gaps(x, y, f"{path} {i}")]
    same = a == b or (isinstance(a, float) and (math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7) or (a != a and b != b)))
    return [] if same else [f"{path}: {a} {b}"]


def test_every_quantity(found: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """On three batches for two processes and on one, exact and by differences, and with the batch's own statistics."""
    together, alone = found[0]["measured"], found[1]["measured"]
    assert len(together) == 6 * len(QUANTITIES)
    assert gaps(together, alone) == []


def test_the_callback(found: tuple[dict[str, Any], dict[str, Any]]) -> None:
    together, alone = found[0]["trained"], found[1]["trained"]
    assert [entry["step"] for entry in together] == [2, 4]
    assert gaps(together, alone) == []


def test_what_one_process_meets_all_are_told(found: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """An operation without second derivative, and a model without a loss, in the process that has the only batch."""
    together, alone = found[0]["agreed"], found[1]["agreed"]
    assert [text.split(", got ")[0] for text in alone[0]] == [
        "hvp='exact' needs a second derivative of every operation",
        "The model must return a loss",
    ]
    assert together == alone * 2


def test_sharded_weights(found: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """FSDP2 with differences for Hessian products; groups of samples are refused."""
    together, alone = found[0]["sharded"], found[1]["sharded"]
    refused = together.pop("refused")
    message = (
        "Groups of samples need all weights in each process, got sharded ones, which are at one place at a time. "
        "Measure the sharpness of all samples, m=None."
    )
    assert refused == [[message] * 2] * 2
    assert len(together) == 2 * (len(QUANTITIES) - 1)
    assert gaps(together, alone) == []
