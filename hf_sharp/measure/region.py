"""The region of a maximisation, and the ascent in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_sharp.measure.surface import Surface
from hf_sharp.methods import ascend
from hf_sharp.methods.checks import above, at_least, flag, one_of
from hf_sharp.problem import Point
from hf_sharp.vector import Piece, Vector

_TINY = 1e-30


@dataclass(frozen=True)
class Region:
    """The shifts e with ``|T^-1 e|_p <= rho`` around the weights (Kwon et al., 2021, eq. 4).

    Args:
        rho: radius, > 0.
        p: 2 or infinity.
        adaptive: whether T is ``|w| + eta`` (1 for additive biases), as in `hf_sharp.ASAM`; else it is 1.
        eta: >= 0; with 0 the region is scale-invariant (Theorem 1).
        scale: ``"element"``, or ``"filter"``: one norm per output filter of weights with 4 or more dimensions (eq. 5).
        scale_biases: whether biases are scaled like weights.
    """

    rho: float
    p: float = 2.0
    adaptive: bool = False
    eta: float = 0.0
    scale: str = "element"
    scale_biases: bool = False

    def __post_init__(self) -> None:
        above(0, "rho", self.rho, example="0.05")
        one_of((2.0, math.inf), "p", self.p)  # type: ignore[arg-type]
        flag("adaptive", self.adaptive)
        at_least(0, "eta", self.eta, example="0.01")
        one_of(("element", "filter"), "scale", self.scale)
        flag("scale_biases", self.scale_biases)

    def around(self, f: Surface) -> Ball:
        """The region at the present weights."""
        return Ball(self, f, self._t(f))

    def _t(self, f: Surface) -> Callable[[Piece, Tensor], Tensor]:
        norms = dict(zip(f.space.pieces, f.unit_norms(), strict=True)) if self.scale == "filter" else {}

        def t(piece: Piece, w: Tensor) -> Tensor:
            """The diagonal of T for one parameter, in the place of a copy of its weights."""
            if not self.adaptive or (piece.bias and not self.scale_biases):
                return w.fill_(1.0)
            if self.scale == "filter" and len(piece.shape) >= 4:
                return w.copy_(norms[piece].expand_as(w)).add_(self.eta)
            return w.abs_().add_(self.eta)

        return t


@dataclass(frozen=True)
class Ball:
    """A region around the weights of a surface.

    Attributes:
        region: its shape and size.
        f: the surface.
        t: the diagonal of T as a function of a piece and a copy of its weights.
    """

    region: Region
    f: Surface
    t: Callable[[Piece, Tensor], Tensor]

    def steepest(self, g: Vector, length: float) -> Vector:
        """The shift of that length in the region's norm along which a loss with gradient g rises most."""
        given = (self.t, self.f.weights) if self.region.adaptive else (None, None)
        return ascend(g, length, self.region.p, *given)

    def inside(self, e: Vector) -> Vector:
        """The shift pulled back into the region: clipped for p = infinity, shortened for p = 2."""
        w, rho = self.f.weights, self.region.rho
        if self.region.p == math.inf:
            return e.map(lambda piece, x, w: _clipped(x, rho * self._t(piece, w)), w)
        norm = float(self.scaled(e).norm())
        return e if norm <= rho else (e * (rho / norm)).stored()

    def scaled(self, e: Vector) -> Vector:
        """``T^-1 e``; zero where T is."""
        return e.map(
            lambda piece, x, w: torch.where((t := self._t(piece, w)) > 0, x / t.clamp(min=_TINY), 0.0), self.f.weights
        )

    def random(self, draw: int, *, surface: bool = True) -> Vector:
        """A shift drawn evenly from the region, for p = 2 from its surface or its inside; the same in every process."""
        z, w, rho = self.f.normal(draw), self.f.weights, self.region.rho
        if self.region.p == math.inf:  # the normal distribution function makes evenly spread numbers of normal ones
            return z.map(lambda piece, x, w: (2 * torch.special.ndtr(x) - 1) * rho * self._t(piece, w), w)
        length = rho if surface else rho * _uniform(self.f, draw) ** (1 / self.f.dimension)
        return (z * (length / float(z.norm()))).map(lambda piece, x, w: x * self._t(piece, w), w)

    def climb(self, steps: int, step: float | None = None, start: Vector | None = None) -> list[tuple[float, Vector]]:
        """The losses and shifts that projected gradient ascent visits, from the first step on.

        Each step goes along the steepest direction of the region's norm and is pulled back into the region. Costs one
        gradient per step and one forward pass.

        Args:
            steps: how many.
            step: length of each in radii; None: 2.5 / steps, at most 1. One step has the length of the radius.
            start: where it begins; None: at the weights.
        """
        length = self.region.rho * (min(1.0, 2.5 / steps) if step is None else step)
        e, visited = start, []
        point: Point = self.f(start)
        for k in range(steps):
            move = self.steepest(point.grad, length)
            e = self.inside((move if e is None else e + move).stored())
            if k < steps - 1:
                point = self.f(e)
                visited.append((float(point.loss), e))
            else:
                visited.append((self.f.loss(e), e))
        return visited

    def _t(self, piece: Piece, w: Tensor) -> Tensor:
        return self.t(piece, w.clone()) * piece.factor


def highest(visited: Iterable[tuple[float, Vector]]) -> tuple[float, Vector]:
    """The loss and shift of the largest loss; NaN where there is one."""
    return max(visited, key=lambda pair: (math.isnan(pair[0]), pair[0]))


def _clipped(x: Tensor, bound: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(x, bound), -bound)


def _uniform(f: Surface, draw: int) -> float:
    return float(torch.rand((), generator=torch.Generator().manual_seed(f.how.seed * 1_000_003 + draw)))
