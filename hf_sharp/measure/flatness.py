"""Zeroth- and first-order flatness: Zhang et al. (2023), Definitions 3.1 and 4.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.region import Ball, Region, highest
from hf_sharp.measure.result import Found, largest
from hf_sharp.measure.surface import Surface
from hf_sharp.methods import unit
from hf_sharp.methods.checks import above, whole
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class Flatness(AbstractQuantity):
    """``R0 = max L - L(w)`` and ``R1 = rho max |grad L|`` over the ball of radius rho.

    Both maxima are those of ascents, and lower bounds: R0 climbs the loss, R1 the gradient's norm, along
    ``H g / |g|``; R1 also looks at the gradients on R0's way. R1 >= R0 holds for the true maxima (Proposition 4.2), and at a
    minimum of a quadratic ``R1 / rho^2`` is the largest eigenvalue of the Hessian (Lemma 4.1).

    Cost: per start, about ``3 steps`` gradients or Hessian products.

    Args:
        rho: radius, > 0; 0.1 in the paper's section 5.1.
        steps: of each ascent, >= 1.
        step: length of each in radii; None: 2.5 / steps, at most 1.
        starts: the first one is at the weights, the others are random points of the ball, >= 1. At a minimum the gradient
            at the weights is zero, so use at least 2.

    References:
        Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization, CVPR 2023.
    """

    name: ClassVar[str] = "flatness"
    rho: float = 0.1
    steps: int = 10
    step: float | None = None
    starts: int = 2

    def __post_init__(self) -> None:
        above(0, "rho", self.rho, example="0.1")
        whole(1, "steps", self.steps)
        whole(1, "starts", self.starts)
        if self.step is not None:
            above(0, "step", self.step, example="0.1")

    def check(self, f: Surface) -> None:
        f.check_products()

    def take(self, f: Surface) -> Found:
        with torch.no_grad():
            here, ball = f.loss(), Region(self.rho).around(f)
            starts = [None, *(ball.random(draw, surface=False) for draw in range(1, self.starts))]
            gaps, norms = [], []
            for start in starts:
                visited = ball.climb(self.steps, self.step, start)
                best, shift = highest(visited)
                gaps.append(best - here)
                norms += [*self._steepen(f, ball, start), float(f(shift).grad.perturbed().norm())]
        r0, r1 = largest([0.0, *gaps]), self.rho * largest(norms)
        return Found({"r0": r0, "r1": r1, "r1_over_rho_squared": r1 / self.rho**2, "loss": here})

    def _steepen(self, f: Surface, ball: Ball, start: Vector | None) -> list[float]:
        """The gradient norms that ascent on the gradient norm visits."""
        length = self.rho * (min(1.0, 2.5 / self.steps) if self.step is None else self.step)
        e, norms = start, []
        for _ in range(self.steps):
            g = f(e).grad.perturbed()
            norms.append(float(g.norm()))
            move = ball.steepest(f.hessian_vector(unit(g), e), length)
            e = ball.inside((move if e is None else e + move).stored())
        return [*norms, float(f(e).grad.perturbed().norm())]
