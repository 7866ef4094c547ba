"""SAM against its twin, for any p; and which parameters a method may move."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD

from hf_sharp import ASAM, METHODS, SAM, AbstractMethod, SharpStep
from hf_sharp.parameters import Perturb
from tests.problems import EXAMPLES, MODELS, Perceptron, Watch, batch_for, compare, generic
from tests.reference import Small, asam, flat, flat_gradient, sam

NORMS = (1, 1.0001, 1.3, 2, 3, 50, math.inf)


class Slope(Small):
    """A loss with the gradient that it is given."""

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros_like(gradient))
        self.register_buffer("gradient", gradient)

    def forward(self) -> dict[str, Tensor]:
        return {"loss": (self.weight * self.gradient).sum()}


def shift_of(gradient: Tensor, method: AbstractMethod, scaler: GradScaler | None = None) -> Tensor:
    """The shift of a method's second pass where the loss has this gradient."""
    model = Slope(gradient)
    with Watch(model) as watch:
        SharpStep(model, SGD(model.parameters(), lr=0.1), method, scaler=scaler)(lambda _: model()["loss"], {})
    assert len(watch.weights) == 2
    return watch.weights[1]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], p: float) -> None:
    """The direction is the gradient at the dual-norm ascent step, for every p and every kind of layer."""
    assert compare(kind, SAM(0.2, p=p), lambda f, w, shifts, step: sam(f, w, 0.2, p)) < 1e-10


@pytest.mark.parametrize("p", NORMS)
def test_shift_is_the_best_in_the_ball(p: float) -> None:
    """The shift has p-norm rho, and its product with the gradient is rho times the dual norm (Hoelder with equality)."""
    gradient = torch.tensor([0.3, -2.0, 1.1, 1.9, -0.02], dtype=torch.float64)
    e = shift_of(gradient, SAM(0.1, p=p))
    q = 1 if p == math.inf else math.inf if p == 1 else p / (p - 1)
    assert float(torch.linalg.vector_norm(e, p)) == pytest.approx(0.1, rel=1e-9)
    assert float(e.dot(gradient)) == pytest.approx(0.1 * 2 * float(torch.linalg.vector_norm(gradient / 2, q)), rel=1e-9)


def test_ties_share_the_radius() -> None:
    """At p = 1 equal largest entries share rho, each with its own sign, and nothing else moves."""
    e = shift_of(torch.tensor([2.0, -2.0, 1.0, 0.0, 2.0], dtype=torch.float64), SAM(0.3, p=1))
    torch.testing.assert_close(e, torch.tensor([0.1, -0.1, 0.0, 0.0, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("p", [1, 1.0001, 1.001, 1.05, 2, 50, math.inf])
@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_float32_is_finite_near_one(kind: type[SAM] | type[ASAM], p: float, size: float) -> None:
    """In float32 the shift is finite and has its length for small and large gradients, also where powers overflow."""
    gradient = size * torch.tensor([0.3, -2.0, 1.1, 1.9, -0.02])
    e = shift_of(gradient, kind(0.1, p=p))
    t = 1.0 if kind is SAM else 0.01  # the weights are zero: T is eta
    assert float(torch.linalg.vector_norm(e.double() / t, p)) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("p", [1, 1 + 1e-10, 1 + 1e-9, 1 + 1e-6])
@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_the_largest_entry_is_found_in_float32(kind: type[SAM] | type[ASAM], p: float) -> None:
    """Whatever the loss scale: a quotient that misses 1 by one rounding vanishes in a power of 1e9."""
    torch.manual_seed(0)
    for _ in range(40):
        gradient = torch.randn(20)
        scaler = GradScaler("cpu", init_scale=1000.0)
        e = shift_of(gradient, kind(0.1, p=p), scaler)
        t = 1.0 if kind is SAM else 0.01
        assert float(torch.linalg.vector_norm(e.double() / t, 1)) == pytest.approx(0.1, rel=1e-3)
        assert e.abs().argmax() == gradient.abs().argmax()


@pytest.mark.parametrize("p", NORMS)
def test_zero_gradient_moves_nothing(p: float) -> None:
    """Where the gradient is zero the second pass runs at the weights, not at NaN."""
    assert not shift_of(torch.zeros(4, dtype=torch.float64), SAM(0.1, p=p)).any()


@pytest.mark.parametrize("p", NORMS)
def test_nan_is_not_hidden(p: float) -> None:
    """A NaN in the gradient reaches the second pass, for the loop to see."""
    assert shift_of(torch.tensor([1.0, math.nan], dtype=torch.float64), SAM(0.1, p=p)).isnan().any()


@pytest.mark.parametrize(
    ("perturb", "factors"),
    [
        ("inner.*", {"inner.weight": 1.0, "inner.bias": 1.0}),
        (["norm.*", "*.bias"], {"norm.weight": 1.0, "norm.bias": 1.0, "inner.bias": 1.0, "outer.bias": 1.0}),
        ({"outer.weight": 3.0, "inner.*": 0.5}, {"outer.weight": 3.0, "inner.weight": 0.5, "inner.bias": 0.5}),
        ({"norm.*": 0.0, "*.weight": 2.0}, {"inner.weight": 2.0, "outer.weight": 2.0}),
    ],
)
@pytest.mark.parametrize("p", [1, 1.3, 2, math.inf])
def test_perturb_chooses_parameters_and_radii(perturb: Perturb, factors: dict[str, float], p: float) -> None:
    """The norm runs over the matched parameters only, the factor multiplies the radius, the first pattern counts."""
    wanted = {
        SAM(0.2, p=p): lambda f, w, shifts, step: sam(f, w, 0.2, p),
        ASAM(0.2, p=p): lambda f, w, shifts, step: asam(f, w, 0.2, 0.01, p),
    }
    for method, twin in wanted.items():
        assert compare(Perceptron, method, twin, perturb=perturb, factors=factors, steps=2) < 1e-10


@pytest.mark.parametrize("name", sorted(METHODS))
def test_unmatched_parameters_never_move(name: str) -> None:
    """With perturb no pass of any method moves another parameter; they get a gradient all the same."""
    model = generic(Perceptron())
    sharp = SharpStep(
        model, SGD(model.parameters(), lr=0.1), EXAMPLES[name], steps=3, perturb={"norm.*": 2.0, "inner.bias": 1}
    )
    sharp.step = 2
    kept = torch.cat([torch.full((p.numel(),), "norm" in n or n == "inner.bias") for n, p in model.named_parameters()])
    w, batch = flat(model), batch_for(model)
    with Watch(model) as watch:
        sharp(lambda given: model(**given)["loss"], batch)
    moves = torch.stack(watch.shifts(w))
    assert len(moves) >= 2
    assert moves[:, kept].any()
    assert not moves[:, ~kept].any()
    assert flat_gradient(model)[~kept].any()
