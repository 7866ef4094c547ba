"""What no sharpness-aware method can run in, refused before training starts."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer
from transformers.training_args import OptimizerNames

from hf_sharp.methods import GAM, AbstractMethod, Decayed

_STEP_IN_BACKWARD = ("Lomo", "AdaLomo", LayerWiseDummyOptimizer.__name__)


def check_training(
    method: AbstractMethod,
    args: TrainingArguments,
    optimizer: Optimizer | None,
    optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None,
) -> None:
    """Raises ValueError for training arguments that a method cannot run in."""
    _check_optimizer(args, optimizer, optimizer_cls_and_kwargs)
    if args.n_gpu > 1:
        raise ValueError(
            f"One process must train on one device, got {args.n_gpu} GPUs under nn.DataParallel. "
            "Launch one process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0."
        )
    for part in method.parts():
        if isinstance(part, GAM) and part.hvp == "exact":
            _check_double_backward(args)
        if isinstance(part, Decayed) and args.weight_decay:
            raise ValueError(
                f"With Decayed the optimizer must not decay the weights too, got weight_decay={args.weight_decay!r} in the "
                "training arguments. Set it to 0."
            )


def _check_optimizer(
    args: TrainingArguments,
    optimizer: Optimizer | None,
    optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None,
) -> None:
    name = OptimizerNames(args.optim).value
    classes = [] if optimizer is None else [kind.__name__ for kind in type(optimizer).__mro__]
    if optimizer_cls_and_kwargs is not None:
        classes += [kind.__name__ for kind in optimizer_cls_and_kwargs[0].__mro__]
    found = next((kind for kind in classes if kind in _STEP_IN_BACKWARD), None)
    if found is None and (optimizer is not None or not (name in ("lomo", "adalomo") or name.endswith("layerwise"))):
        return
    raise ValueError(
        f"The optimizer must step after the backward, got {found or name!r}, which steps inside it, before a second pass "
        "could run. Choose another one, e.g. optim='adamw_torch'."
    )


def _check_double_backward(args: TrainingArguments) -> None:
    given = args.gradient_checkpointing_kwargs
    kwargs = given if isinstance(given, dict) else {}
    got = None
    if args.torch_compile:
        got = "torch_compile=True"
    elif args.gradient_checkpointing and kwargs.get("use_reentrant", False):
        got = "reentrant gradient checkpointing"
    if got is not None:
        raise ValueError(f"hvp='exact' needs a second derivative, which {got} does not have. Use GAM(hvp='difference').")
