"""Measuring during a Trainer run leaves the run as it was, to the bit, and its values in the logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_sharp import SAM, SharpnessAwareTrainer
from hf_sharp.measure import QUANTITIES, How, SharpnessCallback, Trace, loss_surface
from tests.measure.models import Classifier, batches, made
from tests.measure.test_quantities import SMALL
from tests.models import arguments, collated, differences, mixed, reseed, rows, snapshot, streams, vit

CHEAP = ["{name: trace, draws: 3}", "{name: sharpness, m: 2}", "{name: top_eigenvalues, k: 2, tolerance: 0.1}"]


class Keep(TrainerCallback):
    """Keeps a reference to the optimizer."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizer = kwargs["optimizer"]


def run(kind: type[Trainer], folder: Path, model: str, measured: bool, **more: Any) -> tuple[dict[str, Any], Trainer]:
    """Everything that a run leaves."""
    reseed(0)
    keep = Keep()
    build, data = (mixed, rows("mixed", 16)) if model == "mixed" else (vit, rows("vit", 16))
    args = arguments(folder, max_steps=6, logging_steps=2, gradient_accumulation_steps=2, save_strategy="no")
    trainer = kind(build(), args, train_dataset=data, callbacks=[keep], **more)
    if measured:
        loader: DataLoader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=collated)  # type: ignore[arg-type]
        trainer.add_callback(SharpnessCallback(trainer, CHEAP, {"train": loader}, every=2, at=[0, 3], how=how(model)))
    trainer.train()
    logs = [{k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k} for e in trainer.state.log_history]
    assert trainer.model is not None
    left = {
        "weights": snapshot(trainer.model),
        "optimizer": keep.optimizer.state_dict(),
        "logs": [e for e in logs if not any(key.startswith("sharpness/train") for key in e)],
        "streams": streams(),
        "modes": [m.training for m in trainer.model.modules()],
    }
    return left, trainer


def how(model: str) -> How:
    return How(statistics="batch" if model == "mixed" else "running", hvp="difference" if model == "mixed" else "exact")


@pytest.mark.filterwarnings("ignore:Dropout is off")
@pytest.mark.parametrize("model", ["mixed", "vit"])
@pytest.mark.parametrize("kind", [Trainer, SharpnessAwareTrainer])
def test_the_run_is_bit_identical(kind: type[Trainer], model: str, tmp_path: Path) -> None:
    """With dropout, BatchNorm and a shuffling loader; weights, optimizer, logs and random streams."""
    more = {"method": SAM(rho=0.05)} if kind is SharpnessAwareTrainer else {}
    plain, _ = run(kind, tmp_path / "plain", model, False, **more)
    watched, trainer = run(kind, tmp_path / "watched", model, True, **more)
    assert differences(plain, watched) == []
    entries = [e for e in trainer.state.log_history if "sharpness/train/trace" in e]
    assert [e["step"] for e in entries] == [0, 2, 3, 4, 6]
    assert set(entries[0]) >= {
        "sharpness/train/trace",
        "sharpness/train/trace_se",
        "sharpness/train/sharpness",
        "sharpness/train/sharpness_se",
        "sharpness/train/sharpness/loss",
        "sharpness/train/top_eigenvalues/top_eigenvalue",
    }


class Tracker(TrainerCallback):
    """Stands for TensorBoard and its like."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.seen.append(logs)


def test_every_quantity_from_the_callback(tmp_path: Path) -> None:
    """Into the logs, into other callbacks, and into a file with standard errors and settings."""
    torch.save(made(Classifier(), seed=1).state_dict(), tmp_path / "other.pt")
    asked = {name: {"name": name, **SMALL[name]} for name in QUANTITIES}
    asked["loss_between"]["checkpoint"] = str(tmp_path / "other.pt")
    asked["mine"] = {"name": "sharpness", "rho": 0.3, "adaptive": True}
    data = [{"x": x, "labels": y} for b in batches() for x, y in zip(b["x"], b["labels"], strict=True)]
    tracker = Tracker()
    args = arguments(tmp_path, max_steps=4, per_device_train_batch_size=10)
    trainer = Trainer(made(Classifier()), args, train_dataset=data, callbacks=[tracker])
    file = tmp_path / "folder" / "history.json"
    loaders = {"train": batches(20, 8), "test": batches(12, 8)}
    callback = SharpnessCallback(trainer, asked, loaders, file=file)
    trainer.add_callback(callback)
    trainer.train()
    written = json.loads(file.read_text())
    assert [(r["step"], r["loader"], r["label"]) for r in written] == [
        (step, loader, label) for step in (2, 4) for loader in loaders for label in asked
    ]
    logged = [e for e in tracker.seen if "sharpness/test/trace" in e]
    assert len(logged) == 2
    for label in asked:
        assert any(key.startswith(f"sharpness/train/{label}") for key in logged[0])
    with loss_surface(trainer.model, loaders["test"]) as f:
        found = Trace(draws=2).measure(f)
    assert logged[-1]["sharpness/test/trace"] == found.values["trace"]
    assert logged[-1]["sharpness/test/trace_se"] == found.errors["trace"]


@pytest.mark.parametrize(
    ("quantity", "loader", "message"),
    [
        ("{name: top_eigenvalues, k: 99}", batches(), "k must be at most the number of weights, 43, got 99"),
        ("{name: sharpness, m: 9}", batches(), "m must be at most the batch size, got 9"),
        ("trace", [], "The loader must hold at least one sample"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    quantity: str, loader: Any, message: str, tmp_path: Path
) -> None:
    """Though the first measurement would be after it."""
    data = [{"x": x, "labels": y} for b in batches() for x, y in zip(b["x"], b["labels"], strict=True)]
    trainer = Trainer(made(Classifier()), arguments(tmp_path, max_steps=2), train_dataset=data)
    trainer.add_callback(SharpnessCallback(trainer, [quantity], {"train": loader}))
    with pytest.raises(ValueError, match=f"^{message}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_resumed_run_keeps_its_history(tmp_path: Path) -> None:
    """Up to the step that it resumes from; a run from the start begins anew."""
    data = [{"x": x, "labels": y} for b in batches() for x, y in zip(b["x"], b["labels"], strict=True)]
    file = tmp_path / "history.json"

    def train(steps: int, resume: str | None) -> list[int]:
        args = arguments(tmp_path / "run", max_steps=steps, save_strategy="steps", save_steps=4)
        trainer = Trainer(made(Classifier()), args, train_dataset=data)
        asked = ["{name: sharpness}"]
        trainer.add_callback(SharpnessCallback(trainer, asked, {"train": batches()}, every=2, file=file))
        trainer.train(resume_from_checkpoint=resume)
        return [entry["step"] for entry in json.loads(file.read_text())]

    assert train(6, None) == [2, 4, 6]
    assert train(8, str(tmp_path / "run" / "checkpoint-4")) == [2, 4, 6, 8]
    assert train(2, None) == [2]
