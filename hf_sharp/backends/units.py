"""Norms of output units, whole or cut into pieces on several ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_sharp.vector import Piece, Space, Vector


def unit_norms(space: Space, v: Vector) -> list[Tensor]:
    """Per piece the norm of each output unit, shaped to broadcast against the piece, where the pieces are whole."""
    norms = []
    for piece, part, like in zip(space.pieces, v.tensors(), space.like, strict=True):
        x = torch.zeros_like(like) if part is None else part
        axes = [axis for axis in range(x.ndim) if axis != piece.unit_axis]
        norms.append(torch.linalg.vector_norm(x, dim=axes, keepdim=True) if axes else x.abs())
    return norms


def sharded_unit_norms(everything: Sequence[Piece], space: Space, v: Vector) -> list[Tensor]:
    """Per piece, and per entry of it, the norm of the whole output unit that the entry belongs to.

    All units of all parameters travel in one collective: their number is small beside that of the weights.

    Args:
        everything: the parameters, whole, in the same order on all ranks.
        space: this rank's pieces of them.
        v: the vector.
    """
    device, dtype = space.scalars()
    sizes = [_units(piece) for piece in everything]
    starts = dict(zip([piece.name for piece in everything], torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False))
    squares = torch.zeros(sum(sizes), device=device, dtype=dtype)
    for piece, x in zip(space.pieces, space.own(list(v.tensors())), strict=True):
        if x is not None:
            here = squares.narrow(0, starts[piece.name], _units(piece))
            here.index_add_(0, _unit_of(piece, device), x.reshape(-1).to(device, dtype).square())
    norms = space.total(squares, "sum").sqrt()
    return [
        norms.narrow(0, starts[piece.name], _units(piece))[_unit_of(piece, device)].to(like).view(like.shape)
        for piece, like in zip(space.pieces, space.like, strict=True)
    ]


def _units(piece: Piece) -> int:
    return 1 if piece.unit_axis is None else piece.shape[piece.unit_axis]


def _unit_of(piece: Piece, device: torch.device) -> Tensor:
    """The number of the unit of each entry."""
    entries = torch.arange(piece.start, piece.stop, device=device)
    if piece.unit_axis is None:
        return entries.zero_()
    return entries.div_(math.prod(piece.shape[piece.unit_axis + 1 :]), rounding_mode="floor").remainder_(_units(piece))
