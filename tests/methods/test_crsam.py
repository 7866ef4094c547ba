"""CR-SAM against its twin, and the guard of the log form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from hf_sharp import CRSAM, SharpStep
from tests.problems import MODELS, Perceptron, compare, follow
from tests.reference import Problem, Small, crsam, sam


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], log: bool) -> None:
    """Both the released and the log form, over several steps."""
    method = CRSAM(rho=0.3, alpha=0.4, beta=0.1, log=log)
    assert compare(kind, method, lambda f, w, shifts, step: crsam(f, w, 0.3, 0.4, 0.1, log)) < 1e-10


def test_passes_run_at_both_ends() -> None:
    """The three forwards run at w, w + e and w - e, in this order."""

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        here, above, below = shifts
        assert not here.any()
        torch.testing.assert_close(above, -below)
        assert float(above.norm()) == pytest.approx(0.3)
        assert float(above.dot(f.gradient(w)[1])) > 0
        return crsam(f, w, 0.3, 0.4, 0.1)

    assert compare(Perceptron, CRSAM(rho=0.3, alpha=0.4, beta=0.1), twin) < 1e-10


def test_without_weights_it_is_sam() -> None:
    """alpha = beta = 0 leaves SAM."""
    assert compare(Perceptron, CRSAM(0.2, alpha=0.0, beta=0.0), lambda f, w, shifts, step: sam(f, w, 0.2)) < 1e-10


class Curve(Small):
    """A loss of one weight, by name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.weight = name, nn.Parameter(torch.tensor([0.8, 0.3], dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        w = self.weight
        losses = {"hill": -w.square().sum(), "plane": w @ x, "bowl": w.square().sum(), "wave": (4 * w).cos().sum()}
        return {"loss": losses[self.name] + 1}


@pytest.mark.parametrize(
    ("name", "rho", "second", "first"),
    [
        ("bowl", 0.1, 0, 0),
        ("hill", 0.1, 1, 0),
        ("plane", 0.1, 1, 0),
        ("wave", 1.0, 1, 1),
        ("bowl", 0.0, 1, 1),
    ],
)
def test_guard_acts_and_is_counted(name: str, rho: float, second: int, first: int) -> None:
    """Where a difference of the losses is not above rounding its term is left out and counted, on every such step."""
    model = Curve(name)
    optimizer = SGD(model.parameters(), lr=1e-3)
    sharp = SharpStep(model, optimizer, CRSAM(rho=rho, alpha=0.4, beta=0.1, log=True))
    batches = [{"x": torch.tensor([0.7, 0.123456789], dtype=torch.float64)}] * 3
    errors = follow(sharp, model, optimizer, batches, lambda f, w, shifts, step: crsam(f, w, rho, 0.4, 0.1, log=True))
    assert max(errors) < 1e-10
    counted = {"sharpness/crsam_d2_guard": 3.0 * second, "sharpness/crsam_d1_guard": 3.0 * first}
    assert {key: value for key, value in sharp.scalars().items() if "guard" in key} == counted
    again = SharpStep(model, optimizer, CRSAM(rho=rho, alpha=0.4, beta=0.1, log=True))
    again.load_state_dict(sharp.state_dict())
    assert {key: value for key, value in again.scalars().items() if "guard" in key} == counted


def test_guard_knows_rounding() -> None:
    """A plane has no curvature: where rounding makes its second difference positive the guard acts all the same."""
    model, rounding, steps = Curve("plane"), [], 20
    optimizer = SGD(model.parameters(), lr=1e-3)
    sharp = SharpStep(model, optimizer, CRSAM(rho=0.1, alpha=0.4, beta=0.1, log=True))

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        here, above, below = (f.gradient(w + shift)[0] for shift in shifts)
        rounding.append(float(above + below - 2 * here))
        return crsam(f, w, 0.1, 0.4, 0.1, log=True)

    generator = torch.Generator().manual_seed(0)
    batches = [{"x": 0.1 * torch.randn(2, generator=generator, dtype=torch.float64)} for _ in range(steps)]
    assert max(follow(sharp, model, optimizer, batches, twin)) < 1e-10
    assert any(second > 0 for second in rounding)
    assert sharp.scalars()["sharpness/crsam_d2_guard"] == steps


def test_released_form_needs_no_guard() -> None:
    """Without logarithms a hill is curvature like any other, and nothing is counted."""
    model = Curve("hill")
    optimizer = SGD(model.parameters(), lr=1e-3)
    sharp = SharpStep(model, optimizer, CRSAM(rho=0.1, alpha=0.4, beta=0.1))
    batches = [{"x": torch.zeros(2, dtype=torch.float64)}] * 2
    errors = follow(sharp, model, optimizer, batches, lambda f, w, shifts, step: crsam(f, w, 0.1, 0.4, 0.1))
    assert max(errors) < 1e-10
    assert sharp.scalars() == {"sharpness/passes": 3.0}
