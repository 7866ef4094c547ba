"""Every quantity against a closed form, a dense Hessian or brute force; every estimate against its standard error."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_sharp.measure import (
    QUANTITIES,
    AbstractQuantity,
    ApproximationRatio,
    AscentLoss,
    AverageSharpness,
    Extrema,
    Flatness,
    GradientCosine,
    LossBetween,
    LossLine,
    LossPlane,
    NormalizedTrace,
    Result,
    Sharpness,
    SpectralDensity,
    ThreeLosses,
    TopEigenvalues,
    Trace,
    parse_quantity,
)
from hf_sharp.measure.extrema import turns
from hf_sharp.measure.landscape import direction
from tests.measure.models import (
    ONES,
    Classifier,
    Quadratic,
    batches,
    dense,
    made,
    opened,
    positive,
    samples,
    symmetric,
)

SEEDS = range(20)
W2 = torch.tensor([0.3, -0.2], dtype=torch.float64)


def taken(quantity: AbstractQuantity, model: nn.Module, data: Any = None, **settings: Any) -> Result:
    with opened(model, data, **settings) as f:
        return quantity.measure(f)


def largest_on_circle(a: Tensor, w: Tensor, rho: float) -> float:
    """The largest loss gap of a quadratic in the plane, by brute force; a convex one has it on the circle."""
    angle = torch.linspace(0, 2 * math.pi, 200_001, dtype=torch.float64)
    at = w + rho * torch.stack([angle.cos(), angle.sin()], dim=1)
    return float(((at @ a) * at).sum(dim=1).max() / 2 - w @ a @ w / 2)


@pytest.mark.parametrize("steps", [1, 7])
def test_sharpness_of_a_linear_loss_is_the_dual_norm(steps: int) -> None:
    b = torch.tensor([3.0, -4.0, 0.5], dtype=torch.float64)
    model = Quadratic(torch.zeros(3, 3, dtype=torch.float64), b, torch.ones(3, dtype=torch.float64))
    for p, dual in ((2.0, b.norm()), (math.inf, b.abs().sum())):
        found = taken(Sharpness(rho=0.1, p=p, steps=steps), model).values
        assert found["sharpness"] == pytest.approx(0.1 * float(dual), rel=1e-9)
        assert found["loss"] == pytest.approx(float(b.sum()), rel=1e-12)


def test_adaptive_sharpness_of_a_linear_loss() -> None:
    """``rho |T b|_q`` with T = |w|: the weights that are 0 do not move."""
    b, w = torch.tensor([3.0, -4.0, 0.5], dtype=torch.float64), torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    model = Quadratic(torch.zeros(3, 3, dtype=torch.float64), b, w)
    for p, dual in ((2.0, (w.abs() * b).norm()), (math.inf, (w * b).abs().sum())):
        for steps in (1, 7):
            found = taken(Sharpness(rho=0.1, p=p, adaptive=True, steps=steps), model).values
            assert found["sharpness"] == pytest.approx(0.1 * float(dual), rel=1e-9)


def test_many_steps_find_the_maximum_of_a_convex_quadratic() -> None:
    a = positive(2)
    one = taken(Sharpness(rho=0.5), Quadratic(a, w=W2)).values["sharpness"]
    many = taken(Sharpness(rho=0.5, steps=60, step=1.0), Quadratic(a, w=W2)).values["sharpness"]
    assert one < many == pytest.approx(largest_on_circle(a, W2, 0.5), rel=1e-6)


class Filters(nn.Module):
    """Two bias-free convolutions with a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 2, bias=False), nn.ReLU(), nn.Dropout(0), nn.Conv2d(3, 3, 1, bias=False))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self.layers(x.view(-1, 1, 2, 2)).flatten(1), labels)}


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", [Sharpness, AverageSharpness])
@pytest.mark.parametrize("scale", ["element", "filter"])
def test_adaptive_sharpness_is_scale_invariant(p: float, steps: int, kind: type, scale: str) -> None:
    """Theorem 1: scaling a layer by c and the next one by 1 / c leaves the loss as it is, and the measure too."""
    model = made(Filters() if scale == "filter" else Classifier(bias=False, activation=nn.ReLU))
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.layers[0].weight.mul_(4.0)
        scaled.layers[3].weight.div_(4.0)
    extra = {"steps": steps} if kind is Sharpness else {"draws": 5}
    adaptive, plain = (kind(rho=0.2, p=p, adaptive=yes, scale=scale, **extra) for yes in (True, False))
    one, other = (taken(adaptive, net, batches()).values for net in (model, scaled))
    assert one[adaptive.name] == pytest.approx(other[adaptive.name], rel=1e-9)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
    rigid, moved = (taken(plain, net, batches()).values[plain.name] for net in (model, scaled))
    assert abs(rigid - moved) > 0.05 * abs(rigid)


