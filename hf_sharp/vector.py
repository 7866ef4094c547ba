"""Vectors in weight space, held as this rank's pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor
Parts: TypeAlias = list[Tensor | None]


@dataclass(frozen=True)
class Piece:
    """What one part of a vector is a piece of.

    Attributes:
        name: the parameter's name in the model, without wrappers' prefixes.
        shape: the parameter's full shape.
        bias: True for an additive bias (ASAM, section 5.2: T = 1).
        unit_axis: the axis of the output units; None where the whole parameter is one unit.
        factor: what the user multiplies this parameter's radius with; 0 means that it is never perturbed.
        start, stop: the range of the flattened parameter that this rank holds.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool
    unit_axis: int | None
    factor: float
    start: int
    stop: int


@dataclass(eq=False)
class Space:
    """The weight space as this rank sees it: which pieces it holds, and how to add up a number over the others.

    Attributes:
        pieces: one entry per part of every Vector.
        like: one tensor per piece, whose shape, dtype, device and strides fresh parts take.
        total: sums (``"sum"``) or maximises (``"max"``) a tensor over the ranks that hold other pieces.
    """

    pieces: tuple[Piece, ...]
    like: Sequence[Tensor]
    total: Callable[[Tensor, str], Tensor]
    _spare: list[list[Tensor]] = field(default_factory=list)

    def buffer(self) -> list[Tensor]:
        """One weight-sized list of uninitialised tensors. First touches of fresh memory are slow, so one is kept."""
        return self._spare.pop() if self._spare else [torch.empty_like(x) for x in self.like]

    def recycle(self, buffer: list[Tensor]) -> None:
        """Take a buffer back; more than one idle buffer would cost memory at the peak of the next pass."""
        if not self._spare:
            self._spare.append(buffer)

    def add_up(self, numbers: Sequence[Tensor], *, square: bool = False) -> Tensor:
        """The sum over parts and ranks of one number (or its square) per part; zero where there are none."""
        device, dtype = self.scalars()
        local = [n.to(device, dtype) for n in numbers] or [torch.zeros((), dtype=dtype, device=device)]
        terms = torch.stack(local)
        return self.total((terms.square() if square else terms).sum(), "sum")

    def scalars(self) -> tuple[torch.device, torch.dtype]:
        """Where, and how exactly, numbers about whole vectors are kept."""
        device = self.like[0].device if self.like else torch.device("cpu")
        return device, torch.float32 if device.type == "mps" else torch.float64

    def is_perturbed_as_one(self) -> bool:
        """Whether every parameter is perturbed, with factor 1."""
        return all(piece.factor == 1.0 for piece in self.pieces)


class _Held(list):
    """Parts in a buffer of the space, which gets it back when the last Vector that shares them is gone."""

    def __init__(self, parts: Parts, buffer: list[Tensor], space: Space) -> None:
        super().__init__(parts)
        self._buffer, self._space = buffer, space

    def __del__(self) -> None:
        self._space.recycle(self._buffer)


class _Borrowed(list):
    """Some parts of other parts, which must not go back to the space before these are gone."""

    def __init__(self, parts: Parts, of: Parts) -> None:
        super().__init__(parts)
        self._of = of


