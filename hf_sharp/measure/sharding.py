"""Whole tensors of weights that several processes hold in pieces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_sharp.vector import Piece, Space


def cut(piece: Piece, like: Tensor, full: Tensor) -> Tensor:
    """What this process holds of a whole tensor, in the shape in which it holds it."""
    return full.reshape(-1)[piece.start : piece.stop].reshape(like.shape)


def joined(space: Space, i: int, part: Tensor | None) -> Tensor:
    """The whole tensor of a piece, on every process; a missing part is zero. All processes must ask."""
    piece, like = space.pieces[i], space.like[i]
    full = torch.zeros(math.prod(piece.shape), dtype=like.dtype, device=space.device)
    if part is not None and (space.counted is None or space.counted[i]):
        full[piece.start : piece.stop] = part.reshape(-1)
    return space.total(full, "sum").view(piece.shape)


def check_groups(whole: bool) -> None:
    """Raises ValueError where processes cannot look at samples of their own."""
    if not whole:
        raise ValueError(
            "Groups of samples need all weights in each process, got sharded ones, which are at one place at a time. "
            "Measure the sharpness of all samples, m=None."
        )


def check_exact(whole: bool) -> None:
    """Raises ValueError where Hessian products cannot be exact."""
    if not whole:
        raise ValueError("hvp='exact' needs all weights in each process, got sharded ones. Use hvp='difference'.")
