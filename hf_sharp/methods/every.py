"""A method on every k-th step."""

from __future__ import annotations

from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod
from hf_sharp.methods.checks import instance, whole
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class Every(AbstractMethod):
    """``method`` on the steps with ``(step - offset) % k == 0``, ``otherwise`` on the others.

    Cost: ``1 + (n - 1) / k`` passes on average for a method of n, and that of ``otherwise``.

    Suggested values: GAM on every 10th step does about what GAM on all steps does, with a larger alpha (Zhang et al.,
    section 5.5); SAM+GAM so is ``Every(10, GAM(base=SAM()), otherwise=SAM())``.

    Caveats: for SAM alone the same saving costs much of the gain (Liu et al.); `During` is the better way to save there.
    ``sharpness/...`` in the logs is about the step that is logged: with ``logging_steps`` a multiple of k they show always
    the same kind of step.

    Args:
        k: the period in optimizer steps, >= 1.
        method: what runs on every k-th step.
        offset: which of each k steps it is, counted from 0.
        otherwise: what runs on the others; None: the plain gradient.

    References:
        Zhang et al., CVPR 2023, section 5.5. Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR
        2022.
    """

    k: int
    method: AbstractMethod
    offset: int = 0
    otherwise: AbstractMethod | None = None

    def __post_init__(self) -> None:
        whole(1, "k", self.k)
        instance(AbstractMethod, "method", self.method, example="SAM(rho=0.05)")
        whole(0, "offset", self.offset)
        if self.otherwise is not None:
            instance(AbstractMethod, "otherwise", self.otherwise, example="SAM(rho=0.05)")

    def first(self, f: AbstractOracle) -> Vector | None:
        now = self._now(f)
        return None if now is None else now.first(f)

    def direction(self, f: AbstractOracle) -> Vector:
        now = self._now(f)
        return f().grad if now is None else now.direction(f)

    def _now(self, f: AbstractOracle) -> AbstractMethod | None:
        return self.method if (f.step - self.offset) % self.k == 0 else self.otherwise
