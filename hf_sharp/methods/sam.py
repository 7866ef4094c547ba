"""SAM, Foret et al. (2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod, ascend
from hf_sharp.methods.checks import between
from hf_sharp.methods.schedules import Radius, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class SAM(AbstractMethod):
    """Sharpness-aware minimization: the gradient at the worst nearby point.

    ``d = g(w + e)`` with ``e = rho sign(g) |g|^(q-1) / |g|_q^(q-1)``, ``1/p + 1/q = 1``; for p = 2 ``e = rho g / |g|``.

    Cost: 2 passes; memory for one gradient and the old weights.

    Suggested values: rho 0.05 on CIFAR-10 and for a ResNet-50 on ImageNet, 0.1 on CIFAR-100 and, with Adam, on IWSLT'14
    (Kwon et al., 2021, sections 5.2 and 5.3); 0.02 to 0.2 where nothing is known. p = 2 does best (section 2 there).

    Caveats: the radius is that of all parameters together, so the same rho moves each weight of a larger model less, and
    what rho is best depends on how many samples share a perturbation. Weight decay, as the optimizer does it, stays outside
    the perturbation (`Decayed` puts it inside). At p = 1 the whole radius is on the largest entries of the gradient, ties
    share it.

    Args:
        rho: radius of the perturbation in the p-norm, >= 0.
        p: the norm, from 1 to infinity (``float("inf")``; ``.inf`` in YAML).

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021. The step for any p:
        Kwon et al., ICML 2021, section 2.
    """

    rho: Radius = 0.05
    p: float = 2.0

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        between(1, math.inf, "p", self.p, example="2.0")

    def direction(self, f: AbstractOracle) -> Vector:
        return f(ascend(f().grad, self.rho, self.p)).grad
