"""Launches of the workers, each once per session of tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
EXACT = ("ddp", "fsdp2")
"""Those that train in float64 here; DeepSpeed keeps float32."""


def run(worker: str, *arguments: str | Path, ranks: int = 2, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run a worker, under torchrun where there is more than one rank, and return what it said."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *launcher, f"tests.workers.{worker}", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def succeed(worker: str, kind: str, *arguments: str | Path, ranks: int = 2) -> None:
    """Run a worker for a kind of training, and fail with what it said where it fails."""
    done = run(worker, kind, *arguments, ranks=1 if kind.startswith("alone") else ranks)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