def test_m_sharpness_is_the_mean_over_groups() -> None:
    model, whole = made(Classifier()), samples(20)
    result = taken(Sharpness(rho=0.1, m=4), model, batches(20, 8))
    parts = [{key: value[i : i + 4] for key, value in whole.items()} for i in range(0, 20, 4)]
    single = [taken(Sharpness(rho=0.1), model, [part]).values["sharpness"] for part in parts]
    assert result.arrays["groups"]["sharpness"] == pytest.approx(single, rel=1e-10)
    assert result.values["sharpness"] == pytest.approx(sum(single) / 5, rel=1e-10)
    assert result.errors["sharpness"] == pytest.approx(torch.tensor(single).std().item() / 5**0.5, rel=1e-5)


def within_four_errors(measured: Callable[[int], Result], name: str, truth: float) -> None:
    """For each of 20 seeds; and the estimates differ, so that the error is not an empty word."""
    results = [measured(seed) for seed in SEEDS]
    far = {
        seed: r.values[name]
        for seed, r in zip(SEEDS, results, strict=True)
        if not abs(r.values[name] - truth) <= 4 * r.errors[name]
    }
    assert far == {}
    assert len({r.values[name] for r in results}) == len(SEEDS)
    spread = torch.tensor([r.values[name] for r in results]).std()
    typical = torch.tensor([r.errors[name] for r in results]).mean()
    assert 0.5 < spread / typical < 2


@pytest.mark.parametrize(("p", "factor"), [(2.0, 1 / (2 * 8)), (math.inf, 1 / 6)])
def test_average_sharpness_of_a_quadratic(p: float, factor: float) -> None:
    """``rho^2 Tr / 2n`` on the sphere, ``rho^2 Tr / 6`` in the cube."""
    a = symmetric(8)
    truth = 0.3**2 * float(a.trace()) * factor
    quantity = AverageSharpness(rho=0.3, p=p, draws=40)
    within_four_errors(lambda seed: taken(quantity, Quadratic(a), seed=seed), "average_sharpness", truth)


