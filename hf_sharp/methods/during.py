"""A method during a part of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_sharp.methods.base import AbstractMethod
from hf_sharp.methods.checks import between, instance
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class During(AbstractMethod):
    """``method`` while ``start <= step / steps < stop``, ``otherwise`` before and after.

    Cost: ``1 + (n - 1) (stop - start)`` passes on average for a method of n.

    Suggested values: SAM in the last part of training costs little and gains most of what SAM gains:
    ``During(SAM(), start=0.9)``.

    Caveats: it has to know the number of training steps: the Trainer says it, a loop passes ``SharpStep(..., steps=...)``. A
    run that ends early never gets to a late start; ``sharpness/passes`` in the logs shows when the method is on.

    Args:
        method: what runs during the part.
        start: the share of the training steps at which it begins, from 0 to 1.
        stop: the share at which it ends, from 0 to 1; 1 includes the last step.
        otherwise: what runs outside; None: the plain gradient.

    Raises:
        ValueError: start is not below stop.

    References:
        Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training, ICLR 2025.
    """

    method: AbstractMethod
    start: float = 0.0
    stop: float = 1.0
    otherwise: AbstractMethod | None = None
    uses_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        instance(AbstractMethod, "method", self.method, example="SAM(rho=0.05)")
        between(0, 1, "start", self.start, example="0.0")
        between(0, 1, "stop", self.stop, example="1.0")
        if not self.start < self.stop:
            raise ValueError(
                f"start must be below stop, got {self.start!r} and {self.stop!r}. Pass e.g. start=0.0, stop=1.0."
            )
        if self.otherwise is not None:
            instance(AbstractMethod, "otherwise", self.otherwise, example="SAM(rho=0.05)")

    def first(self, f: AbstractOracle) -> Vector | None:
        now = self._now(f)
        return None if now is None else now.first(f)

    def direction(self, f: AbstractOracle) -> Vector:
        now = self._now(f)
        return f().grad if now is None else now.direction(f)

    def _now(self, f: AbstractOracle) -> AbstractMethod | None:
        share = f.step / f.steps
        return self.method if self.start <= share and (share < self.stop or self.stop == 1) else self.otherwise
