"""Where weights and gradients live."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from hf_sharp.backends.base import AbstractBackend
from hf_sharp.backends.replicated import Replicated
from hf_sharp.parameters import Perturb

__all__ = ["AbstractBackend", "Replicated", "choose"]


def choose(model: nn.Module, accelerator: Accelerator | None, perturb: Perturb) -> AbstractBackend:
    """The backend for a model as the loop calls it.

    Raises:
        ValueError: there is none for this kind of training.
    """
    kind = DistributedType.NO if accelerator is None else accelerator.distributed_type
    if kind is not DistributedType.NO or isinstance(model, nn.DataParallel):
        got = "nn.DataParallel" if isinstance(model, nn.DataParallel) else f"distributed_type {kind.value}"
        raise ValueError(f"hf_sharp trains on one process and one device, got {got}. Launch with --num_processes 1.")
    return Replicated(model, perturb)
