"""The Trainers of image classifiers: loss, optimizer and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from hf_sharp.evaluation.accuracy import classification_metrics
from hf_sharp.trainer import SharpnessAwareMixin
from hf_sharp.vision.data.batches import Collator
from hf_sharp.vision.record import RunRecord

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

OPTIMIZERS = ("sgd", "nesterov", "rmsprop", "adam", "adamw")
LOSSES = ("cross_entropy", "sigmoid", "model")


@dataclass(frozen=True)
class OptimizationArguments:
    """Loss and base optimizer; learning rate, weight decay, betas and schedule are the Trainer's own arguments."""

    base_optimizer: str = field(default="sgd", metadata={"help": "sgd, nesterov, rmsprop, adam or adamw."})
    momentum: float = field(default=0.9, metadata={"help": "Of sgd, nesterov and rmsprop."})
    decay_all: bool = field(
        default=True, metadata={"help": "Decay all weights (as the papers do), biases and norm layers included."}
    )
    loss: str = field(
        default="cross_entropy",
        metadata={"help": "cross_entropy; sigmoid (one binary cross-entropy per class); model (the model's own)."},
    )
    channels_last: bool = field(default=False, metadata={"help": "Faster convolutions on GPUs with tensor cores."})

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("base_optimizer", self.base_optimizer, OPTIMIZERS),
            ("loss", self.loss, LOSSES),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}. Pass e.g. {choices[0]}.")

        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, got {self.momentum}. Pass e.g. momentum=0.9.")

    def check_mixing(self, mixes: bool) -> None:
        """Raises ValueError where labels become probabilities and the loss takes class numbers only."""
        if mixes and self.loss == "model":
            raise ValueError(
                "mixup and cutmix need a loss that takes probabilities, got loss='model', which takes class numbers. "
                "Set loss='cross_entropy'."
            )

    def optimizer(self, args: TrainingArguments) -> tuple[type[Optimizer], dict[str, Any]]:
        """The optimizer's class and arguments, as the Trainer takes them."""
        betas: dict[str, Any] = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        known: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
            "sgd": (SGD, {"momentum": self.momentum}),
            "nesterov": (SGD, {"momentum": self.momentum, "nesterov": True}),
            "rmsprop": (RMSprop, {"momentum": self.momentum}),
            "adam": (Adam, betas),
            "adamw": (AdamW, betas),
        }
        kind, extra = known[self.base_optimizer]
        return kind, {"lr": args.learning_rate, **extra}


@dataclass(frozen=True)
class ClassificationLoss:
    """The mean loss over the images of an optimizer step, of class numbers (batch) or probabilities (batch, classes).

    Args:
        kind: ``"cross_entropy"`` or ``"sigmoid"``, the binary cross-entropies summed over the classes.
        smoothing: label smoothing, from 0 to 1: the share of the target that is spread over all classes.
    """

    kind: str = "cross_entropy"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"label_smoothing_factor must be from 0 to 1, got {self.smoothing}. Pass e.g. 0.1.")

    def __call__(
        self, outputs: ImageClassifierOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss; with ``num_items_in_batch`` (the entries of all labels of the step) the batch's share of it."""
        logits = outputs["logits"].float()
        if self.kind == "cross_entropy":
            total = functional.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="sum")
        else:
            target = functional.one_hot(labels, logits.shape[-1]).to(logits) if labels.ndim == 1 else labels.to(logits)
            target = target * (1 - self.smoothing) + self.smoothing
            total = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        if num_items_in_batch is None:
            return total / len(labels)
        return total / (num_items_in_batch / (labels.numel() // len(labels)))


class ClassificationMixin(_Base):
    """Makes a Trainer one of image classifiers.

    Args:
        *args, **kwargs: the Trainer's own; ``data_collator`` makes the test batches.
        training_collator: makes the training batches.
        optimization: loss and base optimizer.
        record: what checkpoints say of the run; by default its seconds of training alone.
    """

    def __init__(
        self,
        *args: Any,
        training_collator: Collator,
        optimization: OptimizationArguments,
        record: RunRecord | None = None,
        **kwargs: Any,
    ) -> None:
        self._training_collator, self._optimization = training_collator, optimization
        settings: TrainingArguments = kwargs["args"]
        if optimization.loss != "model":
            kwargs["compute_loss_func"] = ClassificationLoss(optimization.loss, settings.label_smoothing_factor)
        kwargs.setdefault("compute_metrics", compute_metrics)
        kwargs["optimizer_cls_and_kwargs"] = optimization.optimizer(settings)
        if optimization.channels_last:
            kwargs["model"].to(memory_format=torch.channels_last)
        super().__init__(*args, **kwargs)
        self.record = record or RunRecord({})
        self.add_callback(self.record)

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's, with the training collator: test batches are never mixed."""
        kept, self.data_collator = self.data_collator, self._training_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = kept

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's; its time does not count as training."""
        start = time.perf_counter()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.record.without(time.perf_counter() - start)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All parameters, or what the Trainer would decay."""
        if self._optimization.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)


class ClassificationTrainer(ClassificationMixin, Trainer):
    """The Trainer of image classifiers without a sharpness-aware method."""


class SharpnessAwareClassificationTrainer(SharpnessAwareMixin, ClassificationMixin, Trainer):
    """The Trainer of image classifiers with one."""


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, top-5 accuracy, cross-entropy and calibration error of a Trainer's evaluation."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return classification_metrics(torch.as_tensor(logits), torch.as_tensor(prediction.label_ids))
