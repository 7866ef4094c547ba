"""Where weights and gradients live."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from hf_sharp.backends.base import AbstractBackend
from hf_sharp.backends.replicated import Replicated
from hf_sharp.parameters import Perturb

_REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

__all__ = ["AbstractBackend", "Replicated", "choose"]


def choose(model: nn.Module, accelerator: Accelerator | None, perturb: Perturb, *, local: bool = False) -> AbstractBackend:
    """The backend for a model as the loop calls it; ``local`` where each rank shall have its own perturbation.

    Raises:
        ValueError: there is none for this kind of training.
    """
    kind = DistributedType.NO if accelerator is None else accelerator.distributed_type
    if kind not in _REPLICATED or isinstance(model, nn.DataParallel):
        got = "nn.DataParallel" if isinstance(model, nn.DataParallel) else f"distributed_type {kind.value}"
        raise ValueError(f"Each process must hold all weights, got {got}. Launch one process, or several under DDP.")
    backend = Replicated(model, perturb)
    if local and backend.has_static_graph:
        raise ValueError(
            "perturb_over='device' needs passes without a reduction, got DistributedDataParallel with static_graph=True, "
            "which cannot leave one out. Use perturb_over='batch', or static_graph=False."
        )
    return backend
