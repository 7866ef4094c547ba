"""GSAM, Zhuang et al. (2022)."""

from __future__ import annotations

from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod, ascend, without
from hf_sharp.methods.checks import at_least
from hf_sharp.methods.schedules import FollowLR, Radius, radius, resolved
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class GSAM(AbstractMethod):
    """Surrogate gap guided SAM: descends the perturbed loss, and ascends the loss where that does not hurt.

    ``g' = g(w + rho g / |g|)``, ``d = g' - alpha g_perp``, where g_perp is the part of g orthogonal to g'.

    Cost: 2 passes; memory for one gradient and the old weights.

    Suggested values (table 4, rho from the peak learning rate to the lowest): ResNet-50 and -101 rho 0.04 to 0.02, alpha
    0.01; ViT-S/32 0.6 to 0, 0.4; ViT-S/16 0.6 to 0, 1.0; ViT-B/32 0.6 to 0.1, 0.6; ViT-B/16 0.6 to 0.2, 0.4. All at a batch
    of 4,096 with a perturbation per device.

    Caveats: alpha has to fit the model, its best values lie a hundred times apart, and the ViTs' radii are far too large for
    a small network. With ``alpha=0`` and a constant rho it is SAM. A radius that follows the learning rate needs a scheduler
    that lowers it; during warm-up it starts at ``rho_min``.

    Args:
        rho: radius, >= 0; at the peak learning rate where ``rho_min`` is given.
        alpha: weight of the orthogonal part, >= 0.
        rho_min: the radius where the learning rate is 0; between, it follows the learning rate (`FollowLR`). None: rho as
            it is.

    References:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022, Algorithm 1.
    """

    rho: Radius = 0.05
    alpha: float = 0.4
    rho_min: float | None = None

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        at_least(0, "alpha", self.alpha, example="0.4")
        if self.rho_min is not None:
            at_least(0, "rho_min", self.rho_min, example="0.02")

    def direction(self, f: AbstractOracle) -> Vector:
        rho = self.rho if self.rho_min is None else FollowLR(resolved(self.rho, f.clock), self.rho_min).at(f.clock)
        g = f().grad
        gp = f(ascend(g, rho)).grad
        return gp - self.alpha * without(g, gp)
