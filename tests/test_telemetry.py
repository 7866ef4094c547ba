"""The logged scalars against what the twin's own passes give on a quadratic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from transformers.trainer_utils import IntervalStrategy

from hf_sharp import CRSAM, GAM, RSAM, SAM, AbstractMethod, Every, SharpnessAwareTrainer, SharpStep
from tests.problems import Gradients, Perceptron, arguments, batch_for, generic
from tests.reference import Problem, Small, climb, crsam, flat, gam, sam, unit

CURVATURE = {
    "bowl": [[3.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.4]],
    "hill": [[-1.0, 0.2, 0.0], [0.2, -1.2, 0.0], [0.0, 0.0, -0.8]],
    "saddle": [[2.0, 0.0, 0.6], [0.0, -1.5, 0.0], [0.6, 0.0, 0.1]],
}


class Quadratic(Small):
    """``w A w / 2 + c w``; the inputs are ignored."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64))
        self.register_buffer("a", torch.tensor(CURVATURE[name], dtype=torch.float64))
        self.register_buffer("c", torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64))

    def forward(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": self.weight @ self.a @ self.weight / 2 + self.c @ self.weight}


def passes_of(f: Problem, w: Tensor, method: AbstractMethod) -> list[Tensor]:
    """The shifts of the method's later passes, in the order in which it runs them."""
    g = f.gradient(w)[1]
    if isinstance(method, SAM):
        return [climb(f, g, 0.2)]
    if isinstance(method, CRSAM):
        return [climb(f, g, 0.2), -climb(f, g, 0.2)]
    assert isinstance(method, GAM)
    exact, rho, step = method.hvp == "exact", float(method.rho), method.step
    e = rho * unit(f.hessian_times(w, unit(g)))  # of a quadratic, differences are exact
    ahead = e + step * unit(f.gradient(w + e)[1])
    base = [] if method.base is None else passes_of(f, w, method.base)
    return [*base, e] if exact else [*base, step * unit(g), e, ahead]


def wanted(f: Problem, w: Tensor, method: AbstractMethod) -> dict[str, float]:
    """The scalars by their definitions."""
    shifts = passes_of(f, w, method)
    loss, g = f.gradient(w)
    lengths = [round(float(shift.norm()), 12) for shift in shifts]
    longest, last = shifts[lengths.index(max(lengths))], f.gradient(w + shifts[-1])[1]
    products = 2 if isinstance(method, GAM) and method.hvp == "exact" else 0
    return {
        "sharpness/passes": 1 + len(shifts) + products,
        "sharpness/grad_norm": float(g.norm()),
        "sharpness/loss_gap": float(f.gradient(w + longest)[0] - loss),
        "sharpness/shift_norm": float(longest.norm()),
        "sharpness/shift_norm_applied": float(longest.norm()),
        "sharpness/cos": float(g.dot(last) / g.norm() / last.norm()),
    }


METHODS = [
    SAM(0.2),
    CRSAM(0.2),
    GAM(rho=0.2, step=0.05),
    GAM(rho=0.05, step=0.2),
    GAM(rho=0.2, step=0.02, hvp="exact"),
    GAM(rho=0.1, step=0.05, base=SAM(0.2)),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", CURVATURE)
def test_scalars_equal_the_twins(name: str, method: AbstractMethod) -> None:
    """Gap and norms are those of the longest shift, the first of equals; cos is between the first and the last gradient."""
    model = Quadratic(name)
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), method)
    expected = wanted(Problem(model, {}), flat(model), method)
    sharp(lambda _: model()["loss"], {}, observe=True)
    assert sharp.scalars() == pytest.approx(expected, rel=1e-9)


def test_each_pass_is_the_longest_somewhere() -> None:
    """The cases above tell the passes apart: in some the first, in some the second, in some the last shift is longest."""
    places = set()
    for name in CURVATURE:
        model = Quadratic(name)
        for method in METHODS[2:4]:
            lengths = [float(shift.norm()) for shift in passes_of(Problem(model, {}), flat(model), method)]
            places.add(lengths.index(max(lengths)))
    assert places == {0, 1, 2}


