"""The engine in plain PyTorch and under plain Accelerate does what the Trainer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, default_data_collator, get_linear_schedule_with_warmup

from hf_sharp import (
    GAM,
    RSAM,
    SAM,
    AbstractMethod,
    Cosine,
    Decayed,
    During,
    Every,
    Linear,
    SharpnessAwareTrainer,
    SharpStep,
    WarmUp,
)
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector
from tests.models import (
    Row,
    all_methods,
    arguments,
    collated,
    differences,
    loss_of,
    mixed,
    reseed,
    rows,
    snapshot,
)

ALL = all_methods()
STEPS = 6


@pytest.fixture(autouse=True)
def _own_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state for the whole process; leave none to other tests."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class _Start(TrainerCallback):
    """Notes where torch's random stream stands before the first step."""

    stream: Tensor | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.stream = torch.get_rng_state()


def _doubled(batch: Row) -> Row:
    return {key: x.double() if x.is_floating_point() else x for key, x in batch.items()}


def _model() -> nn.Module:
    """In float64, with dropout and BatchNorm."""
    return mixed().double()


def _schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return get_linear_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=STEPS)


def _by_trainer(method: AbstractMethod, folder: Path) -> tuple[dict[str, Tensor], list[Row], Tensor, list[float]]:
    """How the Trainer ends; the batches that it took, the random stream before the first, and the losses it logged."""
    model, start, taken = _model(), _Start(), []

    def collate(some: list[Row]) -> Row:
        taken.append(_doubled(default_data_collator(some)))
        return dict(taken[-1])

    args = arguments(
        folder,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_grad_norm=0.5,
        gradient_accumulation_steps=2,
    )
    trainer = SharpnessAwareTrainer(
        model, args, train_dataset=rows("mixed", 24), data_collator=collate, method=method, callbacks=[start]
    )
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert start.stream is not None
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return snapshot(model), taken, start.stream, losses


def _by_torch(method: AbstractMethod, batches: list[Row], stream: Tensor) -> tuple[dict[str, Tensor], list[float]]:
    """How a plain PyTorch loop ends, and its losses per step."""
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = _schedule(optimizer)
    sharp = SharpStep(model, optimizer, method, steps=STEPS, seed=42)
    torch.set_rng_state(stream)
    losses = []
    for i, batch in enumerate(batches):
        losses.append(sharp(lambda b: loss_of(model)(b) / 2, batch, last=i % 2 == 1).item())
        if i % 2 == 1:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return snapshot(model), [sum(losses[i : i + 2]) for i in range(0, len(losses), 2)]


def _by_accelerate(method: AbstractMethod, batches: list[Row], stream: Tensor) -> tuple[dict[str, Tensor], list[float]]:
    """How a loop under plain Accelerate ends, and its losses per step."""
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, _schedule(optimizer))
    sharp = SharpStep(model, optimizer, method, accelerator=accelerator, steps=STEPS, seed=42)
    torch.set_rng_state(stream)
    losses = []
    for batch in batches:
        with accelerator.accumulate(model):
            losses.append(sharp(loss_of(model), batch).item())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return snapshot(accelerator.unwrap_model(model)), [sum(losses[i : i + 2]) / 2 for i in range(0, len(losses), 2)]


@pytest.mark.parametrize("name", ALL)
def test_three_loops_end_alike(name: str, tmp_path: Path) -> None:
    """Trainer, plain PyTorch and plain Accelerate, with windows of two micro-batches, clipping, a schedule of the learning
    rate, dropout and BatchNorm, on the same batches in float64: the same weights and buffers to 1e-12, the same losses."""
    expected, batches, stream, logged = _by_trainer(ALL[name], tmp_path)
    assert len(batches) == 2 * STEPS
    for loop in (_by_torch, _by_accelerate):
        got, losses = loop(ALL[name], batches, stream)
        assert losses == pytest.approx(logged, rel=1e-6)  # the Trainer adds its losses up in float32
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, rtol=1e-12, atol=1e-12, msg=lambda text, k=key: f"{k}: {text}")


