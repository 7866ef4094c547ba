"""The golden values: one step on ``w^4 + w b + exp(b)`` at (0.7, -0.3), through the bare loop and through the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from hf_sharp import (
    ASAM,
    CRSAM,
    GAM,
    GSAM,
    RGSAM,
    RSAM,
    SAM,
    AbstractMethod,
    AcceleratedGAM,
    SharpnessAwareTrainer,
    SharpStep,
)
from hf_sharp.methods import ascend, unit, without
from hf_sharp.oracle import Oracle
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector
from tests.problems import Gradients, Watch, arguments
from tests.reference import Small, flat_gradient

Loop: TypeAlias = Callable[[AbstractMethod, int], list[list[float]]]

ACCELERATED = AcceleratedGAM(rho=0.2, step=0.02, a=0.6, b=0.5, gamma=0.03)
ROWS: dict[str, tuple[AbstractMethod, float, float]] = {
    "plain gradient": (SAM(rho=0.0), 1.0720000000, 1.4408182207),
    "SAM": (SAM(rho=0.05), 1.2952001127, 1.5009864170),
    "ASAM, davda54": (ASAM(rho=0.5, eta=0.0, scale_biases=True), 3.8144009446, 1.8016960787),
    "ASAM, Samsung": (ASAM(rho=0.5, eta=0.01), 2.7383022312, 2.0185144418),
    "CR-SAM, code": (CRSAM(rho=0.1, alpha=0.1, beta=0.01), 1.5486314204, 1.5652566417),
    "CR-SAM, log": (CRSAM(rho=0.1, alpha=0.1, beta=0.01, log=True), 1.7274289985, 1.5825140911),
    "GAM, code": (AcceleratedGAM(rho=0.2, step=0.02, a=0.6, b=0.5, gamma=0.03, released=True), 1.8091644430, 1.5545604955),
    "GAM, Algorithm 2": (ACCELERATED, 1.8053390831, 1.5589926677),
    "GAM, Algorithm 2, halves": (AcceleratedGAM(a=0.5, b=0.5, gamma=0.03), 1.9685051165, 1.5804933165),
    "GAM, fall-through": (AcceleratedGAM(a=1.0, b=1.0, step=0.02, gamma=0.03), 1.1607120740, 1.4637394906),
    "GSAM, as the fall-through": (GSAM(rho=0.02, alpha=0.03), 1.1607120740, 1.4637394906),
    "GAM, Algorithm 1": (GAM(rho=0.2, alpha=1.0, hvp="exact"), 2.7885765177, 1.6935756326),
    "GSAM": (GSAM(rho=0.1, alpha=0.4), 1.6037874914, 1.4938800969),
    "R-SAM": (RSAM(rho=0.05, gamma=1.0, lam=2.0), 1.3007142713, 1.5013890170),
    "R-GSAM": (RGSAM(rho=0.05, gamma=1.0, lam=2.0, alpha=0.3), 1.3234300795, 1.4817093899),
}


class Bowl(Small):
    """The function of the golden values; the inputs are ignored."""

    additive = frozenset({"bias"})

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        loss = self.weight**4 + self.weight * self.bias + self.bias.exp()
        self.losses.append(loss.item())
        return {"loss": loss}


@pytest.fixture
def _fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let delta_0 be (0.01, -0.02) where gamma is 1."""

    def noise(f: Oracle, draw: int, sizes: Sequence[Tensor]) -> Vector:
        z = [torch.tensor(x, dtype=torch.float64) for x in (0.01 / 0.7, -0.02 / 0.3)]
        return Vector(f.backend.space, [size * x for size, x in zip(sizes, z, strict=True)])

    monkeypatch.setattr(Oracle, "noise", noise)


def bare_loop(method: AbstractMethod, steps: int = 1) -> list[list[float]]:
    """The gradients that SGD with learning rate 0.05 sees in a loop of its own."""
    model, seen = Bowl(), []
    optimizer = SGD(model.parameters(), lr=0.05)
    sharp = SharpStep(model, optimizer, method)
    for _ in range(steps):
        sharp(lambda x: model(x)["loss"], torch.zeros(1))
        seen.append(flat_gradient(model).tolist())
        optimizer.step()
        optimizer.zero_grad()
    return seen


@pytest.fixture(params=["bare loop", "Trainer"])
def loop(request: pytest.FixtureRequest, tmp_path: Path, _fixed_noise: None) -> Loop:
    """Both loops in turn."""

    def trainer(method: AbstractMethod, steps: int = 1) -> list[list[float]]:
        gradients = Gradients()
        SharpnessAwareTrainer(
            Bowl(),
            arguments(tmp_path, lr=0.05),
            train_dataset=[{"x": torch.zeros(1)}] * steps,
            callbacks=[gradients],
            method=method,
        ).train()
        return [gradient.tolist() for gradient in gradients.seen]

    return bare_loop if request.param == "bare loop" else trainer


@pytest.mark.parametrize("row", ROWS)
def test_golden_value(loop: Loop, row: str) -> None:
    """The gradient handed to the optimizer is the one in the table."""
    method, w, b = ROWS[row]
    (gradient,) = loop(method, 1)
    assert gradient == pytest.approx([w, b], rel=1e-9)


def test_loss_and_norm_of_the_plain_gradient() -> None:
    """The loss that the step returns and the norm that it logs are those of the table."""
    model = Bowl()
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.05), SAM())
    loss = sharp(lambda x: model(x)["loss"], torch.zeros(1), observe=True)
    assert float(loss) == pytest.approx(0.7709182206817, rel=1e-12)
    assert sharp.scalars()["sharpness/grad_norm"] == pytest.approx(1.7958677972079, rel=1e-12)


