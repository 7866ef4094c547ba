"""The scalars that the passes of one step leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_sharp.arithmetic import Scalar
from hf_sharp.vector import Vector


@dataclass
class Telemetry:
    """Scalars of the latest optimizer step, left on the device until somebody reads them.

    Attributes:
        observe: whether to take also what costs a look at the vectors; meant for steps that are logged.
        passes: forward-backward passes over the batch, Hessian-vector products included.
        counts: how often something happened that a method counts, since training began.
    """

    observe: bool = False
    passes: int = 0
    counts: dict[str, Tensor] = field(default_factory=dict)
    _grad_norm: Scalar | None = None
    _loss: Tensor | None = None
    _shifted: list[_Shifted] = field(default_factory=list)

    def begin(self, observe: bool) -> None:
        """Forget the passes of the step before."""
        self.observe, self.passes, self._grad_norm, self._loss, self._shifted = observe, 0, None, None, []

    def first(self, loss: Tensor, grad: Vector) -> None:
        """Note the first pass."""
        self.passes += 1
        if self.observe:
            self._loss, self._grad_norm = loss, grad.norm()

    def later(self, loss: Tensor, grad: Vector, first: Vector, shift: Vector, applied: Tensor) -> None:
        """Note a later pass; called on observed steps."""
        cos = grad.dot(first) / (grad.norm() * first.norm())
        self._shifted.append(_Shifted(loss, shift.norm(), applied, cos))

    def count(self, name: str, happened: Tensor) -> None:
        """Add 1 to a counter where ``happened`` is true, without reading it."""
        seen = self.counts.get(name, torch.zeros((), dtype=torch.int64, device=happened.device))
        self.counts[name] = seen + happened

    def scalars(self) -> dict[str, float]:
        """What was measured in the latest step, by the names under which it is logged; reading waits for the device.

        ``loss_gap`` and the two shift norms are those of the pass with the longest shift (the first of equals), ``cos`` is
        between the gradients of the first and the last pass. On a step that was not observed only ``passes`` and the
        counters are there.
        """
        out: dict[str, float] = {"passes": float(self.passes)}
        if self._grad_norm is not None:
            out["grad_norm"] = float(self._grad_norm)
        if self._shifted and self._loss is not None:
            longest = _longest(self._shifted)
            out["loss_gap"] = float(longest.loss.double() - self._loss.double())
            out["shift_norm"] = float(longest.norm)
            out["shift_norm_applied"] = float(longest.applied)
            out["cos"] = float(self._shifted[-1].cos)
        return out | {name: float(count) for name, count in self.counts.items()}


@dataclass(frozen=True)
class _Shifted:
    loss: Tensor
    norm: Scalar
    applied: Tensor
    cos: Tensor


def _longest(passes: Sequence[_Shifted]) -> _Shifted:
    best = passes[0]
    for other in passes[1:]:
        if float(other.norm) > float(best.norm):
            best = other
    return best
