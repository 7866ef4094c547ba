"""Curvature and slope along a direction from three losses: Wu, Luo and Wunsch (2024), Theorem 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.result import Found, UndefinedError, mean_and_error
from hf_sharp.measure.surface import Surface
from hf_sharp.methods import unit
from hf_sharp.methods.checks import above, one_of, whole
from hf_sharp.vector import Vector

DIRECTIONS = ("random", "gradient")


@dataclass(frozen=True)
class ThreeLosses(AbstractQuantity):
    """``v'Hv`` and ``v'g`` from the losses at w, w + r v and w - r v: forward passes only.

    ``v'Hv = (L+ + L- - 2 L) / r^2`` and ``v'g = (L+ - L-) / 2r``. For random v from N(0, I) the mean of ``v'Hv`` is the
    trace of the Hessian, and that of ``(v'g)^2`` the squared gradient norm. Along the gradient v is g / |g|.

    The second difference loses digits: ``rounding`` in the result is ``4 eps |L| / r^2``, what the losses' rounding can make
    of ``v'Hv``. Where it is not small, use a larger radius or float64.

    Cost: ``2 draws + 1`` forward passes; along the gradient 3 and one gradient.

    Args:
        radius: the length ``|r v|``, > 0.
        direction: ``"random"`` or ``"gradient"``.
        draws: how many random v, >= 2; read for random directions. The standard error is over them; that of ``(v'g)^2``,
            which is skewed, needs a hundred or more to be trusted.

    References:
        Wu, Luo and Wunsch, CR-SAM, AAAI 2024, Theorem 1.
    """

    name: ClassVar[str] = "three_losses"
    radius: float = 0.1
    direction: str = "random"
    draws: int = 20

    def __post_init__(self) -> None:
        above(0, "radius", self.radius, example="0.1")
        one_of(DIRECTIONS, "direction", self.direction)
        whole(2, "draws", self.draws)

    @torch.no_grad()
    def take(self, f: Surface) -> Found:
        here = f.loss()
        eps = max(torch.finfo(w.dtype).eps for w in f.space.like)
        if self.direction == "gradient":
            g = f().grad.perturbed()
            if float(g.norm()) == 0.0:
                raise UndefinedError(
                    "three_losses along the gradient need one that is not zero, got 0 at the weights. "
                    "Use direction='random'."
                )
            vhv, vg = self._differences(f, unit(g).stored(), 1.0, here)
            return Found({"vhv": vhv, "vg": vg, "rounding": 4 * eps * abs(here) / self.radius**2, "loss": here})
        curvatures, slopes, rounding = [], [], 0.0
        for draw in range(self.draws):
            v = f.normal(draw)
            norm = float(v.norm())
            vhv, vg = self._differences(f, v, norm, here)
            curvatures.append(vhv)
            slopes.append(vg)
            rounding = max(rounding, 4 * eps * abs(here) * (norm / self.radius) ** 2)
        curvature, slope = mean_and_error(curvatures), mean_and_error([s**2 for s in slopes])
        return Found(
            {"vhv": curvature[0], "vg_squared": slope[0], "rounding": rounding, "loss": here},
            {"vhv": curvature[1], "vg_squared": slope[1]},
            {"vhv": curvatures, "vg": slopes},
        )

    def _differences(self, f: Surface, v: Vector, norm: float, here: float) -> tuple[float, float]:
        r = self.radius / norm
        ahead, behind = f.loss(r * v), f.loss(-r * v)
        return (ahead + behind - 2 * here) / r**2, (ahead - behind) / (2 * r)