def test_accelerate_ends_an_incomplete_window_with_its_data_loader() -> None:
    """With a prepared data loader of five batches and windows of two, Accelerate lets the optimizer step after the last
    one; the engine takes that as the end of the step, like the PyTorch loop that is told so."""
    ends, counts = [], []
    for accelerated in (True, False):
        model = _model()
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
        data = [_doubled(row) for row in rows("mixed", 10)]
        loader: Any = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=collated)  # type: ignore[arg-type]
        accelerator = None
        if accelerated:
            accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
            model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        sharp = SharpStep(model, optimizer, SAM(rho=0.1), accelerator=accelerator)
        for i, batch in enumerate(loader):
            reseed(i)
            if accelerator is not None:
                with accelerator.accumulate(model):
                    sharp(loss_of(model), batch)
                    optimizer.step()
                    optimizer.zero_grad()
            else:
                sharp(lambda b, m=model: loss_of(m)(b) / 2, batch, last=i % 2 == 1 or i == 4)
                if i % 2 == 1 or i == 4:
                    optimizer.step()
                    optimizer.zero_grad()
        ends.append(snapshot(model))
        counts.append(sharp.step)
    assert counts == [3, 3]
    for key, value in ends[1].items():
        torch.testing.assert_close(ends[0][key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_scale_is_optional(name: str) -> None:
    """Once it is taken out again, a loss scale gives the direction without one, to the precision of the scale itself, which
    is float32; a scaler that is switched off changes no bit."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10), torch.amp.GradScaler("cpu", enabled=False)):
        model = _model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharp = SharpStep(model, optimizer, ALL[name], scaler=scaler, steps=STEPS)
        reseed(0)
        for i in range(2):
            sharp(loss_of(model), _doubled(collated(rows("mixed", 4, seed=i))), last=i == 1)
        if scaler is not None:
            scaler.unscale_(optimizer)
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert differences(found[0], found[2]) == []


def test_the_engine_returns_the_loss_of_the_first_pass() -> None:
    """The returned loss is detached, is what the loss function returned at the weights, and is not divided by Accelerate's
    windows."""
    for accelerator in (None, Accelerator(gradient_accumulation_steps=4, cpu=True)):
        model = _model()
        seen: list[float] = []

        def loss(batch: Row, model: nn.Module = model, seen: list[float] = seen) -> Tensor:
            out = loss_of(model)(batch)
            seen.append(out.item())
            return out

        sharp = SharpStep(model, torch.optim.SGD(model.parameters(), lr=0.1), SAM(rho=0.1), accelerator=accelerator)
        got = sharp(loss, _doubled(collated(rows("mixed", 4))), last=True)
        assert not got.requires_grad
        assert got.item() == seen[0]
        assert len(seen) == 2
        assert seen[0] != seen[1]


_NEEDY: dict[str, tuple[AbstractMethod, str]] = {
    "During": (During(SAM()), "During"),
    "a schedule": (SAM(rho=Linear(0.1, 0.0)), "Linear"),
    "a schedule in a schedule": (SAM(rho=WarmUp(Cosine(0.1, 0.0), 5)), "Cosine"),
    "a schedule in a wrapper": (Every(2, RSAM(gamma=Cosine(0.1, 0.2))), "Cosine"),
    "During in two wrappers": (Decayed(GAM(base=During(SAM())), 0.1), "During"),
}


@pytest.mark.parametrize("case", _NEEDY)
def test_methods_that_follow_training_need_its_length(case: str) -> None:
    """Whatever needs the number of training steps, however deep inside a method, is refused at construction without it, and
    works with it."""
    method, culprit = _NEEDY[case]
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        SharpStep(model, optimizer, method)
    assert str(error.value) == f"{culprit} needs the number of training steps, got none. Pass SharpStep(..., steps=...)."
    SharpStep(model, optimizer, method, steps=3)(loss_of(model), _doubled(collated(rows("mixed", 4))))


@pytest.mark.parametrize("needless", [SAM(), Every(3, SAM()), SAM(rho=WarmUp(0.1, 5)), ALL["gsam"]], ids=str)
def test_other_methods_do_not(needless: AbstractMethod) -> None:
    """Methods and schedules that count steps from the start, or follow the learning rate, work without it."""
    model = _model()
    sharp = SharpStep(model, torch.optim.SGD(model.parameters(), lr=0.1), needless)
    sharp(loss_of(model), _doubled(collated(rows("mixed", 4))))
    assert sharp.step == 1


@dataclass(frozen=True)
class Curious(AbstractMethod):
    """Asks for the number of steps without having said that it needs it."""

    def direction(self, f: AbstractOracle) -> Vector:
        return f().grad * (1.0 / f.steps)


def test_a_method_that_asks_for_the_length_is_told_how_to_get_it() -> None:
    """Where only the step itself shows that the number is needed, the error says what to pass."""
    model = _model()
    sharp = SharpStep(model, torch.optim.SGD(model.parameters(), lr=0.1), Curious())
    with pytest.raises(ValueError, match="The number of training steps must be known, got none") as error:
        sharp(loss_of(model), _doubled(collated(rows("mixed", 4))))
    assert "SharpStep(..., steps=...)" in str(error.value)


@pytest.mark.parametrize(
    ("loss", "got"),
    [(lambda model, b: model(b["x"])["logits"], "shape (4, 3)"), (lambda model, b: 1.5, "1.5")],
    ids=["a tensor with dimensions", "a number"],
)
def test_a_loss_that_is_not_one_number(loss: Callable[[nn.Module, Row], Any], got: str) -> None:
    """The loss function must return one number that can be differentiated; the error names what came."""
    model = _model()
    sharp = SharpStep(model, torch.optim.SGD(model.parameters(), lr=0.1), SAM())
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        sharp(lambda b: loss(model, b), _doubled(collated(rows("mixed", 4))))
    assert str(error.value) == f"The loss must be one number, got {got}. Reduce it, e.g. with loss.mean()."
