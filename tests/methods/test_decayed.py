"""Decayed: the method on a loss that has the penalty in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from hf_sharp import ASAM, CRSAM, GAM, GSAM, LPF, RSAM, SAM, AbstractMethod, AcceleratedGAM, Decayed, Every, SharpStep
from tests.problems import MODELS, Perceptron, Watch, batch_for, compare, generic
from tests.reference import (
    Problem,
    Small,
    accelerated_gam,
    asam,
    crsam,
    flat,
    flat_gradient,
    gam,
    gsam,
    lpf,
    rsam,
    sam,
)

CASES: list[tuple[AbstractMethod, Callable[[Problem, Tensor, list[Tensor], int], Tensor]]] = [
    (SAM(0.2), lambda f, w, shifts, step: sam(f, w, 0.2)),
    (SAM(0.2, p=1.3), lambda f, w, shifts, step: sam(f, w, 0.2, 1.3)),
    (ASAM(0.2), lambda f, w, shifts, step: asam(f, w, 0.2, 0.01)),
    (GSAM(0.2, 0.4), lambda f, w, shifts, step: gsam(f, w, 0.2, 0.4)),
    (CRSAM(0.2, 0.4, 0.1, log=True), lambda f, w, shifts, step: crsam(f, w, 0.2, 0.4, 0.1, log=True)),
    (GAM(0.2, 0.5, step=0.05), lambda f, w, shifts, step: gam(f, w, 0.2, 0.5, 0.05)),
    (GAM(0.2, 0.5, hvp="exact"), lambda f, w, shifts, step: gam(f, w, 0.2, 0.5)),
    (AcceleratedGAM(0.2, 0.05), lambda f, w, shifts, step: accelerated_gam(f, w, 0.2, 0.05, 0.6, 0.5, 0.03)),
    (RSAM(0.2, gamma=0.05), lambda f, w, shifts, step: rsam(f, w, shifts[0], 0.2, 2.0)),
    (LPF(gamma=0.05, draws=2), lambda f, w, shifts, step: lpf(f, w, shifts)),
]


@pytest.mark.parametrize(("method", "twin"), CASES, ids=[str(method) for method, _ in CASES])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_method_on_the_decayed_loss(
    kind: type[Small], method: AbstractMethod, twin: Callable[..., Tensor]
) -> None:
    """The twin differentiates loss plus penalty, so all gradients, losses and products in the method have it in them."""
    assert compare(kind, Decayed(method, 0.3), twin, decay=0.3, steps=3) < 1e-10


def test_decay_is_taken_at_the_shifted_point() -> None:
    """The decay's gradient in the result is that of the shifted weights, and the ascent knows of it."""
    model = generic(Perceptron())
    w, batch = flat(model), batch_for(model)
    with Watch(model) as watch:
        SharpStep(model, SGD(model.parameters(), lr=0.1), Decayed(SAM(0.2), 0.3))(
            lambda given: model(**given)["loss"], batch
        )
    plain = Problem(model, batch)
    ascent = plain.gradient(w)[1] + 0.3 * w
    shifted = w + 0.2 * ascent / ascent.norm()
    torch.testing.assert_close(watch.weights[1], shifted, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(flat_gradient(model), plain.gradient(shifted)[1] + 0.3 * shifted, rtol=1e-10, atol=1e-12)


def test_logged_loss_has_no_penalty() -> None:
    """The first pass is the loop's own: its loss is that of the model."""
    model = generic(Perceptron())
    batch = batch_for(model)
    loss = SharpStep(model, SGD(model.parameters(), lr=0.1), Decayed(SAM(), 0.3))(
        lambda given: model(**given)["loss"], batch
    )
    torch.testing.assert_close(loss, model(**batch)["loss"].detach())


def test_wraps_and_is_wrapped() -> None:
    """Inside Every the decay is there on its steps only; around Every it is there on all."""

    def inside(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        plain = f.gradient(w)[1] - 0.3 * w
        return sam(f, w, 0.2) if step % 2 == 0 else plain

    assert compare(Perceptron, Every(2, Decayed(SAM(0.2), 0.3)), inside, decay=0.3) < 1e-10

    def around(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        return sam(f, w, 0.2) if step % 2 == 0 else f.gradient(w)[1]

    assert compare(Perceptron, Decayed(Every(2, SAM(0.2)), 0.3), around, decay=0.3) < 1e-10
