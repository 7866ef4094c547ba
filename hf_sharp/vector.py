"""Vectors in weight space, held as this rank's pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hf_sharp.arithmetic import Scalar, magnitude, number, plus_scaled, scaled_sum, times, wide

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
        pieces: one entry per part of every Vector; there may be none, where other ranks hold all.
        like: one tensor per piece, whose shape, dtype, device and strides fresh parts take.
        total: sums (``"sum"``) or maximises (``"max"``) a tensor over the ranks that hold other pieces.
        device: where the model computes; the pieces, and numbers about whole vectors, may be offloaded to the CPU.
        counted: per piece whether this rank adds it to sums: of a piece that several of those ranks hold only one does.
            None: all of them.
    """

    pieces: tuple[Piece, ...]
    like: Sequence[Tensor]
    total: Callable[[Tensor, str], Tensor]
    device: torch.device
    counted: Sequence[bool] | None = None
    _spare: list[list[Tensor]] = field(default_factory=list)

    def buffer(self) -> list[Tensor]:
        """One weight-sized list of uninitialised tensors. First touches of fresh memory are slow, so one is kept."""
        return self._spare.pop() if self._spare else [torch.empty_like(x) for x in self.like]

    def recycle(self, buffer: list[Tensor]) -> None:
        """Take a buffer back; more than one idle buffer would cost memory at the peak of the next pass."""
        if not self._spare:
            self._spare.append(buffer)

    def summed(self, numbers: Sequence[Tensor], *, square: bool = False) -> Tensor:
        """The sum over this rank's parts of one number (or its square) per part; zero where there are none."""
        device, dtype = self.scalars()
        if len({(n.device, n.dtype) for n in numbers}) > 1:
            numbers = [n.to(device, dtype) for n in numbers]
        terms = (torch.stack(list(numbers)) if numbers else torch.zeros(1, device=device)).to(device, dtype)
        return (terms.square() if square else terms).sum()

    def scalars(self) -> tuple[torch.device, torch.dtype]:
        """Where, and how exactly, numbers about whole vectors are kept."""
        device = self.like[0].device if self.like else self.device
        return device, torch.float32 if device.type == "mps" else torch.float64

    def own(self, parts: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        """The parts, without those that another rank adds to sums."""
        counted = itertools.repeat(True) if self.counted is None else self.counted
        return (part if here else None for part, here in zip(parts, counted))  # noqa: B905 - repeat has no end

    def is_perturbed_as_one(self) -> bool:
        """Whether every parameter is perturbed, with factor 1."""
        return all(piece.factor == 1.0 for piece in self.pieces)


class _Held(list):
    """Parts in a buffer of the space, which gets it back when nobody uses them any more."""

    def __init__(self, parts: Sequence[Tensor | None], buffer: list[Tensor], space: Space) -> None:
        super().__init__(parts)
        self._buffer, self._space = buffer, space

    def __del__(self) -> None:
        self._space.recycle(self._buffer)


class _Lazy(Sequence):
    """Parts that are computed whenever they are read: they need no weight-sized memory of their own.

    Args:
        present: which parts are not missing.
        part: computes the part of an index, into a given tensor if it has to compute anything.
    """

    def __init__(self, present: Sequence[bool], part: Callable[[int, Tensor | None], Tensor | None]) -> None:
        self.present, self._part = present, part

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self.present):
            raise IndexError(i)
        return self.computed(i, None)

    def computed(self, i: int, into: Tensor | None) -> Tensor | None:
        """The part of an index, in ``into`` where it had to be computed and there is such a tensor."""
        return self._part(i, into) if self.present[i] else None


