"""What a Trainer notes down in `compute_loss` counts each sample once, whatever the method."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_sharp import GAM, LPF, SAM, AbstractMethod, SharpnessAwareMixin
from hf_sharp.notes import Notes
from tests.models import all_methods, arguments, differences, mixed, neutral_methods, reseed, rows, snapshot


@dataclass
class Meter:
    """A user's running mean, inside another object."""

    total: float = 0.0
    seen: list[int] = field(default_factory=list)


class Loss(nn.Module):
    """A loss that remembers: a buffer, an attribute, and a parameter that the model does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.history: list[float] = []
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        self.batches += 1
        loss = nn.functional.cross_entropy(outputs["logits"] * self.temperature, labels)
        self.history.append(float(loss))
        return loss


class NotingTrainer(Trainer):
    """A Trainer that notes down all it can in its `compute_loss`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, compute_loss_func=Loss(), **kwargs)
        self.number, self.text = 0, ""
        self.metrics: dict[str, dict[str, list[float]]] = {"train": {}}
        self.tensor, self.array = torch.zeros(3), np.zeros(2)
        self.large = torch.zeros(2**21)
        self.recent: deque[float] = deque(maxlen=3)
        self.labels, self.counts = set[int](), Counter[int]()
        self.long = list(range(2000))
        self.meter = SimpleNamespace(inner=Meter())
        self.pair = ([0], "untouched")

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        count = len(inputs["labels"])
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        value = float(loss)
        self.number += count
        self.text += "."
        self.metrics["train"].setdefault("value", []).append(value)
        self.metrics["train"][f"step {self.number}"] = [value]
        self.tensor += value
        self.large[self.number % 7] += value
        self.array += value
        self.recent.append(value)
        self.labels.add(self.number)
        self.counts[count] += 1
        self.long.append(self.number)
        self.meter.inner.total += value
        self.meter.inner.seen.append(count)
        self.pair[0][0] += count
        return loss

    def notes(self) -> dict[str, Any]:
        """All that was noted down."""
        loss = self.compute_loss_func
        return {
            "own": [self.number, self.text, self.metrics, self.tensor, self.large, self.array, self.pair],
            "containers": [list(self.recent), sorted(self.labels), dict(self.counts), self.long],
            "meter": [self.meter.inner.total, self.meter.inner.seen],
            "loss": [loss.batches, loss.history, loss.temperature.detach(), loss.temperature.grad],
        }


class SharpNotingTrainer(SharpnessAwareMixin, NotingTrainer):
    """The same, sharpness-aware."""


