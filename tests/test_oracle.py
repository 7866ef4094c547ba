"""What asking the oracle costs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from hf_sharp import GAM, RSAM, SAM, AbstractMethod, Decayed, Every, SharpStep
from hf_sharp.methods import ascend
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector
from tests.problems import Perceptron, batch_for, generic
from tests.reference import flat_gradient


@dataclass(frozen=True)
class Forgetful(AbstractMethod):
    """Lets go of the first gradient, and asks for it again after another pass."""

    def direction(self, f: AbstractOracle) -> Vector:
        seen = float(f().grad.norm())
        e = ascend(f().grad, 0.1).stored()
        there = f(e).grad
        again = f().grad
        assert float(again.norm()) == pytest.approx(seen, rel=1e-12)
        return there + again


@dataclass(frozen=True)
class Holding(AbstractMethod):
    """The same, but it holds what it was given."""

    def direction(self, f: AbstractOracle) -> Vector:
        first = f().grad
        there = f(ascend(f().grad, 0.1).stored()).grad
        return there + (f().grad + first) / 2


def passes(method: AbstractMethod) -> tuple[float, torch.Tensor]:
    model = generic(Perceptron())
    sharp = SharpStep(model, torch.optim.SGD(model.parameters(), 0.1), method)
    sharp(lambda b: model(**b)["loss"], batch_for(model))
    return sharp.scalars()["sharpness/passes"], flat_gradient(model)


def test_the_first_answer_is_there_while_it_is_held() -> None:
    """A method that lets it go gets the same answer again, for one more pass."""
    (costly, a), (cheap, b) = passes(Forgetful()), passes(Holding())
    assert (costly, cheap) == (3, 2)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SAM(), 2),
        (RSAM(), 2),
        (Every(3, RSAM()), 2),
        (GAM(), 4),
        (GAM(base=SAM()), 5),
        (GAM(base=RSAM()), 6),
        (Decayed(SAM(), 0.1), 2),
        (Decayed(GAM(base=SAM()), 0.1), 5),
        (Decayed(RSAM(), 0.1), 2),
    ],
    ids=str,
)
def test_no_method_asks_twice(method: AbstractMethod, expected: int) -> None:
    assert passes(method)[0] == expected


@dataclass(frozen=True)
class Product(AbstractMethod):
    """The exact Hessian times ones."""

    def direction(self, f: AbstractOracle) -> Vector:
        return f.hessian_vector(Vector(f.weights.space, [torch.ones_like(w) for w in f.weights.tensors()]))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_products_can_be_written_into(micro_batches: int) -> None:
    """Autograd hands out one number, expanded, where a weight enters through its sum only; DDP averages in place."""
    model = torch.nn.Linear(3, 1, bias=False)
    sharp = SharpStep(model, torch.optim.SGD(model.parameters(), 0.1), Product())
    seen: list[torch.Tensor] = []
    scatter = sharp._backend.scatter
    sharp._backend.scatter = lambda parts: (seen.extend(parts), scatter(parts))[1]  # type: ignore[method-assign]
    for i in range(micro_batches):
        sharp(lambda b: b * model.weight.sum() ** 2, torch.tensor(1.0), last=i == micro_batches - 1)
    assert [x.is_contiguous() for x in seen] == [True]
    assert torch.equal(model.weight.grad, torch.full((1, 3), 6.0 * micro_batches))
