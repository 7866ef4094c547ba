"""The low-pass filter against its twin, which is given the noise that the forwards ran at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_sharp import LPF, Linear
from tests.problems import MODELS, Perceptron, compare
from tests.reference import Problem, Small, lpf


@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], draws: int) -> None:
    """The mean gradient over as many places as there are draws, all of them around w and no two the same."""

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        assert len(shifts) == draws
        apart = torch.pdist(torch.stack(shifts))
        assert (apart > 0.5 * shifts[0].norm()).all()
        return lpf(f, w, shifts)

    assert compare(kind, LPF(gamma=0.05, draws=draws), twin) < 1e-10


def test_gamma_may_change() -> None:
    """With a schedule the noise has the size of the moment; at 0 the direction is the gradient."""

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        assert bool(shifts[0].any()) == bool(shifts[1].any()) == (step < 3)
        return lpf(f, w, shifts)

    assert compare(Perceptron, LPF(gamma=Linear(0.1, 0.0), draws=2), twin, steps=4) < 1e-10
