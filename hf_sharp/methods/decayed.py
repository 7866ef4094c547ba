"""Weight decay inside the perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_sharp.methods.base import AbstractMethod
from hf_sharp.methods.checks import at_least, instance
from hf_sharp.problem import AbstractOracle, Point
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class Decayed(AbstractMethod):
    """A method on the loss ``L(w) + weight_decay / 2 |w|^2``.

    ``g(w + e) + weight_decay (w + e)`` stands wherever the method asks for a gradient.

    Cost: the method's passes.

    Suggested values: weight_decay 0.0005 to 0.001, with SAM, in Google's CIFAR runs.

    Caveats: in PyTorch the optimizer decays the weights, outside the perturbation. Google's JAX code for SAM has the decay
    in the loss instead: it steers the ascent, counts in its norm, and its gradient is taken at the shifted weights. This
    wrapper does the same, on all parameters that have a gradient. The optimizer must not decay once more: leave its
    ``weight_decay`` at 0. The first pass stays the Trainer's own, so the logged loss does not contain the penalty.

    Args:
        method: the method that sees the decayed loss.
        weight_decay: the factor, >= 0.

    References:
        Foret et al., ICLR 2021, the released code.
    """

    method: AbstractMethod
    weight_decay: float

    def __post_init__(self) -> None:
        instance(AbstractMethod, "method", self.method, example="SAM(rho=0.05)")
        at_least(0, "weight_decay", self.weight_decay, example="0.0005")

    def first(self, f: AbstractOracle) -> Vector | None:
        return self.method.first(f)

    def direction(self, f: AbstractOracle) -> Vector:
        return self.method.direction(_DecayedOracle(f, self.weight_decay))


class _DecayedOracle(AbstractOracle):
    """An oracle whose loss has the penalty in it."""

    def __init__(self, f: AbstractOracle, weight_decay: float) -> None:
        self._f, self._decay = f, weight_decay
        self._first_point: Point | None = None  # held, so that asking for it again costs no pass
        self.first, self.clock, self.memory = f.first, f.clock, f.memory

    def __call__(self, shift: Vector | None = None) -> Point:
        point = self._f(shift)
        if shift is self.first:
            self._first_point = point
        w = self.weights.only(point.grad.present)
        w = w if shift is None else w + shift
        penalty = (self._decay / 2 * w.dot(w)).to(point.loss.dtype)
        return Point(point.loss + penalty, point.grad + self._decay * w)

    def hessian_vector(self, v: Vector, shift: Vector | None = None) -> Vector:
        return self._f.hessian_vector(v, shift) + self._decay * v

    @property
    def weights(self) -> Vector:
        return self._f.weights

    def noise(self, draw: int, sizes: Sequence[Tensor]) -> Vector:
        return self._f.noise(draw, sizes)

    def unit_norms(self) -> list[Tensor]:
        return self._f.unit_norms()

    def count(self, name: str, happened: Tensor) -> None:
        self._f.count(name, happened)
