"""The toy problems in which the papers explain themselves; their claims are numbers here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_sharp.measure.flatness import Flatness
from hf_sharp.measure.opening import loss_surface
from hf_sharp.measure.region import Region
from hf_sharp.methods import AbstractMethod
from hf_sharp.step import SharpStep

Point2 = tuple[float, float]
VALLEY_STARTS: tuple[Point2, Point2] = ((0.2, 0.05), (0.3, 0.033))


class Valley(nn.Module):
    """``L(w) = |w1 ReLU(w2) - 0.04|``, whose minima are the curve ``w1 w2 = 0.04`` (Kwon et al., 2021, section 5.1)."""

    def __init__(self, start: Point2) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """The loss."""
        return valley(self.w[0], self.w[1])


def valley(w1: Tensor, w2: Tensor) -> Tensor:
    """The loss of `Valley`; shapes broadcast."""
    return (w1 * torch.relu(w2) - 0.04).abs()


def trajectory(start: Point2, method: AbstractMethod, *, lr: float = 0.01, steps: int = 1000) -> list[Point2]:
    """Where gradient descent with a method goes in the valley; the start is the first point.

    The paper names no learning rate. The claims hold for 0.001 to 0.1.
    """
    model = Valley(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sharp = SharpStep(model, optimizer, method)
    path = [start]
    for _ in range(steps):
        sharp(lambda _: model(), {})
        optimizer.step()
        optimizer.zero_grad()
        path.append((float(model.w[0]), float(model.w[1])))
    return path


class Product(nn.Module):
    """``L(w) = w1 w2``: a loss that ``A = diag(3, 1/3)`` does not change."""

    def __init__(self, at: Point2) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The loss as transformers return it."""
        return {"loss": self.w[0] * self.w[1] * x.mean()}


@dataclass(frozen=True)
class Maximum:
    """The largest loss in a maximisation region around a point.

    Attributes:
        region: its shape.
        at: the middle.
        where: the point of the region with the largest loss.
        loss: the loss there.
    """

    region: Region
    at: Point2
    where: Point2
    loss: float


REGIONS = {
    "(a) sphere": Region(0.5),
    "(b) cuboid": Region(0.4, p=math.inf, adaptive=True),
    "(c) ellipsoid": Region(0.5, adaptive=True),
}
REGION_POINTS: tuple[Point2, Point2] = ((1.0, 1.0), (3.0, 1 / 3))


def maximum(region: Region, at: Point2, *, steps: int = 200) -> Maximum:
    """The largest loss of `Product` in a region, by ascent (Kwon et al., 2021, Figure 1)."""
    with loss_surface(Product(at), [{"x": torch.ones(1, dtype=torch.float64)}]) as f, torch.no_grad():
        loss, shift = max(region.around(f).climb(steps, step=0.05), key=lambda pair: pair[0])
        (e,) = shift.tensors()
    assert e is not None
    return Maximum(region, at, (at[0] + float(e[0]), at[1] + float(e[1])), loss)


Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Hill:
    """A one-dimensional valley with its minimum at 0.

    Attributes:
        name: how it looks.
        loss: the function.
    """

    name: str
    loss: Curve


def _wavy(x: Tensor) -> Tensor:
    return x**2 + 0.3 * (1 - x**2) * torch.sin(4 * math.pi * x) ** 2


MANY_MINIMA = (Hill("one flat valley", lambda x: x**2), Hill("many narrow valleys", _wavy))
"""Both rise to 1 at the radius 1; the second one turns often on the way (Zhang et al., 2023, Figure 1a)."""
ONE_MINIMUM = (Hill("even slope", lambda x: 0.5 * x**2), Hill("late, steep rise", lambda x: 0.4 * x**4))
"""The second one is lower within the radius 1, and steeper at it: it rises above the first one outside (Figure 1b)."""


class _OnLine(nn.Module):
    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve, self.w = curve, nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.curve(self.w).sum() * x.mean()}


def flatness_of(hill: Hill, rho: float = 1.0, starts: int = 40) -> tuple[float, float]:
    """Zeroth- and first-order flatness, R0 and R1, of a hill at its minimum."""
    with loss_surface(_OnLine(hill.loss), [{"x": torch.ones(1, dtype=torch.float64)}]) as f:
        values = Flatness(rho=rho, steps=15, step=0.01, starts=starts).measure(f).values
    return values["r0"], values["r1"]


def steepest_on_grid(hill: Hill, rho: float = 1.0, points: int = 20_001) -> tuple[float, float]:
    """The same by brute force."""
    x = torch.linspace(-rho, rho, points, dtype=torch.float64, requires_grad=True)
    losses = hill.loss(x)
    (slope,) = torch.autograd.grad(losses.sum(), x)
    return float(losses.max()), rho * float(slope.abs().max())


def curve(hill: Hill, reach: float, points: int = 601) -> tuple[Sequence[float], Sequence[float]]:
    """Points of a hill, for a figure."""
    x = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return x.tolist(), hill.loss(x).tolist()