def test_first_order_flatness_is_the_largest_eigenvalue() -> None:
    """Lemma 4.1, at the minimum of a quadratic, where the ascents must start elsewhere."""
    a = positive(6)
    result = taken(Flatness(rho=0.2, steps=60, step=1.0, starts=3), Quadratic(a)).values
    top = float(torch.linalg.eigvalsh(a)[-1])
    assert result["r1_over_rho_squared"] == pytest.approx(top, rel=1e-6)
    assert result["r0"] == pytest.approx(top * 0.2**2 / 2, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hvp", ["exact", "difference"])
def test_first_order_flatness_bounds_zeroth_order_flatness(seed: int, hvp: str) -> None:
    """Proposition 4.2, on a perceptron."""
    found = taken(Flatness(rho=0.3), made(Classifier(), seed), batches(), hvp=hvp).values
    assert found["r1"] >= found["r0"] > 0


def test_approximation_ratio_of_a_quadratic() -> None:
    a, w = torch.diag(torch.tensor([1.0, 5.0], dtype=torch.float64)), torch.tensor([1.0, 0.05], dtype=torch.float64)
    model = Quadratic(a, w=w)
    g = a @ w
    e = 0.5 * g / g.norm()
    one = float((w + e) @ a @ (w + e) / 2 - w @ a @ w / 2)
    result = taken(ApproximationRatio(rho=0.5, steps=60, step=1.0), model, [{"x": torch.ones(2, dtype=torch.float64)}] * 2)
    assert result.values["approximation_ratio"] == pytest.approx(one / largest_on_circle(a, w, 0.5), rel=1e-6)
    assert result.values["approximation_ratio"] < 0.999
    linear = Quadratic(torch.zeros(2, 2, dtype=torch.float64), W2, W2)
    assert taken(ApproximationRatio(), linear, ONES).values["approximation_ratio"] == pytest.approx(1, rel=1e-9)


def test_approximation_ratio_of_single_samples() -> None:
    result = taken(ApproximationRatio(rho=0.2, m=1), made(Classifier()), batches(12, 4))
    ratios = result.arrays["groups"]["approximation_ratio"]
    assert len(ratios) == 12
    assert all(ratio <= 1 for ratio in ratios)


@pytest.mark.parametrize("hidden", [5, 0])
@pytest.mark.parametrize("size", [20, 8])
def test_eigenvalues_are_those_of_the_dense_hessian(hidden: int, size: int) -> None:
    """A perceptron and logistic regression; a few and all of them."""
    model = made(Classifier(hidden))
    truth = torch.linalg.eigvalsh(dense(model, samples())).flip(0)
    few = taken(TopEigenvalues(k=4, tolerance=1e-10), model, batches(size=size))
    assert few.arrays["eigenvalues"] == pytest.approx(truth[:4].tolist(), rel=1e-6)
    every = taken(TopEigenvalues(k=len(truth)), model, batches(size=size))
    assert every.arrays["eigenvalues"] == pytest.approx(truth.tolist(), rel=1e-6, abs=1e-8)


def test_the_iterated_eigenvalues_include_negative_ones() -> None:
    a = symmetric(60) - 20 * torch.eye(60, dtype=torch.float64)
    truth = torch.linalg.eigvalsh(a).flip(0)[:3].tolist()
    assert truth[0] < 0
    assert taken(TopEigenvalues(k=3, tolerance=1e-10), Quadratic(a)).arrays["eigenvalues"] == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("small", [195, 45])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_eigenvalues_are_found_as_often_as_they_are_there(small: int, dtype: torch.dtype) -> None:
    """At the default tolerance, where a Lanczos run alone gives up after some of them."""
    for repeated, others in ((3.0, torch.linspace(-0.5, 1, small)), (-1.0, torch.linspace(-5, -2, small))):
        spectrum = torch.cat([torch.full((5,), repeated), others]).to(dtype)
        model = Quadratic(torch.diag(spectrum))
        found = taken(TopEigenvalues(k=6), model, [{"x": torch.ones(1, dtype=dtype)}])
        assert found.arrays["eigenvalues"] == pytest.approx([repeated] * 5 + [float(others[-1])], rel=2e-3)


@pytest.mark.parametrize("k", [1, 3])
def test_a_hessian_of_zero_has_eigenvalues_of_zero(k: int) -> None:
    zero = Quadratic(torch.zeros(40, 40, dtype=torch.float64))
    assert taken(TopEigenvalues(k=k), zero).arrays["eigenvalues"] == [0.0] * k


def test_what_the_largest_eigenvalues_cost() -> None:
    """One takes a Lanczos run; several a short one more, to see that none was passed over."""
    a = torch.diag(torch.cat([torch.linspace(0, 1, 300), torch.tensor([3.0, 5.0, 9.0])]).double())
    one, three = (taken(TopEigenvalues(k=k), Quadratic(a)).about["passes"]["hessian"] for k in (1, 3))
    assert one <= 21
    assert three <= 21 + 20


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_trace(distribution: str) -> None:
    model = made(Classifier())
    truth = float(dense(model, samples()).trace())
    quantity = Trace(draws=30, distribution=distribution)
    for data in ([samples()], batches()):
        within_four_errors(lambda seed, data=data: taken(quantity, model, data, seed=seed), "trace", truth)  # type: ignore[misc]


def test_trace_of_a_diagonal_is_exact() -> None:
    """Each ``z' A z`` with signs z is the trace itself."""
    diagonal = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    result = taken(Trace(draws=3), Quadratic(diagonal))
    assert result.values["trace"] == pytest.approx(15, rel=1e-12)
    assert result.about["passes"] == {"hessian": 3}


def test_normalised_trace() -> None:
    model = made(Classifier())
    g = torch.cat([x.reshape(-1) for x in torch.autograd.grad(model(**samples())["loss"], list(model.parameters()))])
    truth = float(dense(model, samples()).trace() / g.norm())
    quantity = NormalizedTrace(draws=30)
    within_four_errors(lambda seed: taken(quantity, model, [samples()], seed=seed), "normalized_trace", truth)
    assert taken(quantity, model, batches()).values["gradient_norm"] == pytest.approx(float(g.norm()), rel=1e-10)


@pytest.mark.parametrize(
    ("quantity", "name"),
    [(Sharpness(rho=0.2, m=2), "sharpness"), (ApproximationRatio(rho=0.2, m=2, steps=4), "approximation_ratio")],
)
def test_means_over_groups_of_samples(quantity: AbstractQuantity, name: str) -> None:
    """Ten groups out of 120, whose mean is known."""
    model, population = made(Classifier()), samples(240)
    truth = taken(quantity, model, [population]).values[name]

    def measured(seed: int) -> Result:
        chosen = torch.randperm(120, generator=torch.Generator().manual_seed(seed))[:10]
        rows = torch.stack([2 * chosen, 2 * chosen + 1], dim=1).flatten()
        return taken(quantity, model, [{key: value[rows] for key, value in population.items()}])

    within_four_errors(measured, name, truth)


def test_spectral_density() -> None:
    """The nodes of a full Lanczos run are the eigenvalues, the density has mass 1, its mean is the trace's share."""
    a = symmetric(8)
    full = taken(SpectralDensity(lanczos=8, draws=2), Quadratic(a))
    for nodes in full.arrays["nodes"]:
        assert nodes == pytest.approx(torch.linalg.eigvalsh(a).tolist(), rel=1e-6)
    big = symmetric(80)
    result = taken(SpectralDensity(lanczos=20, draws=8), Quadratic(big))
    grid, density = torch.tensor(result.arrays["grid"]), torch.tensor(result.arrays["density"])
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=0.02)
    edge = float(torch.linalg.eigvalsh(big)[-1])
    assert result.values["largest_ritz_value"] == pytest.approx(edge, rel=0.02)
    assert result.about["passes"] == {"hessian": 160}
    quantity, truth = SpectralDensity(lanczos=5, draws=20), float(big.trace()) / 80
    within_four_errors(lambda seed: taken(quantity, Quadratic(big), seed=seed), "mean_eigenvalue", truth)