def test_raw_argparse_weights_are_twice_algorithm_2(loop: Loop) -> None:
    """The released class's own weights (1, -1, 1) give twice Algorithm 2 with a = b = 0.5."""
    (gradient,) = loop(AcceleratedGAM(a=0.5, b=0.5, gamma=0.03), 1)
    assert [2 * x for x in gradient] == pytest.approx([3.9370102330, 3.1609866330], rel=1e-9)


def test_differences_of_the_losses() -> None:
    """The losses at the three places of CR-SAM have the second and first differences of the table."""
    model = Bowl()
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.05), CRSAM(rho=0.1, log=True))
    sharp(lambda x: model(x)["loss"], torch.zeros(1))
    here, above, below = model.losses
    assert above + below - 2 * here == pytest.approx(0.0353263228, abs=5.1e-11)
    assert above - below == pytest.approx(0.3604922283, abs=5.1e-11)


def test_gradient_differences_become_exact(loop: Loop) -> None:
    """GAM with differences goes to Algorithm 1's value as its step goes to 0, in proportion to it."""
    wanted = torch.tensor(ROWS["GAM, Algorithm 1"][1:], dtype=torch.float64)
    errors = [
        float((torch.tensor(loop(GAM(rho=0.2, alpha=1.0, step=step), 1)[0], dtype=torch.float64) - wanted).norm())
        for step in (1e-2, 1e-3, 1e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)
    assert errors[2] < 1e-3


@pytest.mark.usefixtures("_fixed_noise")
def test_noise_is_where_the_first_pass_runs() -> None:
    """R-SAM's first pass is at w + delta_0, both entries."""
    model = Bowl()
    with Watch(model) as watch:
        SharpStep(model, SGD(model.parameters(), lr=0.05), RSAM(gamma=1.0))(lambda x: model(x=x)["loss"], torch.zeros(1))
    assert watch.weights[0].tolist() == pytest.approx([0.71, -0.32], rel=1e-12)


@dataclass(frozen=True)
class LookSAM(AbstractMethod):
    """A method of a user's own: SAM on every k-th step, whose orthogonal part the other steps reuse."""

    rho: float
    k: int
    alpha: float

    def direction(self, f: AbstractOracle) -> Vector:
        g = f().grad
        if f.step % self.k == 0:
            gs = f(ascend(g, self.rho)).grad
            f.memory["g_v"] = without(gs, g)
            return gs
        gv = f.memory["g_v"]
        return g + self.alpha * g.norm() / gv.norm() * gv


def test_looksam_needs_no_registration(loop: Loop) -> None:
    """A user's own method runs in both loops, and what it keeps in memory is there on the next step."""
    refresh, reuse = loop(LookSAM(rho=0.1, k=2, alpha=0.7), 2)
    g, gs = torch.tensor([1.0720000000, 1.4408182207], dtype=torch.float64), torch.tensor(refresh, dtype=torch.float64)
    gv = gs - g.dot(gs) / g.dot(g) * g
    assert gv.tolist() == pytest.approx([0.2391574978, -0.1779383644], rel=1e-8)  # g has ten digits here
    assert reuse == pytest.approx([1.3966940997, 0.7086184304], rel=1e-9)


def test_memory_is_saved() -> None:
    """state_dict carries the memory and the step: a new SharpStep goes on with the golden value, one without it cannot."""
    model = Bowl()
    optimizer = SGD(model.parameters(), lr=0.05)
    method = LookSAM(rho=0.1, k=2, alpha=0.7)
    sharp = SharpStep(model, optimizer, method)

    def step(with_this: SharpStep) -> list[float]:
        optimizer.zero_grad()
        with_this(lambda x: model(x)["loss"], torch.zeros(1))
        return flat_gradient(model).tolist()

    step(sharp)
    optimizer.step()
    state: dict[str, Any] = sharp.state_dict()
    assert [float(x) for x in state["memory"]["g_v"]] == pytest.approx([0.2391574978, -0.1779383644], rel=1e-9)
    again = SharpStep(model, optimizer, method)
    again.load_state_dict(state)
    assert step(again) == pytest.approx([1.3966940997, 0.7086184304], rel=1e-9)
    forgetful = SharpStep(model, optimizer, method)
    forgetful.step = 1
    with pytest.raises(KeyError, match="g_v"):
        step(forgetful)


@dataclass(frozen=True)
class Keeper(AbstractMethod):
    """A method that remembers something about the very gradient that it hands to the optimizer."""

    what: Callable[[Vector], Vector]

    def direction(self, f: AbstractOracle) -> Vector:
        g = f().grad
        f.memory["kept"] = self.what(g)
        return g


@pytest.mark.parametrize("perturb", [None, "weight"])
@pytest.mark.parametrize("what", [lambda g: g, lambda g: 2.0 * g, unit, lambda g: g + g], ids=["g", "2g", "unit", "g+g"])
def test_memory_is_the_methods_own(what: Callable[[Vector], Vector], perturb: str | None) -> None:
    """What the loop does to the gradients afterwards, such as clipping, does not reach the memory."""
    model = Bowl()
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.05), Keeper(what), perturb=perturb)
    sharp(lambda x: model(x)["loss"], torch.zeros(1))
    kept = sharp.state_dict()["memory"]["kept"]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert sharp.state_dict()["memory"]["kept"] == kept
