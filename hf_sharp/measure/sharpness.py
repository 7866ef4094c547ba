"""Sharpness, worst case and average, and adaptive sharpness: Kwon et al. (2021), eq. 2 and 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_sharp.measure.base import AbstractQuantity, check_size, over_groups
from hf_sharp.measure.region import Region, highest
from hf_sharp.measure.result import Found, Values, mean_and_error
from hf_sharp.measure.surface import Surface
from hf_sharp.methods.checks import above, whole


@dataclass(frozen=True)
class Sharpness(Region, AbstractQuantity):
    """``max L(w + e) - L(w)`` over ``|T^-1 e|_p <= rho``, as an ascent finds it.

    The value is the largest gap at the points that the ascent visits: a lower bound of the maximum. With one step it is
    SAM's (or ASAM's) own estimate.

    Cost: ``steps`` gradients and one forward pass per group, and one more forward pass with several steps.

    Args:
        rho, p, adaptive, eta, scale, scale_biases: see `Region`. Usual radii: 0.05 (plain), 0.5 (adaptive).
        steps: of the ascent, >= 1.
        step: length of each in radii; None: 2.5 / steps, at most 1.
        m: the maximum is taken for each group of m samples and then averaged (m-sharpness); None: once for all samples.

    References:
        Kwon et al., ASAM, ICML 2021, eq. 2 and 4; Foret et al., SAM, ICLR 2021, section 4.1 (m-sharpness).
    """

    name: ClassVar[str] = "sharpness"
    rho: float = 0.05
    steps: int = 1
    step: float | None = None
    m: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, "steps", self.steps)
        if self.step is not None:
            above(0, "step", self.step, example="0.1")
        if self.m is not None:
            whole(1, "m", self.m)

    def check(self, f: Surface) -> None:
        if self.m is not None:
            check_size(f, self.m)

    def take(self, f: Surface) -> Found:
        if self.m is not None:
            return over_groups(f, self.m, self._gap)
        with torch.no_grad():
            return Found(self._gap(f))

    def _gap(self, f: Surface) -> Values:
        here = f.loss()
        best, _ = highest(self.around(f).climb(self.steps, self.step))
        return {"sharpness": best - here, "loss": here}


@dataclass(frozen=True)
class AverageSharpness(Region, AbstractQuantity):
    """``E L(w + e) - L(w)`` over e drawn evenly from the surface of the region, for p = infinity from its inside.

    At a quadratic with T = 1 and p = 2 it is ``rho^2 Tr(H) / 2n`` for n weights.

    Cost: ``draws + 1`` forward passes.

    Args:
        rho, p, adaptive, eta, scale, scale_biases: see `Region`.
        draws: how many e, >= 2; the standard error is over them.
    """

    name: ClassVar[str] = "average_sharpness"
    rho: float = 0.05
    draws: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(2, "draws", self.draws)

    def take(self, f: Surface) -> Found:
        with torch.no_grad():
            here, ball = f.loss(), self.around(f)
            gaps = [f.loss(ball.random(draw)) - here for draw in range(self.draws)]
        value, error = mean_and_error(gaps)
        return Found({"average_sharpness": value, "loss": here}, {"average_sharpness": error}, {"gaps": gaps})
