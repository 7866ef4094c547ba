"""Means over random draws whose truth is known by a closed form or by brute force: within four standard errors, 20 times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hf_sharp.measure import AscentLoss, Extrema, GradientCosine
from hf_sharp.measure.extrema import turns
from tests.measure.models import ONES, Quadratic
from tests.measure.test_quantities import SEEDS, taken, within_four_errors

W2 = torch.tensor([0.3, -0.2], dtype=torch.float64)


def test_loss_along_the_smoothed_ascent() -> None:
    """A linear loss: the noise moves it by ``b' delta``, whose mean is 0."""
    b = torch.tensor([3.0, -4.0], dtype=torch.float64)
    model = Quadratic(torch.zeros(2, 2, dtype=torch.float64), b, W2)
    quantity = AscentLoss(rhos=[0.5], gammas=[0.3], noise_kind="isotropic", draws=20)
    truth = float(b @ W2 + 0.5 * b.norm())
    within_four_errors(lambda seed: taken(quantity, model, seed=seed), "rho=0.5,gamma=0.3", truth)


def test_cosine_along_the_smoothed_ascent() -> None:
    """A saddle, with the mean over a million draws of the noise, which is as long as the weights: they are one unit."""
    a, w = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.2], dtype=torch.float64)
    noise = torch.randn(1_000_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * w.norm()
    g = (w + noise) * a
    there = (w + noise + 3.0 * g / g.norm(dim=1, keepdim=True)) * a
    truth = float(torch.cosine_similarity(g, there).mean())
    quantity, model = GradientCosine(rhos=[3.0], gammas=[1.0], draws=30), Quadratic(torch.diag(a), w=w)
    within_four_errors(lambda seed: taken(quantity, model, seed=seed), "rho=3,gamma=1", truth)


class Ripples(nn.Module):
    """``cos(20 pi w_1)``: the fewer minima within the radius, the nearer a direction is to the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": torch.cos(20 * math.pi * self.w[0])}


def test_numbers_of_extrema() -> None:
    """Against evenly spread directions."""
    r = torch.linspace(0, 0.15, 9, dtype=torch.float64)
    angles = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)[:-1]
    lines = torch.cos(20 * math.pi * r * angles.cos()[:, None]).tolist()
    counts = torch.tensor([turns(line) for line in lines], dtype=torch.float64)
    assert len(set(counts[:, 0].tolist())) == len(set(counts[:, 1].tolist())) == 2
    results = [taken(Extrema(rho=0.15, points=8, directions=30), Ripples(), ONES, seed=seed) for seed in SEEDS]
    for i, name in enumerate(("minima", "maxima")):
        truth = float(counts[:, i].mean())
        assert all(abs(r.values[name] - truth) <= 4 * r.errors[name] for r in results)
        assert len({r.values[name] for r in results}) > 2
