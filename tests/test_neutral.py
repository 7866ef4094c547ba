"""A neutral setting of a method trains exactly as the plain Trainer does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_sharp import SAM, AbstractMethod, SharpnessAwareTrainer
from tests.models import arguments, differences, neutral_methods, restless, rows, snapshot, streams

NEUTRAL = neutral_methods()
_CLOCKS = ("_runtime", "_samples_per_second", "_steps_per_second")


@dataclass(frozen=True)
class Setting:
    """What the Trainer is asked for."""

    accumulation: int
    logging: int
    smoothing: bool
    clipping: bool
    bf16: bool

    def __str__(self) -> str:
        flags = {"smoothing": self.smoothing, "clipping": self.clipping, "bf16": self.bf16}
        return "-".join([f"accumulate{self.accumulation}", f"log{self.logging}", *(name for name in flags if flags[name])])

    def arguments(self) -> dict[str, Any]:
        """As training arguments."""
        return {
            "gradient_accumulation_steps": self.accumulation,
            "logging_steps": self.logging,
            "label_smoothing_factor": 0.1 if self.smoothing else 0.0,
            "max_grad_norm": 0.05 if self.clipping else 0.0,  # far below the norms that occur, so that it acts
            "bf16": self.bf16,
        }


def _settings() -> list[Any]:
    """All of them; eight that hold every pair of choices run by default, the others are slow."""
    out = []
    for four, five, smoothing, clipping, bf16 in product((False, True), repeat=5):
        setting = Setting(4 if four else 1, 5 if five else 1, smoothing, clipping, bf16)
        chosen = clipping == four ^ five and bf16 == four ^ smoothing
        out.append(pytest.param(setting, marks=() if chosen else pytest.mark.slow, id=str(setting)))
    return out


class Recorder(TrainerCallback):
    """Notes every event: its name, the step, and the keys of what is logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, list[str]]] = []


def _note(event: str) -> Callable[..., None]:
    def method(self: Recorder, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        keys = [key for key in kwargs.get("logs") or () if not key.startswith("sharpness/")]
        self.events.append((event, state.global_step, keys))

    return method


for _event in [name for name in dir(TrainerCallback) if name.startswith("on_")]:
    setattr(Recorder, _event, _note(_event))


def _train(method: AbstractMethod | None, folder: Path, **changed: Any) -> dict[str, Any]:
    """All that a training leaves behind; 22 samples make 11 micro-batches, so that windows of 4 end with one of 3."""
    recorder = Recorder()
    args = arguments(folder, **{"num_train_epochs": 2, **changed})
    given: dict[str, Any] = {
        "train_dataset": rows("mixed", 22),
        "eval_dataset": rows("mixed", 6, seed=1),
        "callbacks": [recorder],
    }
    if method is None:
        trainer = Trainer(restless(), args, **given)
    else:
        trainer = SharpnessAwareTrainer(restless(), args, method=method, **given)
    trainer.train()
    logs = [
        {key: value for key, value in entry.items() if not key.endswith(_CLOCKS) and not key.startswith("sharpness/")}
        for entry in trainer.state.log_history
    ]
    return {
        "model": snapshot(trainer.model),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "logs": logs,
        "streams": streams(),
        "events": recorder.events,
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Setting, float], dict[str, Any]]:
    """The plain Trainer's endings, each computed once."""

    @cache
    def train(setting: Setting, weight_decay: float) -> dict[str, Any]:
        return _train(None, tmp_path_factory.mktemp("plain"), weight_decay=weight_decay, **setting.arguments())

    return train


@pytest.mark.parametrize("setting", _settings())
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_training_is_the_plain_one_to_the_bit(
    name: str, setting: Setting, plain: Callable[[Setting, float], dict[str, Any]], tmp_path: Path
) -> None:
    """Weights, buffers, optimizer, scheduler, logs (losses and gradient norms), events and random streams: the same bits,
    signs of zeros included, on a model with dropout, BatchNorm and draws from numpy and Python."""
    weight_decay = 0.0 if name == "decayed" else 0.01
    expected = plain(setting, weight_decay)
    got = _train(NEUTRAL[name], tmp_path, weight_decay=weight_decay, **setting.arguments())
    assert differences(expected, got) == []
    assert len(expected["logs"]) == (6 if setting.accumulation == 4 else 22) // setting.logging + 1
    norms = [entry["grad_norm"] for entry in expected["logs"][:-1]]
    assert all(0.05 < float(norm) < 50 for norm in norms), "clipping must act"


def test_the_comparison_sees_a_radius_that_is_not_zero(
    plain: Callable[[Setting, float], dict[str, Any]], tmp_path: Path
) -> None:
    """With rho > 0 the weights differ, so the test above can fail; the random streams still agree."""
    setting = Setting(4, 1, smoothing=True, clipping=False, bf16=False)
    expected = plain(setting, 0.01)
    got = _train(SAM(rho=0.05), tmp_path, weight_decay=0.01, **setting.arguments())
    assert differences(expected["model"], got["model"]) != []
    assert differences(expected["streams"], got["streams"]) == []
    assert differences(expected["events"], got["events"]) == []


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("name", ["sam", "lpf", "accelerated_gam"])
def test_callbacks_see_the_plain_events(name: str, accumulation: int, tmp_path: Path) -> None:
    """With evaluation and checkpoints in between, callbacks get the same events at the same steps, and `on_log` the same
    keys beside those of sharpness/."""
    changed = {
        "gradient_accumulation_steps": accumulation,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_first_step": True,
    }
    expected = _train(None, tmp_path / "plain", **changed)
    got = _train(NEUTRAL[name], tmp_path / "sharp", **changed)
    assert differences(expected, got) == []
    assert {"on_evaluate", "on_save", "on_log", "on_train_end"} <= {event for event, _, _ in got["events"]}
    assert ("on_substep_end" in {event for event, _, _ in got["events"]}) == (accumulation == 4)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_first_logged_loss_is_the_plain_one(accumulation: int, bf16: bool, tmp_path: Path) -> None:
    """The logged loss is that of the Trainer's own pass at the weights, not of a later one: with SAM(rho=0.05) the first
    step logs the plain loss to the bit, and the next steps log others."""
    changed = {"gradient_accumulation_steps": accumulation, "bf16": bf16}
    expected = _train(None, tmp_path / "plain", **changed)["logs"]
    got = _train(SAM(rho=0.05), tmp_path / "sharp", **changed)["logs"]
    assert got[0]["loss"] == expected[0]["loss"]
    assert got[0]["grad_norm"] != expected[0]["grad_norm"]
    assert got[2]["loss"] != expected[2]["loss"]


def test_bits_tell_zeros_apart() -> None:
    """The comparison that this file rests on sees the sign of a zero and the last bit of a number."""
    assert differences(torch.tensor(0.0), torch.tensor(-0.0)) != []
    assert differences(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])) != []
    assert differences({"a": [torch.tensor(float("nan"))]}, {"a": [torch.tensor(float("nan"))]}) == []
