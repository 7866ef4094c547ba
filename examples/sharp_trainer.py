"""ASAM on scikit-learn's digits; `trainer.py` is its plain twin."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import EvalPrediction, TrainingArguments, set_seed

from hf_sharp import ASAM, SharpnessAwareTrainer


class Classifier(nn.Module):
    """Two layers: from pixels, (batch, 64), to the loss and the logits, (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the Trainer expects of a model."""
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """The share of images whose largest logit is the label's."""
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def main() -> None:
    """Train on three quarters of the images and print the accuracy on the others."""
    set_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    rows = [{"x": torch.tensor(x / 16, dtype=torch.float32), "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]
    train, test = torch.utils.data.random_split(rows, [0.75, 0.25])
    args = TrainingArguments(
        output_dir="runs/digits",
        num_train_epochs=15,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = SharpnessAwareTrainer(
        method=ASAM(rho=0.5),
        model=Classifier(),
        args=args,
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=accuracy,
    )
    trainer.train()
    found = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"test accuracy {found['eval_accuracy']:.4f}")


if __name__ == "__main__":
    main()
