"""How good a classifier is: accuracy, cross-entropy, calibration."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

_MODULES = ("image_scores", "top_k_accuracy", "calibration_error", "corruption_scores", "multi_label_accuracy")


def top_k(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """The share of images whose label is among the k largest logits.

    Args:
        logits: (images, classes).
        labels: class numbers (images).
        k: from 1 to the number of classes.

    Raises:
        ValueError: there are no images, the numbers of logits and labels differ, or k is out of range.

    >>> top_k(torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]]), torch.tensor([1, 1]), k=1)
    0.5
    """
    _check(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be from 1 to the number of classes, {logits.shape[1]}, got {k}. Pass e.g. k=1.")
    best = logits.topk(k, dim=1).indices
    return (best == labels[:, None]).any(1).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """The mean negative log-probability of the labels, in nats; arguments as in `top_k`."""
    _check(logits, labels)
    return functional.cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The expected calibration error: by how much confidence differs from accuracy, on average (Guo et al., 2017, eq. 3).

    Images are put into bins of equal width by the largest probability; the bins' gaps between mean confidence and accuracy
    are averaged, weighted by the number of images.

    Args:
        logits: (images, classes).
        labels: class numbers (images).
        bins: how many, >= 1.

    Raises:
        ValueError: as `top_k`, or there is no bin.
    """
    _check(logits, labels)
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}. Pass e.g. bins=15.")
    confidence, predicted = logits.double().softmax(1).max(1)
    surplus = confidence - (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, bin_of, surplus)
    return (gaps.abs().sum() / len(labels)).item()


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``accuracy``, ``top5`` (where there are more than 5 classes), ``cross_entropy`` and ``calibration_error``.

    Args:
        logits: (images, classes).
        labels: class numbers (images).

    Raises:
        ValueError: as `top_k`.
    """
    metrics = {"accuracy": top_k(logits, labels)}
    if logits.shape[1] > 5:
        metrics["top5"] = top_k(logits, labels, 5)
    return metrics | {
        "cross_entropy": cross_entropy(logits, labels),
        "calibration_error": calibration_error(logits, labels),
    }


def module(name: str) -> str:
    """The file of a metric for ``evaluate.load``, which then asks no hub: ``image_scores``, ``top_k_accuracy``,
    ``calibration_error``, ``corruption_scores`` (ImageNet-C's) or ``multi_label_accuracy`` (ReaL's).

    Raises:
        ValueError: there is no such metric.
    """
    folder = Path(__file__).parent / "modules"
    file = folder / f"{name}.py"
    if name not in _MODULES or not file.is_file():
        raise ValueError(
            f"The metric must be one of {', '.join(_MODULES)}, got {name!r}. Write e.g. module({_MODULES[0]!r})."
        )
    return str(file)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (images, classes) and labels (images), got {tuple(logits.shape)} and {tuple(labels.shape)}. "
            "Pass one row of logits and one class number per image."
        )
    if not len(labels):
        raise ValueError("A metric needs images, got none. Check the split.")
