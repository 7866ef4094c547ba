"""GSAM against its twin."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from hf_sharp import GSAM, SharpStep
from tests.problems import MODELS, Perceptron, batches_for, compare, follow, generic
from tests.reference import Problem, Small, gsam, sam


@pytest.mark.parametrize("alpha", [0.4, 1.5])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], alpha: float) -> None:
    """The part of g orthogonal to the perturbed gradient is taken away, alpha times."""
    assert compare(kind, GSAM(0.2, alpha), lambda f, w, shifts, step: gsam(f, w, 0.2, alpha)) < 1e-10


def test_without_the_orthogonal_part_it_is_sam() -> None:
    """alpha = 0 leaves SAM."""
    assert compare(Perceptron, GSAM(0.2, alpha=0.0), lambda f, w, shifts, step: sam(f, w, 0.2)) < 1e-10


@pytest.mark.parametrize("rho_min", [0.0, 0.05])
def test_radius_follows_the_learning_rate(rho_min: float) -> None:
    """With rho_min the radius goes from rho_min to rho and back as a schedule with warm-up moves the learning rate."""
    shares = [0.25, 1.0, 0.5, 0.0]
    model = generic(Perceptron())
    optimizer = SGD(model.parameters(), lr=0.3)
    scheduler = LambdaLR(optimizer, lambda step: (*shares, 0.0)[step])
    radii = []

    def twin(f: Problem, w: torch.Tensor, shifts: list[torch.Tensor], step: int) -> torch.Tensor:
        radii.append(float(shifts[1].norm()))
        return gsam(f, w, rho_min + (0.2 - rho_min) * shares[step], 0.4)

    sharp = SharpStep(model, optimizer, GSAM(rho=0.2, alpha=0.4, rho_min=rho_min))
    errors = follow(sharp, model, optimizer, batches_for(model), twin, after=scheduler.step)
    assert max(errors) < 1e-10
    assert radii == pytest.approx([rho_min + (0.2 - rho_min) * share for share in shares])