def _trained(method: AbstractMethod | None, folder: Path, **changed: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    given = {"train_dataset": rows("mixed", 10)}
    args = arguments(folder, weight_decay=0.0, **{"num_train_epochs": 1, "gradient_accumulation_steps": 2, **changed})
    trainer = (
        NotingTrainer(mixed(), args, **given)
        if method is None
        else SharpNotingTrainer(mixed(), args, method=method, **given)
    )
    trainer.train()
    return trainer.notes(), snapshot(trainer.model)


@pytest.mark.parametrize("name", neutral_methods())
def test_a_neutral_method_notes_what_the_plain_trainer_notes(name: str, tmp_path: Path) -> None:
    """Numbers, text, containers of all kinds, tensors, arrays, meters, and what a loss module keeps: the same bits."""
    expected, got = _trained(None, tmp_path), _trained(neutral_methods()[name], tmp_path)
    assert differences(expected, got) == []
    assert expected[0]["own"][0] == 10


@pytest.mark.parametrize("perturb_over", ["batch", "micro_batch"])
@pytest.mark.parametrize("name", all_methods())
def test_each_sample_counts_once(name: str, perturb_over: str, tmp_path: Path) -> None:
    """Whatever the number of passes, and however the batch is split."""
    args = arguments(tmp_path, weight_decay=0.0, gradient_accumulation_steps=2)
    trainer = SharpNotingTrainer(
        mixed(), args, train_dataset=rows("mixed", 10), method=all_methods()[name], perturb_over=perturb_over
    )
    trainer.train()
    assert (trainer.number, trainer.pair[0], len(trainer.text)) == (10, [10], 5)
    assert len(trainer.metrics["train"]["value"]) == len(trainer.compute_loss_func.history) == 5
    assert len(trainer.metrics["train"]) == 6
    assert trainer.long[2000:] == sorted(trainer.labels) == [2, 4, 6, 8, 10]
    assert (trainer.counts, trainer.meter.inner.seen) == ({2: 5}, [2] * 5)
    assert int(trainer.compute_loss_func.batches) == 5
    assert float(trainer.tensor[0]) == pytest.approx(sum(trainer.metrics["train"]["value"]), rel=1e-5)
    assert float(trainer.large.sum()) == pytest.approx(sum(trainer.metrics["train"]["value"]), rel=1e-5)


class CountingTrainer(SharpnessAwareMixin, Trainer):
    """A Trainer whose loss depends on how often it was asked for."""

    calls = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls, self.weights = 0, []

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        asked.append(self.calls)
        return super().compute_loss(model, inputs, *args, **kwargs) * self.calls


asked: list[int] = []


@pytest.mark.parametrize(
    ("method", "passes"), [(SAM(), 2), (GAM(), 4), (LPF(gamma=0.01, draws=3), 3)], ids=["sam", "gam", "lpf"]
)
def test_a_counter_is_the_same_in_every_pass(method: AbstractMethod, passes: int, tmp_path: Path) -> None:
    """A later pass over a micro-batch finds the Trainer's numbers as the first one found them."""
    asked.clear()
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    CountingTrainer(mixed(), args, train_dataset=rows("mixed", 8), method=method).train()
    assert asked == [1, 2] * passes + [3, 4] * passes


class FailingTrainer(SharpNotingTrainer):
    """A Trainer that fails in its second pass."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss


calls: list[int] = []


def test_an_error_in_a_later_pass_leaves_the_notes_of_the_first(tmp_path: Path) -> None:
    """Also what was noted before it happened is put back."""
    calls.clear()
    trainer = FailingTrainer(mixed(), arguments(tmp_path), train_dataset=rows("mixed", 4), method=SAM())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (trainer.number, trainer.counts, trainer.long[2000:]) == (2, {2: 1}, [2])


class Owner(SimpleNamespace):
    """Attributes like a Trainer's; a class of its own, so that there can be weak references to it."""


def test_only_what_is_written_is_copied() -> None:
    """A look costs no copy of a data set, of a model, or of a tensor that the first pass leaves alone; a teacher that a
    first pass moves is put back after the others, from the first step on."""
    model, other, teacher, frozen = mixed(), mixed(), nn.Linear(2, 2).requires_grad_(False), torch.zeros(4)
    owner = Owner(
        model=model, model_wrapped=model, other=other, teacher=teacher, frozen=frozen, train_dataset=[{"x": torch.zeros(3)}]
    )
    notes = Notes(owner)
    for _ in range(2):
        notes.forget()
        teacher.weight.mul_(0.5)
        left = teacher.weight.clone()
        with notes.replay(notes.counters()):
            kept = [live for live, _ in notes._kept or ()]
            teacher.weight.mul_(0.5)
        assert [x for x in kept if isinstance(x, Tensor)] == [teacher.weight]
        assert not any(x is owner.train_dataset or x is vars(other) or x is vars(model) for x in kept)
        assert torch.equal(teacher.weight, left)


def test_attributes_that_come_and_go(tmp_path: Path) -> None:
    """What a later pass adds is taken away, what it deletes is there again; flags are not rewound."""
    model = mixed()
    owner = Owner(model=model, model_wrapped=model, gone=[1], ready=False, count=0)
    notes = Notes(owner)
    notes.forget()
    counters = notes.counters()
    owner.ready, owner.count = True, 1
    with notes.replay(counters):
        assert (owner.ready, owner.count) == (True, 0)
        owner.added = 1
        owner.gone = None
        del owner.ready
    assert vars(owner) == {"model": model, "model_wrapped": model, "gone": [1], "ready": True, "count": 1}


class GeneratingTrainer(Trainer):
    """A Trainer that draws its samples when it prepares its inputs, by a counter of its own, as on-policy trainers do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step, self._drawn = 0, torch.zeros(())

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._step += 1
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        if self._step % 2 == 0:
            drawn.append(self._step)
            self._drawn = self.model.first.weight.detach().sum() + torch.randn(())
        return {**inputs, "x": inputs["x"] + self._drawn}

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(inputs["x"].clone())
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        del inputs["x"]
        return loss


class SharpGeneratingTrainer(SharpnessAwareMixin, GeneratingTrainer):
    """The same, sharpness-aware."""


drawn: list[int] = []
given: list[Tensor] = []


def test_samples_that_are_made_while_inputs_are_prepared(tmp_path: Path) -> None:
    """They are made once per micro-batch, at the weights: every pass sees those of the first, whatever becomes of them."""
    ends = []
    for method in (None, SAM(rho=0), GAM(rho=0.1)):
        drawn.clear()
        given.clear()
        reseed(0)
        args = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=2)
        data = {"train_dataset": rows("mixed", 8)}
        kind = GeneratingTrainer if method is None else partial(SharpGeneratingTrainer, method=method)
        trainer = kind(mixed(), args, **data)
        trainer.train()
        assert drawn == [0, 2]
        ends.append(snapshot(trainer.model))
        passes = len(given) // 4
        for step in (0, 1):
            seen = given[2 * passes * step : 2 * passes * (step + 1)]
            assert all(torch.equal(x, seen[i % 2]) for i, x in enumerate(seen))
    assert passes == 4
    assert differences(ends[0], ends[1]) == []
    assert differences(ends[0], ends[2]) != []
