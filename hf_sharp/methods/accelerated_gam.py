"""Accelerated GAM, Zhang et al. (2023), appendix D."""

from __future__ import annotations

from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod, ascend, without
from hf_sharp.methods.checks import at_least, between, flag
from hf_sharp.methods.schedules import Radius, as_number, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class AcceleratedGAM(AbstractMethod):
    """GAM from gradients alone, as the authors' code computes it.

    With ``u(x) = x / |x|``::

        g0 = g(w)             g1 = g(w + step u(g0))
        w2 = w + rho u(g1 - g0)
        g2 = g(w2)            g3 = g(w2 + step u(g2))
        h+ = a g1 + (1 - a) g3
        h- = b g0 + (1 - b) g2
        d  = h+ - gamma (the part of h- orthogonal to h+)

    Cost: 4 passes; memory for three gradients, the shift and the old weights.

    Suggested values: the released code's (rho, step, a, b, gamma) are 0.2, 0.02, 0.6, 0.5, 0.03 for ResNets on CIFAR-100,
    which are the defaults; 0.2, 0.04, 0.5, 0.3, 0.05 for PyramidNets there; on CIFAR-10 0.2, 0.03, 0.1, 0.1 and 0.05 for
    ResNets, 0.03 for PyramidNets.

    Caveats: rho and gamma do not carry over from `GAM`. With a = 1 and b = 1 it is GSAM with radius ``step``, at twice the
    cost. The paper's Algorithm 2 weighs g0 by b, the released code by 1: ``released=True``.

    Args:
        rho: radius, >= 0.
        step: the length of the differences, >= 0.
        a: weight of g1 against g3, from 0 to 1.
        b: weight of g0 against g2, from 0 to 1.
        gamma: weight of the orthogonal part, >= 0.
        released: whether g0 has the weight 1 in h-, as in the released code, instead of b.

    References:
        Zhang et al., CVPR 2023, Algorithm 2 (appendix D).
    """

    rho: Radius = 0.2
    step: float = 0.02
    a: float = 0.6
    b: float = 0.5
    gamma: Radius = 0.03
    released: bool = False

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        at_least(0, "step", self.step, example="0.02")
        between(0, 1, "a", self.a, example="0.6")
        between(0, 1, "b", self.b, example="0.5")
        radius("gamma", self.gamma)
        flag("released", self.released)

    def direction(self, f: AbstractOracle) -> Vector:
        g0 = f().grad
        g1 = f(ascend(g0, self.step)).grad
        e = ascend(g1 - g0, self.rho)
        g2 = f(e).grad
        g3 = f(e + ascend(g2, self.step)).grad
        h_plus = (self.a * g1 + (1 - self.a) * g3).stored()
        h_minus = (1.0 if self.released else self.b) * g0 + (1 - self.b) * g2
        return h_plus - as_number(self.gamma) * without(h_minus, h_plus)
