"""Where weights and gradients live."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.amp import GradScaler
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from hf_sharp.backends.base import AbstractBackend
from hf_sharp.backends.fsdp import FullySharded
from hf_sharp.backends.replicated import Replicated
from hf_sharp.parameters import Perturb, describe
from hf_sharp.versions import check_deepspeed

_KNOWN = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
)

__all__ = ["AbstractBackend", "FullySharded", "Replicated", "check", "choose"]


def check(model: nn.Module, accelerator: Accelerator | None, perturb: Perturb, *, local: bool, exact: bool) -> None:
    """Refuses what no backend can do, before the loop wraps the model.

    Args:
        model: the module to train, wrapped already or not.
        accelerator: the loop's.
        perturb: see `describe`.
        local: whether each rank shall have its own perturbation.
        exact: whether the method needs a second derivative.

    Raises:
        ImportError: DeepSpeed is of a version whose private names were not tried.
        ValueError: there is no backend for this.
    """
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise ValueError(f"The model must be a torch.nn.Module, got {got}. Pass SharpStep(model, optimizer, method).")
    kind = DistributedType.NO if accelerator is None else accelerator.distributed_type
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "Each process must train on one device, got nn.DataParallel. Launch one process per device under DDP."
        )
    if kind not in _KNOWN:
        raise ValueError(
            f"distributed_type must be one of {', '.join(known.value for known in _KNOWN)}, got {kind.value}, for which "
            "there is no backend. Launch under DDP, FSDP2 or DeepSpeed, on CUDA GPUs or CPUs."
        )
    plugin = accelerator.state.fsdp_plugin if accelerator is not None and kind == DistributedType.FSDP else None
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or (
        plugin is not None and plugin.fsdp_version == 1
    ):
        raise ValueError("FSDP must be of version 2, got version 1. Set fsdp_version: 2 in the accelerate config.")
    if kind == DistributedType.DEEPSPEED:
        assert accelerator is not None
        check_deepspeed()  # before its private names are imported
        from hf_sharp.backends.deepspeed import check_config
        from hf_sharp.backends.zero import shape_of

        sharded = "ZeRO-3" if check_config(accelerator) == 3 else None
        describe(model, perturb, shape_of)
    else:
        sharded = "FSDP2" if plugin is not None or _has_shards(model) else None
        describe(model, perturb)
    if local and sharded is not None:
        raise ValueError(
            f"perturb_over='device' needs all weights on each device, got {sharded}: its ranks gather the weights from each "
            "other, so that all stand at the same point. Use perturb_over='batch' or 'micro_batch', or DDP."
        )
    if exact and sharded is not None:
        raise ValueError(f"hvp='exact' needs all weights on each device, got {sharded}. Use GAM(hvp='difference').")


def choose(
    model: nn.Module,
    accelerator: Accelerator | None,
    perturb: Perturb,
    scaler: GradScaler | None = None,
    *,
    local: bool = False,
) -> AbstractBackend:
    """The backend for a model as the loop calls it.

    Args:
        model: the module to train, as the loop calls it.
        accelerator: the loop's.
        perturb: see `describe`.
        scaler: the loop's.
        local: whether each rank shall have its own perturbation.

    Raises:
        ValueError: there is none for this kind of training.
    """
    if accelerator is not None and accelerator.distributed_type == DistributedType.DEEPSPEED:
        from hf_sharp.backends.deepspeed import DeepSpeed

        return DeepSpeed(accelerator, perturb, local=local)
    each = accelerator is not None and bool(accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False))
    if _has_shards(model):
        return FullySharded(model, perturb, scaler, sync_each_batch=each)
    return Replicated(model, perturb, scaler, sync_each_batch=each, local=local)


def _has_shards(model: nn.Module) -> bool:
    """Whether FSDP2 holds the model; after an evaluation its root's parameters are whole for a while."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(p, DTensor) for p in model.parameters()
    )