@pytest.mark.parametrize("log_every", [1, 2])
@pytest.mark.parametrize("method", METHODS[:3], ids=str)
def test_trainer_logs_the_step_that_is_logged(tmp_path: Path, method: AbstractMethod, log_every: int) -> None:
    """Each log entry has the scalars of its own step, beside the Trainer's loss."""
    model, gradients = Quadratic("bowl"), Gradients()
    twin = {SAM: lambda f, w: sam(f, w, 0.2), CRSAM: lambda f, w: crsam(f, w, 0.2, 0.1, 0.01)}
    twin[GAM] = lambda f, w: gam(f, w, 0.2, 1.0)
    f, w, expected = Problem(model, {}), flat(model), []
    trainer = SharpnessAwareTrainer(
        model,
        arguments(tmp_path, log_every=log_every),
        train_dataset=[{"x": torch.zeros(1)}] * 4,
        callbacks=[gradients],
        method=method,
    )
    trainer.train()
    for _ in range(4):
        expected.append(wanted(f, w, method))
        w = w - 0.1 * twin[type(method)](f, w)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == list(range(log_every, 5, log_every))
    for entry in logs:
        ours = {key: value for key, value in entry.items() if key.startswith("sharpness/")}
        assert ours == pytest.approx(expected[int(entry["step"]) - 1], rel=1e-9)


def test_the_last_step_of_a_cut_epoch_is_observed(tmp_path: Path) -> None:
    """With a log per epoch and ``max_steps`` in the middle of one the Trainer logs that step."""
    data = [{"x": torch.zeros(1)}] * 12
    args = arguments(tmp_path)
    args.logging_strategy, args.max_steps = IntervalStrategy.EPOCH, 4
    trainer = SharpnessAwareTrainer(Quadratic("bowl"), args, train_dataset=data, method=SAM(rho=0.2))
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (entry["step"], entry["epoch"] < 1) == (4, True)
    assert {"sharpness/loss_gap", "sharpness/shift_norm", "sharpness/cos"} <= entry.keys()


def test_unobserved_steps_say_little() -> None:
    """Without observe there is the number of passes alone, also after a step that was observed."""
    model = Quadratic("bowl")
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), SAM())
    sharp(lambda _: model()["loss"], {}, observe=True)
    assert len(sharp.scalars()) == 6
    sharp(lambda _: model()["loss"], {})
    assert sharp.scalars() == {"sharpness/passes": 2}


def test_plain_steps_have_no_gap() -> None:
    """On a step without a second pass there is a gradient norm, but nothing to compare it with."""
    model = Quadratic("bowl")
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), Every(2, SAM(), offset=1))
    sharp(lambda _: model()["loss"], {}, observe=True)
    assert set(sharp.scalars()) == {"sharpness/passes", "sharpness/grad_norm"}


def test_applied_norm_shows_rounding() -> None:
    """With large float32 weights the applied shift is what the precision lets through, the asked one is the radius."""
    model = Quadratic("bowl").float()
    model.weight.data.mul_(1e4)
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), SAM(rho=2e-3))
    w, places = model.weight.detach().clone(), []

    def loss_of(_: Any) -> Tensor:
        places.append(model.weight.detach().clone())
        return model()["loss"]

    sharp(loss_of, {}, observe=True)
    scalars = sharp.scalars()
    applied = float((places[1].double() - w.double()).norm())
    assert scalars["sharpness/shift_norm"] == pytest.approx(2e-3, rel=1e-6)
    assert scalars["sharpness/shift_norm_applied"] == pytest.approx(applied, rel=1e-6)
    assert abs(applied - 2e-3) > 1e-5


def test_counters_are_logged(tmp_path: Path) -> None:
    """What a method counts is in the Trainer's logs, summed up since training began."""
    trainer = SharpnessAwareTrainer(
        Quadratic("hill"),
        arguments(tmp_path, log_every=1),
        train_dataset=[{"x": torch.zeros(1)}] * 3,
        method=CRSAM(log=True),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["sharpness/crsam_d2_guard"] for entry in logs] == [1, 2, 3]
    assert [entry["sharpness/crsam_d1_guard"] for entry in logs] == [0, 0, 0]


@pytest.mark.parametrize("method", [SAM(), RSAM(gamma=0.05), CRSAM(), GAM()], ids=str)
def test_accumulation_leaves_the_scalars_alone(tmp_path: Path, method: AbstractMethod) -> None:
    """Losses, gradients and shifts in the logs are those of the whole step, however it was split."""
    model = generic(Perceptron())
    batch = batch_for(model, size=8)
    logs = []
    for accumulation in (1, 4):
        trainer = SharpnessAwareTrainer(
            generic(Perceptron()),
            arguments(tmp_path, batch=8 // accumulation, accumulation=accumulation, log_every=1),
            train_dataset=[{key: value[i] for key, value in batch.items()} for i in range(8)],
            method=method,
        )
        trainer.train()
        logs.append({key: value for key, value in trainer.state.log_history[0].items() if "sharpness/" in key})
    assert len(logs[0]) == 6
    assert logs[0] == pytest.approx(logs[1], rel=1e-9)
