"""GAM against its twins, with gradient differences and with exact Hessian-vector products."""

from __future__ import annotations

import pytest
from torch.optim import SGD

from hf_sharp import GAM, GSAM, RSAM, SAM, AbstractMethod, SharpStep
from tests.problems import MODELS, Perceptron, batch_for, compare, generic
from tests.reference import Problem, Small, error, flat, flat_gradient, gam, gsam, rsam, sam


@pytest.mark.parametrize("step", [0.05, None])
@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], alpha: float, step: float | None) -> None:
    """Algorithm 1, with differences of a length and exact; the exact twin uses torch's own product."""
    method = GAM(0.3, alpha, hvp="exact") if step is None else GAM(0.3, alpha, step=step)
    assert compare(kind, method, lambda f, w, shifts, i: gam(f, w, 0.3, alpha, step)) < 1e-10


@pytest.mark.parametrize("step", [0.05, None])
def test_base_gives_the_first_term(step: float | None) -> None:
    """The direction of the base stands where the gradient of L_oracle is meant: SAM+GAM, GSAM+GAM."""
    hvp = "exact" if step is None else "difference"
    on_sam = GAM(0.3, 0.5, hvp=hvp, step=step or 1.0, base=SAM(0.1))
    assert (
        compare(Perceptron, on_sam, lambda f, w, shifts, i: gam(f, w, 0.3, 0.5, step, lambda f, w: sam(f, w, 0.1))) < 1e-10
    )
    on_gsam = GAM(0.3, 0.5, hvp=hvp, step=step or 1.0, base=GSAM(0.1, 0.4))
    twin = lambda f, w, shifts, i: gam(f, w, 0.3, 0.5, step, lambda f, w: gsam(f, w, 0.1, 0.4))  # noqa: E731
    assert compare(Perceptron, on_gsam, twin) < 1e-10


def test_random_base_runs_its_own_first_pass() -> None:
    """Under GAM the first pass is at the weights; R-SAM as the base goes to w + delta_0 by itself."""
    method = GAM(0.3, 0.5, step=0.05, base=RSAM(0.1, gamma=0.05))
    twin = lambda f, w, shifts, i: gam(f, w, 0.3, 0.5, 0.05, lambda f, w: rsam(f, w, shifts[1], 0.1, 2.0))  # noqa: E731
    assert compare(Perceptron, method, twin) < 1e-10


def test_differences_become_exact() -> None:
    """The error of the difference form is in proportion to its step."""
    model = generic(Perceptron())
    batch, w = batch_for(model), flat(model)
    exact = gam(Problem(model, batch), w, 0.3, 0.5)
    errors = []
    for step in (1e-2, 1e-3, 1e-4):
        SharpStep(model, SGD(model.parameters(), lr=0.1), GAM(0.3, 0.5, step=step))(
            lambda given: model(**given)["loss"], batch
        )
        errors.append(error(flat_gradient(model), exact))
        model.zero_grad()
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (GAM(), 4),
        (GAM(hvp="exact"), 4),
        (GAM(base=SAM()), 5),
        (GAM(hvp="exact", base=SAM()), 5),
        (GAM(base=GAM()), 7),
    ],
)
def test_a_base_does_not_pay_for_the_gradient_again(method: AbstractMethod, passes: int) -> None:
    """g(w) is one pass however many methods ask for it; a Hessian-vector product counts as one."""
    model = generic(Perceptron())
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), method)
    sharp(lambda given: model(**given)["loss"], batch_for(model))
    assert sharp.scalars() == {"sharpness/passes": passes}
