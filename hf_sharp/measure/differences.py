"""Hessian products as differences of gradients."""

from __future__ import annotations

import torch

from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@torch.no_grad()
def difference(f: AbstractOracle, v: Vector, step: float | None, shift: Vector | None) -> Vector:
    """``(g(w + h v) - g(w - h v)) / 2h``, at the weights or at ``w + shift``: two gradients.

    Args:
        f: where gradients are asked.
        v: of the product.
        step: the length of ``h v``; None: the cube root of the precision times the length of the weights.
        shift: where the Hessian is taken; None: at the weights.
    """
    norm = float(v.norm())
    if norm == 0:
        return v
    h = (usual_step(f) if step is None else step) / norm
    ahead, behind = (s * v if shift is None else shift + s * v for s in (h, -h))
    plus = f(ahead).grad.stored()
    return ((plus - f(behind).grad) / (2 * h)).stored().perturbed()


def usual_step(f: AbstractOracle) -> float:
    """The length at which the rounding of a difference and its curvature are of one size."""
    precision = max(torch.finfo(w.dtype).eps for w in f.weights.space.like)
    return float(precision ** (1 / 3) * f.weights.perturbed().norm())
