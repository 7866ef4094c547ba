"""The checkpoints of the report: a ViT on digits and a small ResNet on CIFAR-10, plain and with SAM, measured on the way.

    python examples/measure/train_checkpoints.py digits_vit plain --output_dir runs/measure
    python examples/measure/train_checkpoints.py cifar_resnet sam --data uoft-cs/cifar10 --output_dir runs/measure

Each run leaves two checkpoints, ``half`` and ``end``, and what was measured every few epochs in ``history.json``. Plain and
SAM share all settings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from hf_sharp import SAM
from hf_sharp.measure import SharpnessCallback
from hf_sharp.vision.data.augmentation import AugmentationArguments, training_transform
from hf_sharp.vision.data.batches import Collator, ImageDataset
from hf_sharp.vision.data.preprocessing import preprocessing_for
from hf_sharp.vision.data.sources import DataArguments, load_task
from hf_sharp.vision.models import build
from hf_sharp.vision.training import ClassificationTrainer, OptimizationArguments, SharpnessAwareClassificationTrainer

VIT = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,
}
QUANTITIES = [
    "{name: normalized_trace, draws: 6}",
    "{name: top_eigenvalues, tolerance: 0.01}",
    "{name: approximation_ratio, m: 128}",
    "sharpness",
]


@dataclass(frozen=True)
class Task:
    """A model on a data set, and how it is trained.

    Attributes:
        model, model_args: see `hf_sharp.vision.models.build`.
        data: the data set's usual name; the command line may give another place.
        optimizer, learning_rate, weight_decay, epochs, batch_size: of the training.
        augmentation: see `AugmentationArguments`.
        limit: training images; None: all.
        every: epochs between measurements.
        rho: SAM's radius.
    """

    model: str
    data: str
    optimizer: str
    learning_rate: float
    weight_decay: float
    epochs: int
    batch_size: int
    model_args: dict[str, Any] = field(default_factory=dict)
    augmentation: tuple[str, ...] = ()
    limit: int | None = None
    every: int = 2
    rho: float = 0.05


TASKS = {
    "digits_vit": Task("vit", "digits", "adamw", 2e-3, 0.05, 16, 64, VIT),
    "cifar_resnet": Task(
        "resnet8",
        "uoft-cs/cifar10",
        "sgd",
        0.1,
        5e-4,
        18,
        128,
        model_args={"stem_stride": 2},
        augmentation=("basic",),
        limit=10_000,
        every=3,
    ),
}


class SaveHalf(TrainerCallback):
    """Saves the model when half of the epochs are over."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder, self.half = folder, epochs // 2

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves once."""
        if round(state.epoch or 0) == self.half:
            kwargs["model"].save_pretrained(self.folder)
            kwargs["processing_class"].save_pretrained(self.folder)


def train(task: Task, method: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Trains, measures and saves; returns the test metrics."""
    images = load_task(DataArguments(dataset_name=args.data or task.data, train_limit=task.limit))
    augmentation = AugmentationArguments(augmentation=list(task.augmentation))
    preprocessing = preprocessing_for(augmentation, images.train.images)
    set_seed(args.seed)
    epochs = args.epochs or task.epochs
    plain = preprocessing.test_transform()
    test = ImageDataset(images.test, plain)
    collator = Collator(preprocessing)
    optimization = OptimizationArguments(base_optimizer=task.optimizer)
    common: dict[str, Any] = {
        "model": build(task.model, images.classes, task.model_args),
        "args": TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=task.batch_size,
            per_device_eval_batch_size=500,
            learning_rate=task.learning_rate,
            weight_decay=task.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=0.1 if task.optimizer == "adamw" else 0,
            max_grad_norm=0,
            seed=args.seed,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            use_cpu=args.cpu,
            dataloader_pin_memory=False,
        ),
        "train_dataset": ImageDataset(
            images.train, training_transform(augmentation, preprocessing.size, preprocessing.fill)
        ),
        "eval_dataset": test,
        "data_collator": collator,
        "training_collator": collator,
        "processing_class": preprocessing.processor(),
        "optimization": optimization,
    }
    if method == "sam":
        trainer: Trainer = SharpnessAwareClassificationTrainer(**common, method=SAM(rho=task.rho))
    else:
        trainer = ClassificationTrainer(**common)
    sets = {"train": ImageDataset(images.train, plain), "test": test}
    loaders = {
        name: DataLoader(Subset(data, range(min(args.samples, len(data)))), batch_size=256, collate_fn=collator)
        for name, data in sets.items()
    }
    trainer.add_callback(SaveHalf(folder / "half", epochs))
    every = task.every * math.ceil(len(images.train.labels) / task.batch_size)
    file = folder / "history.json"
    trainer.add_callback(SharpnessCallback(trainer, QUANTITIES, loaders, every=every, at=[0], file=file))
    trainer.train()
    trainer.save_model(str(folder / "end"))
    return trainer.evaluate()


def main(given: Sequence[str] | None = None) -> None:
    """Trains one task with one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("method", choices=["plain", "sam"])
    parser.add_argument("--data", help="another place of the data set: a folder, or a name of the Hub")
    parser.add_argument("--epochs", type=int, help="passes over the training set (the task's own)")
    parser.add_argument("--samples", type=int, default=256, help="samples of each set to measure on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even where there is a GPU")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/measure"))
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    metrics = train(TASKS[args.task], args.method, args, args.output_dir / args.task / args.method)
    print({name: round(value, 4) for name, value in metrics.items()})


if __name__ == "__main__":
    main()
