"""The Trainers of image classifiers: loss, optimizer, mixing, and what stays the plain Trainer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, RMSprop
from transformers import Trainer, TrainingArguments, set_seed
from transformers.modeling_outputs import ImageClassifierOutput

pytest.importorskip("torchvision")

from hf_sharp import SAM
from hf_sharp.vision.data.augmentation import AugmentationArguments, mixing, training_transform
from hf_sharp.vision.data.batches import Collator, ImageDataset
from hf_sharp.vision.data.images import StoredImages
from hf_sharp.vision.data.preprocessing import Preprocessing
from hf_sharp.vision.data.splits import Split
from hf_sharp.vision.models import build
from hf_sharp.vision.record import RunRecord, record_of
from hf_sharp.vision.training import (
    ClassificationLoss,
    ClassificationTrainer,
    OptimizationArguments,
    SharpnessAwareClassificationTrainer,
)

PREPROCESSING = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLASSES = ["a", "b", "c"]
TINY = {"widths": [4, 4, 4], "stem_width": 4}


def images(number: int = 24) -> Split:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (number, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(StoredImages(pixels), torch.arange(number) % 3, "train")


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**defaults, **fields})


def trainer(
    folder: Path,
    augmentation: AugmentationArguments | None = None,
    optimization: OptimizationArguments | None = None,
    method: SAM | None = None,
    record: RunRecord | None = None,
    **fields: Any,
) -> Trainer:
    augmentation = augmentation or AugmentationArguments()
    set_seed(0)
    common: dict[str, Any] = {
        "model": build("resnet8", CLASSES, TINY),
        "args": arguments(folder, **fields),
        "train_dataset": ImageDataset(images(), training_transform(augmentation, 8, PREPROCESSING.fill)),
        "eval_dataset": ImageDataset(images(9), PREPROCESSING.test_transform()),
        "data_collator": Collator(PREPROCESSING),
        "training_collator": Collator(PREPROCESSING, mixing(augmentation, 3), classes=3),
        "optimization": optimization or OptimizationArguments(),
        "record": record,
    }
    if method is None:
        return ClassificationTrainer(**common)
    return SharpnessAwareClassificationTrainer(**common, method=method)


def weights(of: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.model.parameters()])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_class_numbers_and_of_probabilities(smoothing: float) -> None:
    logits, hard = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    outputs, loss = ImageClassifierOutput(logits=logits), ClassificationLoss(smoothing=smoothing)
    expected = functional.cross_entropy(logits, hard, label_smoothing=smoothing)
    soft = functional.one_hot(hard, 3).float()
    torch.testing.assert_close(loss(outputs, hard), expected)
    torch.testing.assert_close(loss(outputs, soft), expected)
    # The Trainer counts the entries of all labels of a step: 10 class numbers, or 10 rows of 3 probabilities.
    torch.testing.assert_close(loss(outputs, hard, torch.tensor(10)), expected / 2)
    torch.testing.assert_close(loss(outputs, soft, torch.tensor(30)), expected / 2)


def test_sigmoid_loss_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]]).double(), torch.tensor([1])
    target = torch.tensor([[0.0, 1.0, 0.0]]).double() * (1 - 0.01) + 0.01
    p = logits.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum()
    loss = ClassificationLoss("sigmoid", smoothing=0.01)
    torch.testing.assert_close(loss(ImageClassifierOutput(logits=logits), labels).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("sgd", SGD, {"momentum": 0.9, "nesterov": False}),
        ("nesterov", SGD, {"momentum": 0.9, "nesterov": True}),
        ("rmsprop", RMSprop, {"momentum": 0.9}),
        ("adam", Adam, {"betas": (0.9, 0.98)}),
        ("adamw", AdamW, {"betas": (0.9, 0.98)}),
    ],
)
def test_base_optimizers(name: str, kind: type, fields: dict[str, Any], tmp_path: Path) -> None:
    own = OptimizationArguments(base_optimizer=name)
    made = trainer(tmp_path, optimization=own, weight_decay=0.01, adam_beta2=0.98).create_optimizer()
    assert type(made) is kind
    (first, second) = made.param_groups
    assert first["lr"] == 0.1
    assert first["weight_decay"] == 0.01
    assert {key: first[key] for key in fields} == fields
    assert not second["params"]  # all weights decay
    some = OptimizationArguments(base_optimizer=name, decay_all=False)
    assert trainer(tmp_path, optimization=some).create_optimizer().param_groups[1]["params"]


@pytest.mark.parametrize("kind", [["none"], ["mixup"]])
def test_accumulation_does_not_change_the_result(kind: list[str], tmp_path: Path) -> None:
    """Mixed labels have more entries than class numbers; both must come to the same mean."""
    found = []
    for size, steps in ((8, 1), (2, 4)):
        run = trainer(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1, logging_steps=1
        )
        if kind == ["mixup"]:
            run._training_collator = Collator(PREPROCESSING, lambda x, y: (x, functional.one_hot(y, 3).float()))
        for module in run.model.modules():  # statistics over a micro-batch would differ, and rightly so
            if isinstance(module, torch.nn.BatchNorm2d):
                module.track_running_stats, module.momentum = True, 0.0
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
                module.training = False
        run.train()
        found.append((weights(run), run.state.log_history[0]["loss"]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)


def test_method_that_does_nothing_is_the_plain_trainer_to_the_bit(tmp_path: Path) -> None:
    mixed = AugmentationArguments(["basic", "mixup"])
    plain = trainer(tmp_path, mixed)
    plain.train()
    none = trainer(tmp_path, mixed, method=SAM(rho=0.0))  # sets the seed again
    none.train()
    assert torch.equal(weights(plain), weights(none))
    assert not torch.equal(weights(plain), weights(trainer(tmp_path, mixed)))


def test_test_batches_are_never_mixed(tmp_path: Path) -> None:
    run = trainer(tmp_path, AugmentationArguments(["mixup"]), method=SAM())
    assert next(iter(run.get_train_dataloader()))["labels"].shape == (4, 3)
    assert next(iter(run.get_eval_dataloader()))["labels"].shape == (8,)
    run.train()
    metrics = run.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1


def test_seconds_are_those_of_training_and_go_on_after_a_resume(tmp_path: Path) -> None:
    def save(**fields: Any) -> Trainer:
        return trainer(tmp_path, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=1, **fields)

    first = save()
    with patch.object(RunRecord, "without", lambda self, seconds: setattr(self, "seconds", self.seconds - seconds - 100)):
        first.train()
    assert first.record.seconds < -500  # the six evaluations were taken off
    _, kept = record_of(tmp_path / "checkpoint-3")
    assert kept < -200
    again = save(record=RunRecord({}, 1000.0))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert 1000 < again.record.seconds < 1100
    file = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    del state["stateful_callbacks"]["RunRecord"]  # as of another Trainer
    file.write_text(json.dumps(state), encoding="utf-8")
    assert record_of(tmp_path / "checkpoint-3") == (None, 0.0)
    save().train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert record_of(tmp_path / "checkpoint-6")[0] == {}


def test_channels_last_holds_for_weights_and_images(tmp_path: Path) -> None:
    run = trainer(tmp_path, optimization=OptimizationArguments(channels_last=True))
    weight = next(p for p in run.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_models_own_loss(tmp_path: Path) -> None:
    own = trainer(tmp_path, optimization=OptimizationArguments(loss="model"))
    ours = trainer(tmp_path)
    own.train(), ours.train()
    torch.testing.assert_close(weights(own), weights(ours))