def test_spectral_density_of_a_network() -> None:
    """With as many Lanczos steps as weights, each run's nodes are the dense Hessian's eigenvalues, weighted by its start."""
    model = made(Classifier(hidden=2))
    eigenvalues, vectors = torch.linalg.eigh(dense(model, samples()))
    n = len(eigenvalues)
    found = taken(SpectralDensity(lanczos=n, draws=3), model, [samples()]).arrays
    grid = torch.tensor(found["grid"], dtype=torch.float64)
    width = (found["grid"][-1] - found["grid"][0]) / (n - 1) / math.sqrt(8 * math.log(3))
    bumps = torch.distributions.Normal(eigenvalues, width).log_prob(grid[:, None]).exp()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        starts = [torch.randn(n, dtype=torch.float64) for _ in range(3)]
    truth = sum(bumps @ (vectors.T @ z / z.norm()).square() for z in starts) / 3
    assert found["density"] == pytest.approx(truth.tolist(), rel=1e-6, abs=1e-9)  # type: ignore[union-attr]


class Linear(nn.Module):
    """A linear network with the mean squared error, whose Hessian is ``2 X'X / n`` wherever it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.layer(x)[:, 0] - labels).square().mean()}


def test_a_linear_network_in_closed_form() -> None:
    model, x = made(Linear()), samples()["x"]
    h = 2 * x.T @ x / len(x)
    top = taken(TopEigenvalues(k=4), model, batches()).arrays["eigenvalues"]
    assert top == pytest.approx(torch.linalg.eigvalsh(h).flip(0).tolist(), rel=1e-6)
    within_four_errors(lambda seed: taken(Trace(draws=30), model, [samples()], seed=seed), "trace", float(h.trace()))


def test_three_losses_of_a_quadratic_are_exact() -> None:
    a, b = symmetric(6), torch.arange(6.0, dtype=torch.float64)
    model = Quadratic(a, b)
    u = b / b.norm()
    found = taken(ThreeLosses(direction="gradient"), model).values
    assert found["vhv"] == pytest.approx(float(u @ a @ u), rel=1e-6)
    assert found["vg"] == pytest.approx(float(b.norm()), rel=1e-9)
    results = [taken(ThreeLosses(draws=150), model, seed=seed) for seed in SEEDS]
    within_four_errors(results.__getitem__, "vhv", float(a.trace()))
    within_four_errors(results.__getitem__, "vg_squared", float(b @ b))


@pytest.mark.parametrize(("radius", "agreement"), [(0.01, 1e-3), (1e-3, 1e-6)])
def test_three_losses_agree_with_hessian_products(radius: float, agreement: float) -> None:
    """On a perceptron, draw by draw; the error is the radius's square, as long as rounding (float64) is smaller."""
    model = made(Classifier())
    h = dense(model, samples())
    with opened(model, [samples()]) as f:
        found = ThreeLosses(radius=radius, draws=3).measure(f).arrays["vhv"]
        for draw, value in enumerate(found):
            v = torch.cat([x.reshape(-1) for x in f.normal(draw).tensors()])
            assert value == pytest.approx(float(v @ h @ v), rel=agreement)


