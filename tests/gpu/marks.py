"""Marks of tests that need a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def gpu_only(function: Any) -> Any:
    """Marks a test that needs a GPU, and skips it where there is none."""
    for mark in GPU:
        function = mark(function)
    return function
