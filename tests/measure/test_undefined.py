"""Where the loss is not a finite number nothing is measured, and a run that is watched goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from hf_sharp.measure import QUANTITIES, Flatness, GradientCosine, SharpnessCallback, SpectralDensity, TopEigenvalues
from hf_sharp.measure.result import UndefinedError, largest, mean_and_error
from tests.measure.models import Classifier, Quadratic, batches, made, opened, symmetric
from tests.models import arguments

BROKEN = ("nan", "inf")


def broken(value: str) -> Classifier:
    """A model that has diverged in the last of its batches alone."""

    class Broken(Classifier):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            loss = super().forward(x, labels)["loss"]
            return {"loss": loss * float(value) if len(x) < 8 else loss}

    return made(Broken())  # type: ignore[return-value]


@pytest.mark.parametrize("value", BROKEN)
def test_a_loss_that_is_not_finite_is_refused_by_name(value: str) -> None:
    with (
        pytest.raises(UndefinedError, match=rf"^The loss must be finite at the weights, got {value}: "),
        opened(broken(value), batches()),
    ):
        pass


class Edge(Quadratic):
    """A loss of 0 whose second derivative there is infinite."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.w.abs() ** 1.5).sum() * x.mean()}


@pytest.mark.parametrize("quantity", [TopEigenvalues(), SpectralDensity(lanczos=3, draws=2)])
def test_a_curvature_that_is_not_finite_is_refused_by_name(quantity: Any) -> None:
    with (
        opened(Edge(symmetric(40))) as f,
        pytest.raises(UndefinedError, match=r"^Products with the Hessian must be finite, got"),
    ):
        quantity.measure(f)


def test_the_largest_of_numbers_with_nan_is_nan() -> None:
    assert math.isnan(largest([0.0, math.nan, 2.0]))
    assert math.isnan(largest([math.nan, 1.0]))
    assert largest([1.0, math.inf, 2.0]) == math.inf
    for numbers in ([1.0, math.nan], [1.0, math.inf], [math.inf, -math.inf]):
        mean, error = mean_and_error(numbers)
        assert not math.isfinite(mean)
        assert math.isnan(error)


class Cliff(Quadratic):
    """Finite at the weights, not a number 0.05 from them."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": torch.log(0.05 - self.w.norm() + 1e-3) * 0 + super().forward(x)["loss"]}


def test_flatness_next_to_a_cliff_is_not_zero() -> None:
    w = torch.full((4,), 0.01, dtype=torch.float64)
    with opened(Cliff(symmetric(4), torch.ones(4, dtype=torch.float64), w)) as f:
        assert math.isnan(Flatness(rho=0.5).measure(f).values["r0"])


def test_a_cosine_with_a_gradient_of_zero_has_no_value() -> None:
    with opened(Quadratic(symmetric(4))) as f:
        values = GradientCosine(rhos=[0.1], gammas=[0.0]).measure(f).values
    assert math.isnan(values["rho=0.1,gamma=0"])


class Diverging(TrainerCallback):
    """Weights that are no numbers after the first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].layers[0].weight.data.fill_(math.nan)


@pytest.mark.filterwarnings("ignore:.* is logged as NaN")
def test_a_run_that_diverges_goes_on_to_its_end(tmp_path: Path) -> None:
    """Finite before the first step, NaN for every quantity and value after it."""
    data = [{"x": x, "labels": y} for b in batches() for x, y in zip(b["x"], b["labels"], strict=True)]
    trainer = Trainer(made(Classifier()), arguments(tmp_path, max_steps=2), train_dataset=data, callbacks=[Diverging()])
    file = tmp_path / "history.json"
    cheap = {"draws": 2, "steps": 2, "directions": 2, "lanczos": 3}
    asked = {
        name: {"name": name, **{key: n for key, n in cheap.items() if key in kind.__dataclass_fields__}}
        for name, kind in QUANTITIES.items()
        if name != "loss_between"
    }
    trainer.add_callback(SharpnessCallback(trainer, asked, {"train": batches()}, every=1, at=[0], file=file))
    trainer.train()
    before, *after = [e for e in trainer.state.log_history if "sharpness/train/trace" in e]
    assert len(after) == 2
    assert all(math.isfinite(x) for key, x in before.items() if "/" in key)
    for entry in after:
        found = {key: x for key, x in entry.items() if key.startswith("sharpness/")}
        assert found.keys() == {key for key in before if key.startswith("sharpness/") and not key.endswith("_se")}
        assert all(map(math.isnan, found.values()))
    last = json.loads(file.read_text())[-1]
    assert last["step"] == 2
    assert last["about"]["undefined"].startswith("The loss must be finite at the weights, got ")
