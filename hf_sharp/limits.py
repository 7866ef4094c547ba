"""What no sharpness-aware method can run in, refused before training starts."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_sharp.methods import GAM, AbstractMethod, Decayed

if TYPE_CHECKING:
    from transformers import TrainingArguments

_GENERATING = ("GRPOTrainer", "RLOOTrainer")
_STEP_IN_BACKWARD = ("Lomo", "AdaLomo", "LayerWiseDummyOptimizer")


def check_trainer(kind: type, method: AbstractMethod) -> None:
    """Raises ValueError for Trainers of TRL whose passes over a batch would see different samples, or that lack what a
    method needs.

    Args:
        kind: the Trainer's class.
        method: what it shall train with.
    """
    for parent in kind.__mro__:
        if parent.__module__.partition(".")[0] != "trl":
            continue
        if parent.__name__ in _GENERATING:
            raise ValueError(
                f"All passes of a step must see the same samples, got TRL's {parent.__name__}, which generates them inside "
                "the step. Train on samples generated beforehand, e.g. with SFTTrainer or DPOTrainer."
            )
        if "add_fused_lm_head" in vars(sys.modules[parent.__module__]):
            _check_second_derivative(method, f"the fused output layer of TRL's {parent.__name__}")


def check_loss(loss: object, method: AbstractMethod) -> None:
    """Raises ValueError for losses of sentence-transformers with a gradient cache, where a second derivative is needed.

    Args:
        loss: the Trainer's; a module, or a mapping of them.
        method: what it shall train with.
    """
    given = loss.values() if isinstance(loss, Mapping) else [loss]
    for module in (inner for outer in given if isinstance(outer, nn.Module) for inner in outer.modules()):
        names = [c.__name__ for c in type(module).__mro__ if c.__module__.partition(".")[0] == "sentence_transformers"]
        if any(name.startswith("Cached") for name in names) and vars(module).get("uses_gradient_cache", True):
            _check_second_derivative(method, f"{type(module).__name__}, with a backward of its own,")


def check_training(
    method: AbstractMethod,
    args: TrainingArguments,
    optimizer: Optimizer | None,
    optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None,
) -> None:
    """Raises ValueError for training arguments that a method cannot run in."""
    from transformers.training_args import OptimizerNames  # takes seconds, for which SharpStep shall not wait

    classes: list[type] = [] if optimizer is None else [type(optimizer)]
    classes += [] if optimizer_cls_and_kwargs is None else [optimizer_cls_and_kwargs[0]]
    check_optimizer(classes, OptimizerNames(args.optim).value if optimizer is None else "")
    if args.n_gpu > 1:
        raise ValueError(
            f"One process must train on one device, got {args.n_gpu} GPUs under nn.DataParallel. "
            "Launch one process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0."
        )
    _check_double_backward(args, method)
    check_decay(method, [args.weight_decay], "in the training arguments")


def check_decay(method: AbstractMethod, decays: Sequence[float], where: str) -> None:
    """Raises ValueError where the weights would decay twice.

    Args:
        method: what trains.
        decays: the optimizer's.
        where: they were given.
    """
    found = next((decay for decay in decays if decay), None)
    if found is not None and any(isinstance(part, Decayed) for part in method.parts()):
        raise ValueError(
            f"With Decayed the optimizer must not decay the weights too, got weight_decay={found!r} {where}. Set it to 0."
        )


def warn_of_rounding(weights: Sequence[Tensor]) -> None:
    """Warn once where weights are kept in a precision that rounds most of a shift away."""
    low = [w.dtype for w in weights if w.dtype in (torch.bfloat16, torch.float16)]
    if low:
        warnings.warn(
            f"Weights should be kept in float32, got {len(low)} of {len(weights)} in {low[0]}, which rounds most of a shift "
            "away; the logs have sharpness/shift_norm_applied beside sharpness/shift_norm. Load the model in float32 and "
            "train with bf16=True (autocast), or with DeepSpeed, which keeps float32 masters (not for "
            "perturb_over='device').",
            stacklevel=4,
        )


def has_second_derivative(method: AbstractMethod) -> bool:
    """Whether a part of the method asks for exact Hessian products."""
    return any(isinstance(part, GAM) and part.hvp == "exact" for part in method.parts())


def check_optimizer(classes: Sequence[type], name: str = "") -> None:
    """Raises ValueError for optimizers that step inside the backward.

    Args:
        classes: those that the loop uses.
        name: what `TrainingArguments.optim` calls it.
    """
    found = next((kind.__name__ for given in classes for kind in given.__mro__ if kind.__name__ in _STEP_IN_BACKWARD), None)
    if found is not None or name in ("lomo", "adalomo") or name.endswith("layerwise"):
        raise ValueError(
            f"The optimizer must step after the backward, got {found or name!r}, which steps inside it, before a second "
            "pass could run. Choose another one, e.g. optim='adamw_torch'."
        )


def _check_double_backward(args: TrainingArguments, method: AbstractMethod) -> None:
    given = args.gradient_checkpointing_kwargs
    kwargs = given if isinstance(given, dict) else {}
    got = None
    if args.torch_compile:
        got = "torch_compile=True"
    elif args.gradient_checkpointing and kwargs.get("use_reentrant", False):
        got = "reentrant gradient checkpointing"
    if got is not None:
        _check_second_derivative(method, got)


def _check_second_derivative(method: AbstractMethod, got: str) -> None:
    if has_second_derivative(method):
        raise ValueError(f"hvp='exact' needs a second derivative, which {got} does not have. Use GAM(hvp='difference').")


def check_scalar(loss: object) -> None:
    """Raises ValueError unless a loss is a tensor with one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"The loss must be one number, got {got}. Reduce it, e.g. with loss.mean().")
