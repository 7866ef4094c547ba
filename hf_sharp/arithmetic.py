"""Arithmetic of numbers and tensors that waits for no device and writes where it is told."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor


def number(x: Scalar | int) -> Scalar:
    """A Python number where reading it does not wait for a device, else the tensor itself."""
    if isinstance(x, Tensor):
        return x.item() if x.device.type == "cpu" else x
    return float(x)


def magnitude(x: Scalar) -> Scalar:
    """The absolute value of a number."""
    return x.abs() if isinstance(x, Tensor) else abs(x)


def times(x: Tensor, scale: Scalar, into: Tensor | None = None) -> Tensor:
    """``scale * x``; ``x`` itself where the scale is the Python number 1."""
    return x if isinstance(scale, float) and scale == 1.0 else torch.mul(x, scale, out=into)


def plus_scaled(x: Tensor, y: Tensor, scale: Scalar, into: Tensor | None = None) -> Tensor:
    """``x + scale * y``, without reading a scale that lives on a device."""
    if isinstance(scale, float):
        return torch.add(x, y, alpha=scale, out=into)
    return torch.addcmul(x, y, scale.to(y.dtype), out=into)


def scaled_sum(x: Tensor | None, a: Scalar, y: Tensor | None, b: Scalar, into: Tensor | None) -> Tensor | None:
    """``a x + b y``, in ``into`` if there is one; it may be x or y itself, and may come back as they are."""
    if x is None or y is None:
        return times(x, a, into) if x is not None else None if y is None else times(y, b, into)
    if isinstance(a, float) and a == 1.0:
        return plus_scaled(x, y, b, into)
    scaled = torch.mul(x, a, out=None if into is y else into)
    return plus_scaled(scaled, y, b, scaled if into is None else into)


def wide(x: Tensor) -> Tensor:
    """A tensor in a precision that sums do not overflow in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
