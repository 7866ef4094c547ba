"""CR-SAM, Wu, Luo and Wunsch (2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_sharp.methods.base import AbstractMethod, ascend
from hf_sharp.methods.checks import at_least, flag
from hf_sharp.methods.schedules import Radius, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class CRSAM(AbstractMethod):
    """Curvature regularized SAM: SAM plus a penalty on the normalised curvature along the gradient.

    With ``e = rho g / |g|``, ``g+ = g(w + e)``, ``g- = g(w - e)``, ``d2 = g+ + g- - 2 g`` and ``d1 = g+ - g-``::

        d = g+ + alpha d2 + beta d1                     log=False, the released code
        d = g+ + alpha d2 / D2 + beta d1 / D1           log=True, the paper's eq. 7
            D2 = L+ + L- - 2 L,  D1 = L+ - L-

    Cost: 3 passes; memory for two gradients and the old weights. The two shifted passes run one after the other: the paper
    calls them parallel, but each fills a device by itself, and side by side they would need the weights twice.

    Suggested values: rho 0.1, alpha 0.1, beta 0.01, the released script's for ResNet-18 on CIFAR-100. The paper searched
    all three per model and asks for alpha > beta > 0 (eq. 5).

    Caveats: alpha and beta of the two forms are not interchangeable: the divisors D are small. The penalty is on the
    curvature along the gradient, not on the trace of Theorem 1. The log form has a guard: a term whose D is not above an
    estimate of the losses' rounding error, ``eps (|L+| + |L-| + 2 |L|)`` with the eps of their dtype, is left out in this
    step, since the logarithm of D has no gradient there; ``sharpness/crsam_d2_guard`` and ``sharpness/crsam_d1_guard`` in
    the logs count how often.

    Args:
        rho: radius, >= 0.
        alpha: weight of the second difference, >= 0.
        beta: weight of the first difference, >= 0.
        log: whether the terms are divided by the losses' differences.

    References:
        Wu, Luo and Wunsch, CR-SAM: Curvature Regularized Sharpness-Aware Minimization, AAAI 2024, eq. 7 and Algorithm 1.
    """

    rho: Radius = 0.1
    alpha: float = 0.1
    beta: float = 0.01
    log: bool = False

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        at_least(0, "alpha", self.alpha, example="0.1")
        at_least(0, "beta", self.beta, example="0.01")
        flag("log", self.log)

    def direction(self, f: AbstractOracle) -> Vector:
        here = f()
        e = ascend(here.grad, self.rho)
        plus, minus = f(e), f(-e)
        d2 = plus.grad + minus.grad - 2.0 * here.grad
        d1 = plus.grad - minus.grad
        if self.log:
            noise = torch.finfo(here.loss.dtype).eps * (plus.loss.abs() + minus.loss.abs() + 2 * here.loss.abs())
            d2 = _inverse(f, "crsam_d2_guard", plus.loss + minus.loss - 2 * here.loss, noise) * d2
            d1 = _inverse(f, "crsam_d1_guard", plus.loss - minus.loss, noise) * d1
        return plus.grad + self.alpha * d2 + self.beta * d1


def _inverse(f: AbstractOracle, name: str, difference: Tensor, noise: Tensor) -> Tensor:
    """``1 / difference``, or 0 where the difference is not above the noise, which is counted."""
    guarded = difference <= noise
    f.count(name, guarded)
    return torch.where(guarded, torch.zeros_like(difference), 1.0 / difference)
