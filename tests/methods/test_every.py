"""Every: which steps its methods run on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from hf_sharp import ASAM, GAM, GSAM, RSAM, SAM, AbstractMethod, Every, SharpStep
from tests.problems import MODELS, Perceptron, batch_for, compare, generic
from tests.reference import Problem, Small, asam, flat_gradient, gam, gsam, rsam, sam


@pytest.mark.parametrize(("k", "offset", "active"), [(1, 0, "SSSSSS"), (2, 0, "S.S.S."), (3, 1, ".S..S."), (4, 3, "...S..")])
@pytest.mark.parametrize("kind", MODELS)
def test_runs_on_every_kth_step(kind: type[Small], k: int, offset: int, active: str) -> None:
    """Steps count from 0; on the others there is one pass and the plain gradient."""
    passes = []

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        passes.append(len(shifts))
        return gsam(f, w, 0.2, 0.4) if active[step] == "S" else f.gradient(w)[1]

    assert compare(kind, Every(k, GSAM(0.2, 0.4), offset=offset), twin, steps=6) < 1e-10
    assert passes == [2 if letter == "S" else 1 for letter in active]


def test_otherwise_runs_on_the_others() -> None:
    """The paper's curve for SAM+GAM: SAM on all steps, and GAM on top of it on some."""

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        assert len(shifts) == (5 if step % 3 == 0 else 2)
        return gam(f, w, 0.3, 0.5, 0.05, lambda f, w: sam(f, w, 0.1)) if step % 3 == 0 else sam(f, w, 0.1)

    method = Every(3, GAM(0.3, 0.5, step=0.05, base=SAM(0.1)), otherwise=SAM(0.1))
    assert compare(Perceptron, method, twin, steps=6) < 1e-10


@pytest.mark.parametrize("otherwise", [None, SAM(0.1)])
def test_first_pass_moves_on_its_own_steps_only(otherwise: AbstractMethod | None) -> None:
    """With R-SAM inside the first pass is at w + delta_0 on its steps and at w on the others."""

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        assert bool(shifts[0].any()) == (step % 2 == 0)
        if step % 2 == 0:
            return rsam(f, w, shifts[0], 0.2, 2.0)
        return f.gradient(w)[1] if otherwise is None else sam(f, w, 0.1)

    assert compare(Perceptron, Every(2, RSAM(0.2, gamma=0.05), otherwise=otherwise), twin) < 1e-10


def test_nests() -> None:
    """Every second step, and of the others every third."""
    inner = Every(3, ASAM(0.2), otherwise=None)

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        if step % 2 == 0:
            return sam(f, w, 0.1)
        return asam(f, w, 0.2, 0.01) if step % 3 == 0 else f.gradient(w)[1]

    assert compare(Perceptron, Every(2, SAM(0.1), otherwise=inner), twin, steps=7) < 1e-10


def test_plain_steps_are_exact() -> None:
    """A step on which nothing runs gives the gradient to the bit."""
    model = generic(Perceptron())
    batch = batch_for(model)
    model(**batch)["loss"].backward()
    gradient = flat_gradient(model)
    model.zero_grad()
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), Every(9, SAM(), offset=8))
    sharp(lambda given: model(**given)["loss"], batch)
    assert torch.equal(flat_gradient(model), gradient)