class Vector:
    """A number times this rank's pieces of a vector in weight space; immutable.

    Products with numbers and sums cost nothing when they are written: they are computed part by part where they are read.
    A part is None where the parameter had no gradient, and counts as zero. A factor that is exactly the Python number 0
    gives the zero vector, so that ``g + 0.0 * h`` is ``g`` to the bit, signed zeros included.

    Args:
        space: the weight space.
        parts: one tensor per piece, in the shape that this rank holds, or None for zero.
        scale: the factor, a Python number or a tensor without dimensions.
    """

    __slots__ = ("__weakref__", "_norm", "parts", "scale", "space")
    space: Space
    parts: Sequence[Tensor | None]
    scale: Scalar

    def __init__(self, space: Space, parts: Sequence[Tensor | None], scale: Scalar = 1.0) -> None:
        if isinstance(scale, float) and scale == 0.0:
            parts, scale = [None] * len(parts), 1.0
        self.space, self.parts, self.scale = space, parts, scale
        self._norm: list[Tensor] = []  # |parts|_2 once it is known, shared by all multiples

    @property
    def present(self) -> Sequence[bool]:
        """Per piece whether the part is there."""
        return self.parts.present if isinstance(self.parts, _Lazy) else [part is not None for part in self.parts]

    @property
    def is_zero(self) -> bool:
        """Whether no part is present (a vector of stored zeros is not looked into)."""
        return not any(self.present)

    def tensors(self) -> Iterator[Tensor | None]:
        """The parts times the factor, one after the other; not to be written into."""
        return (None if part is None else times(part, self.scale) for part in self.parts)

    def written(self, into: Sequence[Tensor]) -> Iterator[Tensor | None]:
        """The same in these tensors, which may be parts of what the vector is computed from."""
        for i, target in enumerate(into):
            part = _part(self.parts, i, target)
            if part is not None:
                part = times(part, self.scale, target)
            yield part if part is None or part is target else target.copy_(part)

    def stored(self) -> Vector:
        """The same vector with tensors of its own: what it was computed from can go, or change."""
        return self.map(lambda piece, x: x)

    def map(self, function: Callable[..., Tensor], *others: Vector | Sequence) -> Vector:
        """The vector of ``function(piece, part, *parts of the others)``, zero wherever a part is missing.

        The part is a copy that the function may write into and return.
        """
        columns = [other.tensors() if isinstance(other, Vector) else other for other in others]
        buffer = self.space.buffer()
        out: Parts = []
        for piece, into, x, *rest in zip(self.space.pieces, buffer, self.tensors(), *columns, strict=True):
            if x is None or any(y is None for y in rest):
                out.append(None)
                continue
            result = function(piece, into.copy_(x), *rest)
            out.append(into if result is into else into.copy_(result))
        return Vector(self.space, _Held(out, buffer, self.space))

    def perturbed(self) -> Vector:
        """The same vector, zero on the parameters that are never perturbed."""
        return self if self.space.is_perturbed_as_one() else self.only([piece.factor > 0 for piece in self.space.pieces])

    def only(self, kept: Sequence[bool]) -> Vector:
        """The same vector, zero on the pieces that are not kept."""
        present = [here and keep for here, keep in zip(self.present, kept, strict=True)]
        return Vector(self.space, _Lazy(present, lambda i, into: _part(self.parts, i, into)), self.scale)

    def __mul__(self, factor: Scalar | int) -> Vector:
        out = Vector(self.space, self.parts, self.scale * number(factor))
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
        present = [a or b for a, b in zip(self.present, other.present, strict=True)]

        def part(i: int, into: Tensor | None) -> Tensor | None:
            return scaled_sum(self.parts[i], self.scale, other.parts[i], other.scale, into)

        return Vector(self.space, _Lazy(present, part))

    def __sub__(self, other: Vector) -> Vector:
        return self + -other

    def add_to_(self, tensors: Sequence[Tensor]) -> None:
        """Add the parts that are present to these tensors, one for each, in place."""
        if isinstance(self.parts, _Lazy) or isinstance(self.scale, Tensor):
            parts = (x for x in self.parts if x is not None)
            for into, x in zip(tensors, parts, strict=True):
                plus_scaled(into, x, self.scale, into)
        else:
            torch._foreach_add_(list(tensors), [x for x in self.parts if x is not None], alpha=self.scale)

    def dot(self, other: Vector) -> Tensor:
        """The inner product over all ranks, a float64 tensor without dimensions (float32 on devices that lack it)."""
        return self.dots(other)[0]

    def dots(self, *others: Vector) -> list[Tensor]:
        """The inner products with several vectors, in one collective."""
        sums = [self.space.summed(self._products(other)) for other in others]
        totals = self.space.total(torch.stack(sums), "sum").unbind()
        return [total * self.scale * other.scale for total, other in zip(totals, others, strict=True)]

    def _products(self, other: Vector) -> list[Tensor]:
        return [
            torch.dot(wide(x).reshape(-1), wide(y).reshape(-1))
            for x, y in zip(self.space.own(self.parts), other.parts, strict=True)
            if x is not None and y is not None
        ]

    def norm(self) -> Tensor:
        """The Euclidean norm over all ranks, a float64 tensor without dimensions (float32 on devices that lack it)."""
        if not self._norm:
            if isinstance(self.parts, _Lazy):  # one part at a time, since each is computed for this
                local = [torch.linalg.vector_norm(wide(x)) for x in self.space.own(self.parts) if x is not None]
            else:
                present = [wide(x) for x in self.space.own(self.parts) if x is not None]
                local = list(torch._foreach_norm(present)) if present else []
            self._norm.append(self.space.total(self.space.summed(local, square=True), "sum").sqrt())
        return self._norm[0] * magnitude(self.scale)

    def peak(self) -> Tensor:
        """The largest absolute entry over all ranks, a tensor without dimensions."""
        device, dtype = self.space.scalars()
        local = [x.abs().amax().to(device, dtype) for x in self.parts if x is not None and x.numel()]
        largest = torch.stack(local).amax() if local else torch.zeros((), dtype=dtype, device=device)
        return self.space.total(largest, "max") * magnitude(self.scale)


def _part(parts: Sequence[Tensor | None], i: int, into: Tensor | None) -> Tensor | None:
    return parts.computed(i, into) if isinstance(parts, _Lazy) else parts[i]
