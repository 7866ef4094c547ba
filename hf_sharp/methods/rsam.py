"""R-SAM, Liu et al. (2022)."""

from __future__ import annotations

from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod, ascend
from hf_sharp.methods.checks import at_least, flag
from hf_sharp.methods.noise import kernel_noise
from hf_sharp.methods.schedules import Radius, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class RSAM(AbstractMethod):
    """Random SAM: the ascent starts from a randomly smoothed point.

    ``delta_0 = gamma z |w_j|``, ``g' = g(w + delta_0)``, ``d = g(w + e)`` with
    ``e = rho (delta_0 + lam g') / |delta_0 + lam g'|`` (eq. 7), or, without projection, ``e = delta_0 + rho g' / |g'|``
    (eq. 6). z is standard normal and ``|w_j|`` the norm of the output unit that an entry belongs to.

    Cost: 2 passes; memory for one gradient, delta_0 and the old weights.

    Suggested values: the authors' code for ViTs on ImageNet has lam = 2, ``gamma=Cosine(0.0005, 0.0025)`` and a rho that
    follows the learning rate from 2.5 to 1.5, with 16 images per perturbation. For ResNets start from SAM's rho; the paper's
    own values are in its appendix. Accuracy depends little on rho and lam (section 4.6).

    Caveats: the first pass runs at w + delta_0, so the logged loss and the BatchNorm statistics are those of the smoothed
    point. The mix depends on the size of the gradient: late in training delta_0, which is about ``gamma sqrt(fan-in)`` times
    as long as the weights, can outweigh ``lam g'``. The paper writes ``N(0, gamma^2 diag(|w_j|))``, which can be read as a
    variance of gamma^2 |w_j|; the authors' code scales the standard deviation, gamma |w_j|, and so does this class.
    Equal-shaped tensors get independent noise (in the authors' code they share it).

    Args:
        rho: radius, >= 0.
        gamma: standard deviation of the noise relative to the norm of each output unit, >= 0.
        lam: the weight of the (raw) gradient against the noise, >= 0; read where ``project`` is True.
        project: whether the whole shift is projected onto the sphere of radius rho.

    References:
        Liu et al., Random Sharpness-Aware Minimization, NeurIPS 2022, Algorithm 1.
    """

    rho: Radius = 0.05
    gamma: Radius = 0.0025
    lam: float = 2.0
    project: bool = True

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        radius("gamma", self.gamma)
        at_least(0, "lam", self.lam, example="2.0")
        flag("project", self.project)

    def first(self, f: AbstractOracle) -> Vector:
        return kernel_noise(f, self.gamma)

    def direction(self, f: AbstractOracle) -> Vector:
        delta = self.first(f) if f.first is None else f.first
        g = f(delta).grad
        if self.project:
            return f(ascend(delta + self.lam * g, self.rho)).grad
        return f(delta + ascend(g, self.rho)).grad
