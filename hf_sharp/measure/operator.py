"""The Hessian of a surface as a linear operator of curvlinops, and through it of SciPy."""

from __future__ import annotations

import math

import torch
from curvlinops._torch_base import PyTorchLinearOperator
from torch import Tensor
from torch.nn.utils import get_total_norm

from hf_sharp.measure.result import UndefinedError
from hf_sharp.measure.sharding import cut, joined
from hf_sharp.measure.surface import Surface
from hf_sharp.vector import Parts, Vector


class HessianOperator(PyTorchLinearOperator):
    """``v -> H v`` on the perturbed weights, flattened piece after piece.

    Args:
        f: the surface whose Hessian it is.
        guarded: whether a product that is not finite raises; costs about a hundredth of a product.
    """

    SELF_ADJOINT = True

    def __init__(self, f: Surface, guarded: bool = False) -> None:
        shapes = [f.space.pieces[i].shape for i in f.counted]
        super().__init__(shapes, shapes)
        self._f, self._guarded = f, guarded

    @property
    def device(self) -> torch.device:
        return self._f.device

    @property
    def dtype(self) -> torch.dtype:
        return self._f.space.like[self._f.counted[0]].dtype

    def _matmat(self, X: list[Tensor]) -> list[Tensor]:
        columns = [self._times([x[..., k] for x in X]) for k in range(X[0].shape[-1])]
        if len(columns) == 1:
            return [part.unsqueeze(-1) for part in columns[0]]
        return [torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True)]

    def _times(self, given: list[Tensor]) -> list[Tensor]:
        f = self._f
        parts: Parts = [None] * len(f.space.pieces)
        for i, x in zip(f.counted, given, strict=True):
            parts[i] = x if f.backend.whole else cut(f.space.pieces[i], f.space.like[i], x)
        product = list(f.hessian_vector(Vector(f.space, parts)).tensors())
        whole = [_whole(f, i, product[i]) for i in f.counted]
        if self._guarded:
            check_finite(float(get_total_norm(whole)))
        return whole


def check_finite(measure: float) -> None:
    """Raises `UndefinedError` where a number that a whole product went into is not finite."""
    if not math.isfinite(measure):
        raise UndefinedError(
            "Products with the Hessian must be finite, got one that is not, at weights whose loss is. "
            "Measure quantities that need the loss alone, e.g. 'sharpness', or take the model in float64."
        )


def _whole(f: Surface, i: int, part: Tensor | None) -> Tensor:
    if not f.backend.whole:
        return joined(f.space, i, part)
    return torch.zeros_like(f.space.like[i]) if part is None else part


def flat(f: Surface, v: Vector) -> Tensor:
    """The perturbed parts of a vector, one after the other; shape (dimension,)."""
    parts = list(v.tensors())
    return torch.cat([joined(f.space, i, parts[i]).reshape(-1) for i in f.counted])
