"""How good the one-step ascent is: Wu, Luo and Wunsch (2024), eq. 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_sharp.measure.base import AbstractQuantity, check_size, over_groups
from hf_sharp.measure.region import Region
from hf_sharp.measure.result import Found, Values, largest
from hf_sharp.measure.surface import Surface
from hf_sharp.methods.checks import above, whole


@dataclass(frozen=True)
class ApproximationRatio(AbstractQuantity):
    """The loss gap of one ascent step over that of the best point that a many-step ascent finds.

    ``E [L(w + d) - L(w)] / [L(w + d*) - L(w)]`` over groups of samples, each with its own d and d*. The best point is the
    one with the largest loss among those of the ascent and d itself, so that no ratio of a positive gap is above 1.

    The paper writes the expectation over single samples and leaves open which loss the shifts maximise. Here both are those
    of a group; ``m=1`` is the formula to the letter.

    Cost: ``steps + 1`` gradients and 3 forward passes per group.

    Args:
        rho: radius, > 0.
        steps: of the reference, >= 2; 20 in the paper.
        step: its length in radii; None: 2.5 / steps.
        m: samples per group; None: each batch of the loader.

    References:
        Wu, Luo and Wunsch, CR-SAM, AAAI 2024, eq. 2.
    """

    name: ClassVar[str] = "approximation_ratio"
    rho: float = 0.05
    steps: int = 20
    step: float | None = None
    m: int | None = None

    def __post_init__(self) -> None:
        above(0, "rho", self.rho, example="0.05")
        whole(2, "steps", self.steps)
        if self.step is not None:
            above(0, "step", self.step, example="0.1")
        if self.m is not None:
            whole(1, "m", self.m)

    def check(self, f: Surface) -> None:
        check_size(f, self.m)

    def take(self, f: Surface) -> Found:
        return over_groups(f, self.m, self._ratio)

    def _ratio(self, f: Surface) -> Values:
        here, ball = f.loss(), Region(self.rho).around(f)
        one = ball.climb(1)[0][0] - here
        best = largest([one, *(loss - here for loss, _ in ball.climb(self.steps, self.step))])
        return {"approximation_ratio": one / best if best else 1.0, "one_step_gap": one, "best_gap": best}
