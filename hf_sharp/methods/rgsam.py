"""R-GSAM, named in Liu et al. (2022)."""

from __future__ import annotations

from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod, ascend, without
from hf_sharp.methods.checks import at_least
from hf_sharp.methods.noise import kernel_noise
from hf_sharp.methods.schedules import Radius, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class RGSAM(AbstractMethod):
    """R-SAM's perturbation with GSAM's decomposition. The form is inferred.

    ``g' = g(w + delta_0)``, ``g_p = g(w + e)`` as in `RSAM`, ``d = g_p - alpha g'_perp`` with the part of g' orthogonal to
    g_p.

    Cost: 2 passes; memory for one gradient, delta_0 and the old weights.

    Suggested values: none are published. ``RGSAM(rho=0.05, gamma=0.0025, lam=2.0, alpha=0.3)`` is R-SAM's here, with the
    alpha that stands unused in its authors' code.

    Caveats: the R-SAM paper (section 4.5) reports results under this name without giving an algorithm or code; this is what
    its text suggests. As in R-SAM the first pass runs at w + delta_0.

    Args:
        rho: radius, >= 0.
        gamma: standard deviation of the noise relative to the norm of each output unit, >= 0; e.g. 0.0025.
        lam: the weight of the gradient against the noise, >= 0; e.g. 2.0.
        alpha: weight of the orthogonal part, >= 0; e.g. 0.3.

    References:
        Liu et al., Random Sharpness-Aware Minimization, NeurIPS 2022, section 4.5.
    """

    rho: Radius
    gamma: Radius
    lam: float
    alpha: float

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        radius("gamma", self.gamma)
        at_least(0, "lam", self.lam, example="2.0")
        at_least(0, "alpha", self.alpha, example="0.3")

    def first(self, f: AbstractOracle) -> Vector:
        return kernel_noise(f, self.gamma)

    def direction(self, f: AbstractOracle) -> Vector:
        delta = self.first(f) if f.first is None else f.first
        g = f(delta).grad
        gp = f(ascend(delta + self.lam * g, self.rho)).grad
        return gp - self.alpha * without(g, gp)
