"""R-SAM against its twin, which is given the noise that the first forward ran at."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from hf_sharp import RSAM, Cosine, SharpStep
from tests.problems import MODELS, Perceptron, Watch, batch_for, compare, generic
from tests.reference import Problem, Small, flat, rsam, sam


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("lam", [0.3, 2.0])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], lam: float, project: bool) -> None:
    """The second pass runs at eq. 7, or eq. 6 without projection, both from w and not from w + delta_0."""
    method = RSAM(rho=0.2, gamma=0.05, lam=lam, project=project)
    assert compare(kind, method, lambda f, w, shifts, step: rsam(f, w, shifts[0], 0.2, lam, project)) < 1e-10


def test_noise_may_grow() -> None:
    """With a schedule for gamma the noise of each step has the size of the moment; at 0 the method is SAM."""
    sizes = []

    def twin(f: Problem, w: torch.Tensor, shifts: list[torch.Tensor], step: int) -> torch.Tensor:
        sizes.append(float(shifts[0].norm() / w.norm()))
        return sam(f, w, 0.2) if step == 0 else rsam(f, w, shifts[0], 0.2, 2.0)

    assert compare(Perceptron, RSAM(rho=0.2, gamma=Cosine(0.0, 0.1)), twin, steps=5) < 1e-10
    assert sizes[0] == 0
    assert sizes == sorted(sizes)


def test_loss_is_the_one_at_the_smoothed_point() -> None:
    """The loss that the step returns is that of the first pass, at w + delta_0; there are two passes."""
    model = generic(Perceptron())
    batch, w = batch_for(model), flat(model)
    with Watch(model) as watch:
        loss = SharpStep(model, SGD(model.parameters(), lr=0.1), RSAM(gamma=0.1))(
            lambda given: model(**given)["loss"], batch
        )
    first, second = watch.weights
    torch.testing.assert_close(loss, Problem(model, batch).gradient(first)[0], rtol=1e-12, atol=0)
    assert float((first - w).norm()) > 0.01
    assert float((second - w).norm()) == pytest.approx(0.05, rel=1e-9)
