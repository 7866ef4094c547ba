"""How many local minima and maxima lie within the radius along random directions: Zhang et al. (2023), Figure 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.result import Found, mean_and_error
from hf_sharp.measure.surface import Surface
from hf_sharp.methods.checks import above, at_least, whole


@dataclass(frozen=True)
class Extrema(AbstractQuantity):
    """The number of local minima and maxima of the loss along random directions, within the radius.

    The loss is taken at the weights and at evenly spaced points of each direction; an extremum is a point where it turns.
    Differences that the rounding of the loss alone can make are no turns: they are left out, and counted as ``flat_steps``.

    Cost: ``directions * points + 1`` forward passes.

    Args:
        rho: radius, > 0; 0.1 in the paper.
        points: steps to the radius, >= 2; 10 in the paper.
        directions: how many, >= 2; 100 in the paper.
        rounding: what counts as rounding, in units of the precision times the loss, >= 0; 0 counts every turn.

    References:
        Zhang et al., GAM, CVPR 2023, section 5.1 and Figure 2.
    """

    name: ClassVar[str] = "extrema"
    rho: float = 0.1
    points: int = 10
    directions: int = 100
    rounding: float = 4.0

    def __post_init__(self) -> None:
        above(0, "rho", self.rho, example="0.1")
        whole(2, "points", self.points)
        whole(2, "directions", self.directions)
        at_least(0, "rounding", self.rounding, example="4.0")

    @torch.no_grad()
    def take(self, f: Surface) -> Found:
        here = f.loss()
        noise = self.rounding * max(torch.finfo(w.dtype).eps for w in f.space.like) * abs(here)
        lines = []
        for direction in range(self.directions):
            z = f.normal(direction)
            r = self.rho / self.points / float(z.norm())
            lines.append([here, *(f.loss(k * r * z) for k in range(1, self.points + 1))])
        counts = [turns(line, noise) for line in lines]
        (minima, minima_error), (maxima, maxima_error) = (mean_and_error([c[i] for c in counts]) for i in (0, 1))
        flat = sum(abs(b - a) <= noise for line in lines for a, b in pairwise(line))
        return Found(
            {"minima": minima, "maxima": maxima, "flat_steps": flat / (self.directions * self.points), "loss": here},
            {"minima": minima_error, "maxima": maxima_error},
            {"minima": [c[0] for c in counts], "maxima": [c[1] for c in counts], "losses": lines},
        )


def turns(line: Sequence[float], noise: float = 0.0) -> tuple[int, int]:
    """How many local minima and maxima a sequence has inside; steps of at most ``noise`` are passed over.

    >>> turns([3, 1, 2, 2, 0])
    (1, 1)
    """
    signs = [b > a for a, b in pairwise(line) if abs(b - a) > noise]
    pairs = list(pairwise(signs))
    return sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
