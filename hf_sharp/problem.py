"""The problem as a method sees it; methods know nothing of what answers them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_sharp.clock import Clock
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class Point:
    """What the oracle answers: loss and gradient of this step's samples at one place.

    Attributes:
        loss: a tensor without dimensions, averaged over the same samples as the gradient.
        grad: the gradient.
    """

    loss: Tensor
    grad: Vector


class AbstractOracle(ABC):
    """The problem as a method sees it: ``f()`` and ``f(shift)``, and where training stands.

    Attributes:
        first: the shift of the first pass, until its answer is asked for; None where it ran at the weights.
        clock: the moment of this step.
        memory: vectors that the method keeps between steps; saved with the checkpoint.
    """

    first: Vector | None
    clock: Clock
    memory: dict[str, Vector]

    @abstractmethod
    def __call__(self, shift: Vector | None = None) -> Point:
        """Loss and gradient at ``w + shift``; at the weights where there is none. All passes of a step see the same
        samples, dropout masks and buffers. At the place of the first pass (``f()``, unless the method named another one) the
        answer is there already, and stays as long as somebody holds its gradient; asked later it costs a pass.
        """

    @abstractmethod
    def hessian_vector(self, v: Vector, shift: Vector | None = None) -> Vector:
        """``H(w + shift) v``, exact, by double backward; costs about two passes and the memory of a second graph."""

    @property
    @abstractmethod
    def weights(self) -> Vector:
        """The weights, to be read."""

    @abstractmethod
    def noise(self, draw: int, sizes: Sequence[Tensor]) -> Vector:
        """Normal noise for every perturbed parameter (times its factor): a pure function of the seed, the step, ``draw`` and
        the parameter's name and shape, hence the same on every backend and after a resume. ``sizes`` has per piece the
        standard deviations, shaped to broadcast against it.
        """

    @abstractmethod
    def unit_norms(self) -> list[Tensor]:
        """Per piece the norms of the weights' output units, shaped to broadcast against the piece."""

    @abstractmethod
    def count(self, name: str, happened: Tensor) -> None:
        """Count in the logs how often something happened; no value is read."""

    @property
    def step(self) -> int:
        """Optimizer steps already taken, from 0."""
        return self.clock.step

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.clock.steps

    @property
    def lr(self) -> float:
        """The learning rate of this step."""
        return self.clock.lr

    @property
    def lr_max(self) -> float:
        """The peak learning rate."""
        return self.clock.lr_max