class Vector:
    """A number times this rank's pieces of a vector in weight space; immutable.

    Multiplying by a number is free: the factor is kept beside the pieces and enters where they are next read. A part is
    None where the parameter had no gradient, and counts as zero. A factor that is exactly the Python number 0 gives the
    zero vector, so that ``g + 0.0 * h`` is ``g`` to the bit, signed zeros included.

    Args:
        space: the weight space.
        parts: one tensor per piece, in the shape that this rank holds, or None for zero.
        scale: the factor, a Python number or a tensor without dimensions.
    """

    __slots__ = ("_norm", "parts", "scale", "space")
    space: Space
    parts: Parts
    scale: Scalar

    def __init__(self, space: Space, parts: Parts, scale: Scalar = 1.0) -> None:
        if isinstance(scale, float) and scale == 0.0:
            parts, scale = [None] * len(parts), 1.0
        self.space, self.parts, self.scale = space, parts, scale
        self._norm: list[Tensor] = []  # |parts|_2 once it is known, shared by all multiples

    @property
    def is_zero(self) -> bool:
        """Whether no part is present (a vector of stored zeros is not looked into)."""
        return all(part is None for part in self.parts)

    def tensors(self) -> Parts:
        """The parts times the factor; the parts themselves where the factor is 1.

        Hold the list while you use its tensors: without it the space may use them for something else.
        """
        if isinstance(self.scale, float) and self.scale == 1.0:
            return self.parts
        return (self.map(lambda piece, x: x)).parts

    def map(self, function: Callable[..., Tensor], *others: Vector | Sequence) -> Vector:
        """The vector of ``function(piece, part, *parts of the others)``, zero wherever a part is missing."""
        columns = [self.parts, *(other.tensors() if isinstance(other, Vector) else other for other in others)]
        buffer = self.space.buffer()
        out: Parts = []
        for piece, into, x, *rest in zip(self.space.pieces, buffer, *columns, strict=True):
            missing = x is None or any(y is None for y in rest)
            out.append(None if missing else into.copy_(function(piece, times(x, self.scale), *rest)))
        return Vector(self.space, _Held(out, buffer, self.space))

    def perturbed(self) -> Vector:
        """The same vector, zero on the parameters that are never perturbed."""
        if self.space.is_perturbed_as_one():
            return self
        kept = [x if piece.factor else None for piece, x in zip(self.space.pieces, self.parts, strict=True)]
        return Vector(self.space, _Borrowed(kept, self.parts), self.scale)

    def __mul__(self, factor: Scalar | int) -> Vector:
        scale = self.scale * (float(factor) if isinstance(factor, int) else number(factor))
        out = Vector(self.space, self.parts, scale)
        if out.parts is self.parts:
            out._norm = self._norm
        return out

    __rmul__ = __mul__

    def __truediv__(self, divisor: Scalar | int) -> Vector:
        return self * (1.0 / number(divisor))

    def __neg__(self) -> Vector:
        return self * -1.0

    def __add__(self, other: Vector) -> Vector:
        if other.is_zero:
            return self
        if self.is_zero:
            return other
        buffer = self.space.buffer()
        out: Parts = []
        for into, x, y in zip(buffer, self.parts, other.parts, strict=True):
            if x is None:
                out.append(None if y is None else into.copy_(times(y, other.scale)))
            elif y is None:
                out.append(into.copy_(times(x, self.scale)))
            elif isinstance(self.scale, float) and self.scale == 1.0 and isinstance(other.scale, float):
                out.append(torch.add(x, y, alpha=other.scale, out=into))
            else:
                out.append(add_scaled_(torch.mul(x, self.scale, out=into), y, other.scale))
        return Vector(self.space, _Held(out, buffer, self.space))

    def __sub__(self, other: Vector) -> Vector:
        return self + -other

    def dot(self, other: Vector) -> Tensor:
        """The inner product over all ranks, a float64 tensor without dimensions (float32 on devices that lack it)."""
        pairs = [(x, y) for x, y in zip(self.parts, other.parts, strict=True) if x is not None and y is not None]
        local = [torch.dot(_wide(x).reshape(-1), _wide(y).reshape(-1)) for x, y in pairs]
        return self.space.add_up(local) * self.scale * other.scale

    def norm(self) -> Tensor:
        """The Euclidean norm over all ranks, a float64 tensor without dimensions (float32 on devices that lack it)."""
        if not self._norm:
            local = [torch.linalg.vector_norm(_wide(x)) for x in self.parts if x is not None]
            self._norm.append(self.space.add_up(local, square=True).sqrt())
        return self._norm[0] * magnitude(self.scale)

    def peak(self) -> Tensor:
        """The largest absolute entry over all ranks, a tensor without dimensions."""
        device, dtype = self.space.scalars()
        local = [x.abs().amax().to(device, dtype) for x in self.parts if x is not None and x.numel()]
        largest = torch.stack(local).amax() if local else torch.zeros((), dtype=dtype, device=device)
        return self.space.total(largest, "max") * magnitude(self.scale)


def number(x: Scalar | int) -> Scalar:
    """A Python number where reading it does not wait for a device, else the tensor itself."""
    if isinstance(x, Tensor):
        return x.item() if x.device.type == "cpu" else x
    return float(x)


def magnitude(x: Scalar) -> Scalar:
    """The absolute value of a number."""
    return x.abs() if isinstance(x, Tensor) else abs(x)


def times(x: Tensor, scale: Scalar) -> Tensor:
    """``scale * x``; ``x`` itself where the scale is the Python number 1."""
    return x if isinstance(scale, float) and scale == 1.0 else x * scale


def add_scaled_(x: Tensor, y: Tensor, scale: Scalar) -> Tensor:
    """``x += scale * y`` in place, without reading a scale that lives on a device."""
    return x.add_(y, alpha=scale) if isinstance(scale, float) else x.addcmul_(y, scale.to(y.dtype))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
