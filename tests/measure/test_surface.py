"""The loss as a function on weight space: its values, gradients and Hessian products, and what it leaves behind."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sharp import ASAM, SAM
from hf_sharp.measure import How, Sharpness, Trace, loss_surface, read
from hf_sharp.measure.ranks import Ranks
from hf_sharp.vector import Vector
from tests.measure.models import Classifier, Fused, Normalised, Quadratic, batches, dense, made, opened, samples, symmetric
from tests.models import bart, collated, differences, rows, snapshot, streams, vit


def flat(v: Vector) -> Tensor:
    return torch.cat(
        [
            torch.zeros(like.numel()) if x is None else x.reshape(-1)
            for x, like in zip(v.tensors(), v.space.like, strict=True)
        ]
    )


def vector(f: Any, x: Tensor) -> Vector:
    sizes = [like.numel() for like in f.space.like]
    return Vector(f.space, [part.view_as(like) for part, like in zip(x.split(sizes), f.space.like, strict=True)])


@pytest.mark.parametrize("size", [20, 8, 1])
def test_loss_and_gradient_do_not_depend_on_the_batches(size: int) -> None:
    """Samples are weighted, not batches."""
    model, whole = made(Classifier()), samples()
    loss = model(**whole)["loss"]
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
    with opened(model, batches(size=size)) as f:
        assert f.loss() == pytest.approx(float(loss), rel=1e-12)
        assert float(f().loss) == pytest.approx(float(loss), rel=1e-12)
        assert torch.allclose(flat(f().grad), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [20, 8])
@pytest.mark.parametrize("hvp", ["exact", "difference"])
def test_hessian_products_are_those_of_the_dense_hessian(hvp: str, size: int) -> None:
    """At the weights, twice (from the kept graph), and elsewhere."""
    model = made(Classifier())
    h = dense(model, samples())
    x, e = (torch.randn(len(h), dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    moved = copy.deepcopy(model)
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(moved.parameters()) + e, moved.parameters())
    there = dense(moved, samples())
    with opened(model, batches(size=size), hvp=hvp) as f:
        for _ in range(2):
            assert torch.allclose(flat(f.hessian_vector(vector(f, x))), h @ x, rtol=1e-6, atol=1e-8)
        assert torch.allclose(flat(f.hessian_vector(vector(f, x), vector(f, e))), there @ x, rtol=1e-6, atol=1e-8)
        assert torch.allclose(flat(f.hessian_vector(vector(f, x))), h @ x, rtol=1e-6, atol=1e-8)


def test_differences_cost_two_gradients_and_exact_products_one_pass() -> None:
    with opened(made(Classifier()), batches()) as f:
        f.hessian_vector(f.normal(0))
        assert f.passes == {"hessian": 1}
    with opened(made(Classifier()), batches(), hvp="difference") as f:
        f.hessian_vector(f.normal(0))
        assert f.passes == {"gradient": 2}


@pytest.mark.parametrize("method", [SAM(rho=0.1), ASAM(rho=0.3)])
def test_a_method_can_be_asked(method: Any) -> None:
    """The direction is the gradient at the point that the method climbs to."""
    model, whole = made(Classifier()), samples()
    with opened(model, batches()) as f, torch.no_grad():
        direction = flat(method.direction(f))
    parameters = list(model.parameters())
    g = torch.autograd.grad(model(**whole)["loss"], parameters)
    if isinstance(method, SAM):
        t = [torch.ones_like(p) for p in parameters]
    else:
        t = [torch.ones_like(p) if p.ndim == 1 else p.detach().abs() + 0.01 for p in parameters]
    norm = torch.cat([(a * b).reshape(-1) for a, b in zip(t, g, strict=True)]).norm()
    with torch.no_grad():
        for p, a, b in zip(parameters, t, g, strict=True):
            p.add_(method.rho * a**2 * b / norm)
    there = torch.autograd.grad(model(**whole)["loss"], parameters)
    assert torch.allclose(direction, torch.cat([x.reshape(-1) for x in there]), rtol=1e-8)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_everything_is_as_it_was(statistics: str) -> None:
    """Weights, buffers, modes, gradients and random streams, to the bit, for a model in training."""
    model = made(Normalised()).train()
    model(**samples())["loss"].backward()
    model.layers[0].eval()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    copies = {name: g.clone() for name, g in gradients.items() if g is not None}
    before, modes, held = snapshot(model), [m.training for m in model.modules()], streams()
    with opened(model, batches(), statistics=statistics) as f:
        f(f.normal(0))
        f.loss(f.normal(1))
        f.hessian_vector(f.normal(2))
        random.random(), np.random.rand(), torch.rand(3)
    assert differences(snapshot(model), before) == []
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is gradients[name] for name, p in model.named_parameters())
    assert differences({name: p.grad for name, p in model.named_parameters()}, copies) == []
    assert differences(streams(), held) == []


def test_batch_norm_uses_the_statistics_that_were_asked_for() -> None:
    model, whole = made(Normalised()), samples()
    with torch.no_grad():
        evaluated = float(model(**whole)["loss"])
        trained = float(copy.deepcopy(model).train()(**whole)["loss"])
    with opened(model, [whole]) as f:
        assert f.loss() == pytest.approx(evaluated, rel=1e-12)
        assert Trace(draws=2).measure(f).about["batch_norm"] == "running statistics in 1 layers"
    with opened(model, [whole], statistics="batch") as f:
        assert f.loss() == pytest.approx(trained, rel=1e-12)
    assert abs(evaluated - trained) > 1e-3


def test_dropout_is_off_and_said_to_be() -> None:
    model, whole = made(Classifier(dropout=0.5)), samples()
    with torch.no_grad():
        still = float(model(**whole)["loss"])
    model.train()
    with pytest.warns(UserWarning, match="Dropout is off while sharpness is measured"), opened(model, [whole]) as f:
        assert f.loss() == f.loss() == pytest.approx(still, rel=1e-12)
    assert model.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(model.eval(), [whole]):
            pass


class Noisy(Classifier):
    """Draws in its forward, whatever the mode."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return super().forward(x + torch.randn_like(x), labels)


