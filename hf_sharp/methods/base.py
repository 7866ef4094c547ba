"""What a method is, and the arithmetic that several of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hf_sharp.arithmetic import Scalar
from hf_sharp.clock import Clock
from hf_sharp.methods.checks import whole
from hf_sharp.methods.schedules import AbstractSchedule, Radius, as_number
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector

_TINY = 1e-12


@dataclass(frozen=True)
class AbstractMethod(ABC):
    """A function from a gradient oracle to the direction that the optimizer shall use instead of the gradient.

    A method of your own is a frozen dataclass with ``direction``; its fields are its hyper-parameters, and may hold
    schedules and other methods. It needs no registration.
    """

    uses_steps: ClassVar[bool] = False

    @abstractmethod
    def direction(self, f: AbstractOracle) -> Vector:
        """The vector to descend along, asked once per optimizer step."""

    def first(self, f: AbstractOracle) -> Vector | None:
        """The shift at which the first pass shall run; None for the weights themselves."""
        return None

    def at(self, clock: Clock) -> AbstractMethod:
        """The same method with numbers in place of its schedules, and of those of the methods in it."""
        now = {
            name: value.at(clock)
            for name, value in vars(self).items()
            if isinstance(value, AbstractSchedule | AbstractMethod)
        }
        return replace(self, **now) if now else self

    def check(self, steps: int | None) -> None:
        """Raises ValueError where the number of training steps is none, or is missing and a part of the method needs it."""
        if steps is not None:
            whole(1, "steps", steps)
        else:
            for part in self.parts():
                if part.uses_steps:
                    raise ValueError(
                        f"{type(part).__name__} needs the number of training steps, got none. "
                        "Pass SharpStep(..., steps=...)."
                    )

    def parts(self) -> Iterator[AbstractMethod | AbstractSchedule]:
        """The method, and all methods and schedules inside it."""
        return _parts(self)


def _parts(whole: AbstractMethod | AbstractSchedule) -> Iterator[AbstractMethod | AbstractSchedule]:
    yield whole
    for value in vars(whole).values():
        if isinstance(value, AbstractMethod | AbstractSchedule):
            yield from _parts(value)


def unit(v: Vector) -> Vector:
    """``v / |v|`` over the perturbed parameters; zero where v is."""
    v = v.perturbed()
    return v / (v.norm() + _TINY)


def ascend(
    g: Vector, rho: Radius, p: float = 2.0, t: Callable[..., Tensor] | None = None, w: Vector | None = None
) -> Vector:
    """The shift ``e`` with ``|T^-1 e|_p <= rho`` along which a loss rises most (Kwon et al., 2021, section 4).

    ``e = rho T sign(g) |T g|^(q-1) / |T g|_q^(q-1)`` with ``1/p + 1/q = 1``. It divides by the largest entry first, since
    powers overflow near p = 1. At p = 1 the whole shift is on the largest entries, which share it.

    Args:
        g: the gradient.
        rho: the radius, >= 0.
        p: from 1 to infinity.
        t: T as a function of a piece and a copy of its weights, which it may write into; None: the identity.
        w: the weights, for ``t``.
    """
    g, rho = g.perturbed(), as_number(rho)
    if p == 2 and (t is None or w is None):
        return _factored(rho * g / _safe(g.norm()))
    if t is None or w is None:
        e = _dual(g, p)
    elif p == 2:
        e = w.map(lambda piece, x, y: t(piece, x).square_().mul_(y), g)
        e = e / _safe(e.dot(g).sqrt())
    else:
        e = w.map(lambda piece, x, y: t(piece, x).mul_(y), _dual(w.map(lambda piece, x, y: t(piece, x).mul_(y), g), p))
    return _factored(e * rho)


def _dual(x: Vector, p: float) -> Vector:
    """``sign(x) |x|^(q-1) / |x|_q^(q-1)``: the unit vector of the p-norm that has the largest product with x."""
    if p == math.inf:
        return x.map(lambda piece, part: part.sign() + 0.0 * part)  # the sign of NaN is 0, which would hide it
    x = x.stored()  # a factor that is multiplied in later would round the largest entry away from its own peak
    peak = x.peak()
    if p == 1:
        largest = x.map(lambda piece, part: (part.abs() == peak.to(part.dtype)) * part.sign())
        return largest / _safe(largest.dot(largest) + 0.0 * peak)
    q = p / (p - 1)
    y = x.map(lambda piece, part: part.div_(peak.to(part.dtype).clamp(min=torch.finfo(part.dtype).tiny)))
    powered = y.map(lambda piece, part: part.sign() * part.abs() ** (q - 1))
    return powered / _safe(powered.dot(y)) ** ((q - 1) / q)


def _factored(e: Vector) -> Vector:
    """The shift with each parameter's own factor on its radius."""
    if e.space.is_perturbed_as_one():
        return e
    return e.map(lambda piece, part: part * piece.factor)


def _safe(norm: Scalar) -> Scalar:
    return norm + _TINY


def without(x: Vector, y: Vector) -> Vector:
    """The part of x that is orthogonal to y."""
    square, product = y.dots(y, x)
    return x - product / square.clamp(min=torch.finfo(square.dtype).tiny) * y