def test_cosine_and_loss_along_the_ascent_of_a_quadratic() -> None:
    a, rhos = positive(3), [0.1, 1.0]
    w = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    model = Quadratic(a, w=w)
    g = a @ w
    there = [w + rho * g / g.norm() for rho in rhos]
    cosines = [float(torch.cosine_similarity(g, a @ x, dim=0)) for x in there]
    found = taken(GradientCosine(rhos=rhos, gammas=[0.0]), model)
    assert found.arrays["table"][0] == pytest.approx(cosines, rel=1e-9)
    assert found.values["rho=1,gamma=0"] == pytest.approx(cosines[1], rel=1e-9)
    losses = [float(x @ a @ x / 2) for x in there]
    assert taken(AscentLoss(rhos=rhos, gammas=[0.0]), model).arrays["table"][0] == pytest.approx(losses, rel=1e-9)


def test_smoothing_averages_over_the_noise() -> None:
    """Far out, the mean loss over isotropic noise on a quadratic grows by gamma^2 Tr / 2."""
    a = positive(4)
    model = Quadratic(a, torch.tensor([100.0, 0, 0, 0], dtype=torch.float64))
    found = taken(AscentLoss(rhos=[0.5], gammas=[0.0, 0.3], noise_kind="isotropic", draws=400), model)
    rise = found.values["rho=0.5,gamma=0.3"] - found.values["rho=0.5,gamma=0"]
    assert abs(rise - 0.3**2 * float(a.trace()) / 2) <= 4 * found.errors["rho=0.5,gamma=0.3"]
    kernel = taken(GradientCosine(rhos=[0.5], gammas=[0.1], draws=3), made(Classifier()), batches())
    assert -1 <= kernel.values["rho=0.5,gamma=0.1"] <= 1


class Wave(nn.Module):
    """``cos(20 pi w)``: one period within 0.1 of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": torch.cos(20 * math.pi * self.w).sum()}


def test_extrema() -> None:
    found = taken(Extrema(rho=0.1, points=10, directions=4), Wave(), ONES)
    assert found.arrays["minima"] == [1] * 4
    assert found.arrays["maxima"] == [0] * 4
    assert taken(Extrema(rho=0.2, points=16, directions=2), Wave(), ONES).arrays["maxima"] == [1] * 2
    assert turns([0, 1, 0, 1, 1, 0]) == (1, 2)
    assert turns([0, 1, 0.99, 2], noise=0.1) == (0, 0)


def test_rounding_is_no_extremum() -> None:
    """A loss that is flat to its last digits has none, however it flickers."""

    class Flat(Quadratic):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": 1 + 1e-9 * super().forward(x)["loss"].float()}

    model = Flat(symmetric(4)).float()
    data = [{"x": torch.ones(1)}]
    assert taken(Extrema(directions=5), model, data).values["minima"] == 0
    assert taken(Extrema(directions=5), model, data).values["flat_steps"] == 1


def test_landscapes_of_a_quadratic() -> None:
    a = symmetric(4)
    model = Quadratic(a)
    with opened(model) as f:
        d, e = (torch.cat(list(direction(f, draw, "none").tensors())) for draw in (0, 1))
        line = LossLine(reach=2.0, points=5, normalization="none").measure(f)
        plane = LossPlane(reach=1.0, points=3, normalization="none").measure(f).arrays
    assert float(d.norm()) == pytest.approx(1)
    assert line.arrays["x"] == [-2, -1, 0, 1, 2]
    assert line.arrays["losses"] == pytest.approx([x**2 * float(d @ a @ d) / 2 for x in line.arrays["x"]], abs=1e-12)
    for y, row in zip(plane["y"], plane["losses"], strict=True):
        at = [x * d + y * e for x in plane["x"]]
        assert row == pytest.approx([float(p @ a @ p) / 2 for p in at], abs=1e-12)


def test_filter_normalised_directions() -> None:
    """Each output unit's part is as long as the unit, and biases stand still."""
    model = made(Classifier())
    with opened(model, batches()) as f:
        for piece, d, w in zip(f.space.pieces, direction(f, 0).tensors(), model.parameters(), strict=True):
            if piece.bias:
                assert not d.any()
            else:
                assert torch.allclose(d.norm(dim=1), w.norm(dim=1), rtol=1e-12)