def test_random_numbers_are_frozen() -> None:
    """A model that draws in eval mode sees the same numbers in each pass, so differences are not noise."""
    model = made(Noisy())
    with pytest.warns(UserWarning, match="frozen"), opened(model, batches()) as f:
        losses, about = (f.loss(), f.loss(), float(f().loss)), Trace(draws=2).measure(f).about
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-12)
    assert about["dropout"] == "frozen mask"


def test_dropout_by_a_function_in_training_is_said_to_be_off() -> None:
    """No layer of this model is one, so only its settings tell."""
    model = bart().train()
    for module in model.modules():
        assert not isinstance(module, nn.Dropout)
    data = [collated(rows("bart", 2))]
    with pytest.warns(UserWarning, match="Dropout is off while sharpness is measured"), loss_surface(model, data) as f:
        about = Sharpness().measure(f).about
    assert about["dropout"] == "off"


class Drifting(Classifier):
    """Its loss changes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"loss": super().forward(x, labels)["loss"] * self.calls}


def ask(model: nn.Module, data: Any, **settings: Any) -> None:
    with opened(model, data, **settings) as f:
        f.hessian_vector(f.normal(0))


def test_fused_attention_is_refused_before_it_runs() -> None:
    """By its name, since such kernels come from packages of their own; without exact products nobody minds."""
    model = vit()
    model.config._attn_implementation = "flash_attention_2"
    with loss_surface(model.eval(), [collated(rows("vit", 2))], check=False) as f:
        with pytest.raises(ValueError, match=r"got one without: attn_implementation='flash_attention_2'\. Use hvp="):
            f.hessian_vector(f.normal(0))
        assert not f.passes


def test_a_loss_that_changes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^The loss must be a function of the weights, got .* and then "):
        ask(made(Drifting()), batches())


@pytest.mark.parametrize("size", [20, 8])
def test_an_operation_without_second_derivative_is_refused(size: int) -> None:
    """On one batch, whose graph is kept, as on several: its product would be wrong without a word."""
    with pytest.raises(ValueError, match=r"^hvp='exact' needs a second derivative of every operation, got one without: "):
        ask(made(Fused()), batches(size=size))


def test_differences_work_where_there_is_no_second_derivative() -> None:
    model = made(Fused())
    with opened(model, batches(), hvp="difference") as f:
        assert float(f.hessian_vector(f.normal(0)).norm()) > 0


def test_only_perturbed_weights_count() -> None:
    a = symmetric(6)
    model = Quadratic(a)
    model.other = nn.Parameter(torch.ones(2, dtype=torch.float64))
    with loss_surface(model, [{"x": torch.ones(1, dtype=torch.float64)}], how=How(perturb="w")) as f:
        assert f.dimension == 6
        assert Trace(draws=2).measure(f).about["parameters"] == 6


def test_samples_are_read_in_whole_batches_and_shared_out() -> None:
    data = batches(20, 8)
    assert read(data, Ranks(), samples=9).total == 16
    shares = [read(data, Ranks(rank, 2)) for rank in (0, 1)]
    assert [share.counts for share in shares] == [(8, 4), (8,)]
    assert {share.total for share in shares} == {20}
