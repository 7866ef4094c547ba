"""What makes a model's loss a function of its weights alone: modes, buffers, random streams and gradients held still."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from transformers import PreTrainedModel

from hf_sharp.replay import Buffers, Streams

STATISTICS = ("running", "batch")
_RATES = ("dropout", "dropout_prob", "dropout_rate", "_drop", "_pdrop")


@contextmanager
def still(model: nn.Module, statistics: str) -> Iterator[None]:
    """The model in eval mode inside, and everything as it was outside: modes, gradients, buffers, random streams.

    Args:
        model: the module to hold still.
        statistics: what BatchNorm divides by. ``"running"``: its running averages, as in eval mode. ``"batch"``: the batch's
            own, as in training; the running averages do not move.
    """
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers, streams = Buffers(model), Streams.now(device)
    if model.training and has_dropout(model):
        warnings.warn(
            "Dropout is off while sharpness is measured: the loss must be a function of the weights.", stacklevel=4
        )
    try:
        model.eval()
        if statistics == "batch":
            for module in normalisers(model):
                module.train()
        for p, _ in gradients:
            p.grad = None
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for p, gradient in gradients:
            p.grad = gradient
        buffers.put_back()
        streams.rewind(device)


@contextmanager
def streams_kept(device: torch.device) -> Iterator[None]:
    """Random numbers that are drawn inside are not missing outside."""
    streams = Streams.now(device)
    try:
        yield
    finally:
        streams.rewind(device)


def normalisers(model: nn.Module) -> list[nn.Module]:
    """The layers that divide by a batch's statistics in training: BatchNorm and its relatives."""
    return [module for module in model.modules() if isinstance(module, _NormBase)]


def has_dropout(model: nn.Module) -> bool:
    """Whether a dropout layer, or a dropout that a transformers model's settings name, would zero anything."""
    if isinstance(model, PreTrainedModel) and any(
        key.endswith(_RATES) and isinstance(value, float) and value > 0 for key, value in model.config.to_dict().items()
    ):
        return True
    kinds = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
    return any(isinstance(module, kinds) and module.p > 0 for module in model.modules())


def same(a: float, b: float) -> bool:
    """Whether two losses are one number, up to what a device that adds up in no fixed order makes of it."""
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b)) or (a != a and b != b)


def check_precision(model: nn.Module) -> None:
    """Raises ValueError where a shift of the usual length would vanish in the weights' rounding."""
    for name, p in model.named_parameters():
        if p.requires_grad and p.dtype not in (torch.float32, torch.float64):
            kind = str(p.dtype).removeprefix("torch.")
            raise ValueError(
                f"Weights must be float32 or float64, got {kind} for {name!r}: a small shift vanishes in its rounding. "
                "Load the model with dtype=torch.float32."
            )