def test_the_line_between_two_checkpoints(tmp_path: Any) -> None:
    model, other = made(Classifier()), made(Classifier(), seed=1)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    found = taken(LossBetween(checkpoint=str(tmp_path / "other.pt"), points=7), model, batches())
    assert found.values["loss"] == pytest.approx(float(model(**samples())["loss"]), rel=1e-10)
    assert found.values["other_loss"] == pytest.approx(float(other(**samples())["loss"]), rel=1e-10)
    apart = [(p - q).detach().reshape(-1) for p, q in zip(model.parameters(), other.parameters(), strict=True)]
    assert found.values["distance"] == pytest.approx(float(torch.cat(apart).norm()), rel=1e-10)


@pytest.mark.parametrize("extra", [{}, {"points": 5, "margin": 0.5}, {"points": 101, "margin": 0.0}])
@pytest.mark.parametrize(("a", "b", "barrier"), [(0.0, 1.0, 0.0), (1.0, -0.5, 0.0), (-8.0, 4.5, 4.5**2 / 16 - 0.5)])
def test_the_barrier_between_two_checkpoints(a: float, b: float, barrier: float, extra: Any, tmp_path: Any) -> None:
    """Of ``a x^2 / 2 + b x`` from 0 to 1: none on a slope or in a valley; a hill's height above the higher end."""
    one = torch.ones(1, dtype=torch.float64)
    torch.save({"w": one}, tmp_path / "other.pt")
    model = Quadratic(a * one[:, None], b * one, 0 * one)
    found = taken(LossBetween(checkpoint=str(tmp_path / "other.pt"), **extra), model)
    assert found.arrays["x"] == sorted(set(found.arrays["x"]) | {0.0, 1.0})
    assert (found.values["loss"], found.values["other_loss"]) == pytest.approx((0.0, a / 2 + b), abs=1e-12)
    assert found.values["barrier"] == pytest.approx(barrier, abs=0.02 if barrier else 1e-12)


SMALL: dict[str, dict[str, Any]] = {
    "approximation_ratio": {"steps": 2},
    "ascent_loss": {"draws": 2},
    "average_sharpness": {"draws": 2},
    "extrema": {"directions": 2},
    "flatness": {"steps": 2},
    "gradient_cosine": {"draws": 2},
    "loss_between": {},
    "loss_line": {"points": 3},
    "loss_plane": {"points": 3},
    "normalized_trace": {"draws": 2},
    "sharpness": {},
    "spectral_density": {"lanczos": 3, "draws": 2},
    "three_losses": {"draws": 2},
    "top_eigenvalues": {},
    "trace": {"draws": 2},
}


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_by_name_and_as_json(name: str, tmp_path: Any) -> None:
    """With settings, versions and what it was measured on."""
    model = made(Classifier())
    torch.save(made(Classifier(), seed=1).state_dict(), tmp_path / "other.pt")
    extra = {"checkpoint": str(tmp_path / "other.pt")} if name == "loss_between" else {}
    quantity = parse_quantity({"name": name, **SMALL[name], **extra})
    assert isinstance(quantity, QUANTITIES[name])
    result = taken(quantity, model, batches())
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["quantity"] == name
    assert written["settings"].items() >= {**SMALL[name], **extra}.items()
    assert written["versions"]["torch"] == torch.__version__
    assert written["about"]["terms"] == 20
    assert written["values"]
    assert set(written["standard_errors"]) <= set(written["values"])
