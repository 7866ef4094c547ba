"""Numbers that change while training goes on: radii, and the size of noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from hf_sharp.clock import Clock
from hf_sharp.methods.checks import at_least, whole


@dataclass(frozen=True)
class AbstractSchedule(ABC):
    """A number >= 0 as a function of the moment."""

    uses_steps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                at_least(0, name, value)

    @abstractmethod
    def at(self, clock: Clock) -> float:
        """The value for the step that the clock shows."""


Radius: TypeAlias = float | AbstractSchedule


@dataclass(frozen=True)
class Constant(AbstractSchedule):
    """``value`` at every step; the same as the number itself.

    Args:
        value: the number, >= 0.
    """

    value: float

    def at(self, clock: Clock) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(AbstractSchedule):
    """From ``start`` at the first step in a straight line to ``stop`` at the last.

    ``start + (stop - start) t`` with the share t of training that is over, 0 at the first step and 1 at the last.

    Caveats: a loop has to say how many steps there are: ``SharpStep(..., steps=...)``.

    Args:
        start: the value at the first step, >= 0.
        stop: the value at the last step, >= 0.
    """

    start: float
    stop: float
    uses_steps: ClassVar[bool] = True

    def at(self, clock: Clock) -> float:
        return self.start + (self.stop - self.start) * clock.progress


@dataclass(frozen=True)
class Cosine(AbstractSchedule):
    """From ``start`` at the first step along half a cosine to ``stop`` at the last.

    ``start + (stop - start) (1 - cos(pi t)) / 2`` with the share t of training that is over.

    Suggested values: R-SAM's released code grows its noise with ``Cosine(0.0005, 0.0025)``.

    Caveats: a loop has to say how many steps there are: ``SharpStep(..., steps=...)``.

    Args:
        start: the value at the first step, >= 0.
        stop: the value at the last step, >= 0.
    """

    start: float
    stop: float
    uses_steps: ClassVar[bool] = True

    def at(self, clock: Clock) -> float:
        return self.start + (self.stop - self.start) * (1 - math.cos(math.pi * clock.progress)) / 2


@dataclass(frozen=True)
class WarmUp(AbstractSchedule):
    """``value * step / warmup_steps`` over the first steps, then ``value``.

    Suggested values: as many steps as the learning rate warms up, where training with the full radius diverges at its start.

    Caveats: the first step has the radius 0, and so is a plain one at the price of a whole one.

    Args:
        value: the number that is warmed up to, >= 0, or a schedule.
        warmup_steps: how many steps it takes, >= 1.
    """

    value: Radius
    warmup_steps: int

    def __post_init__(self) -> None:
        whole(1, "warmup_steps", self.warmup_steps)
        radius("value", self.value)

    def at(self, clock: Clock) -> float:
        return resolved(self.value, clock) * min(1.0, clock.step / self.warmup_steps)


@dataclass(frozen=True)
class InverseSqrt(AbstractSchedule):
    """``value / sqrt(t)`` with t = 1, 2, ... the number of the step.

    Caveats: it is the decay of proofs of convergence; the papers train with constant radii.

    Args:
        value: the value at the first step, >= 0.

    References:
        Zhang et al., CVPR 2023, Theorem 4.4.
    """

    value: float

    def at(self, clock: Clock) -> float:
        return self.value / math.sqrt(clock.step + 1)


@dataclass(frozen=True)
class FollowLR(AbstractSchedule):
    """``low + (high - low) * (lr - lr_min) / (lr_max - lr_min)``, and ``low`` where lr is below lr_min.

    Suggested values: for ViTs 0.6 falling to 0, 0.1 or 0.2 with GSAM (its table 4); 2.5 to 1.5 with R-SAM (its code).

    Caveats: under a constant learning rate it stays at ``high``. The learning rate is that of the optimizer's first group.

    Args:
        high: the value at the peak learning rate, >= 0; the constant value where ``lr_max == lr_min``.
        low: the value at the lowest learning rate, >= 0.
        lr_max: the peak learning rate; None takes the scheduler's.
        lr_min: the lowest learning rate.

    References:
        Zhuang et al., ICLR 2022, section 4.
    """

    high: float
    low: float = 0.0
    lr_max: float | None = None
    lr_min: float = 0.0

    def at(self, clock: Clock) -> float:
        peak = clock.lr_max if self.lr_max is None else self.lr_max
        if peak == self.lr_min:
            return self.high
        share = (clock.lr - self.lr_min) / (peak - self.lr_min)
        return self.low + (self.high - self.low) * max(0.0, share)


SCHEDULES: dict[str, type[AbstractSchedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "warmup": WarmUp,
    "inverse_sqrt": InverseSqrt,
    "follow_lr": FollowLR,
}


def as_number(value: Radius) -> float:
    """The number that ``AbstractMethod.at`` put in a schedule's place.

    Raises:
        TypeError: it is still a schedule.
    """
    if isinstance(value, AbstractSchedule):
        raise TypeError(f"A method must be asked through method.at(clock) while it holds schedules, got {value!r}.")
    return float(value)


def resolved(value: Radius, clock: Clock) -> float:
    """The number that a radius stands for at this moment."""
    return value.at(clock) if isinstance(value, AbstractSchedule) else float(value)


def radius(name: str, value: object) -> None:
    """Raises ValueError where a value is neither a number >= 0 nor a schedule."""
    if not isinstance(value, AbstractSchedule):
        at_least(0, name, value, or_else=" or a schedule")
