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
    """``value`` at every step; the same as the number itself."""

    value: float

    def at(self, clock: Clock) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(AbstractSchedule):
    """From ``start`` at the first step in a straight line to ``stop`` at the last."""

    start: float
    stop: float
    uses_steps: ClassVar[bool] = True

    def at(self, clock: Clock) -> float:
        return self.start + (self.stop - self.start) * clock.progress


@dataclass(frozen=True)
class Cosine(AbstractSchedule):
    """From ``start`` at the first step along half a cosine to ``stop`` at the last.

    R-SAM's released code grows its noise with ``Cosine(0.0005, 0.0025)``.
    """

    start: float
    stop: float
    uses_steps: ClassVar[bool] = True

    def at(self, clock: Clock) -> float:
        return self.start + (self.stop - self.start) * (1 - math.cos(math.pi * clock.progress)) / 2


@dataclass(frozen=True)
class WarmUp(AbstractSchedule):
    """``value * step / warmup_steps`` over the first steps, then ``value``, which is a number or a schedule."""

    value: Radius
    warmup_steps: int

    def __post_init__(self) -> None:
        whole(1, "warmup_steps", self.warmup_steps)
        radius("value", self.value)

    def at(self, clock: Clock) -> float:
        return resolved(self.value, clock) * min(1.0, clock.step / self.warmup_steps)


@dataclass(frozen=True)
class InverseSqrt(AbstractSchedule):
    """``value / sqrt(t)`` with t = 1, 2, ... the number of the step: the decay under which SAM's convergence is proven."""

    value: float

    def at(self, clock: Clock) -> float:
        return self.value / math.sqrt(clock.step + 1)


@dataclass(frozen=True)
class FollowLR(AbstractSchedule):
    """``low + (high - low) * (lr - lr_min) / (lr_max - lr_min)``, and ``low`` where lr is below lr_min (GSAM, section 4).

    Args:
        high: the value at the peak learning rate; the constant value where ``lr_max == lr_min``.
        low: the value at the lowest learning rate.
        lr_max: the peak learning rate; None takes the scheduler's.
        lr_min: the lowest learning rate.
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
