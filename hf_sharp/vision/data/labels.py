"""Labels, and the noise in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_whole(labels: Sequence[Any], column: str, split: str, dataset: str) -> None:
    """Raises ValueError where a row has no label; the error names column, row, split and data set."""
    row = next((i for i, label in enumerate(labels) if label is None), None)
    if row is not None:
        raise ValueError(
            f"Each row must have a label, got none in column {column!r}, row {row} of {split!r} in {dataset!r}. "
            "Drop the row, or choose a split that has labels."
        )


def check_labels(labels: Tensor, classes: int, column: str, split: str, dataset: str) -> None:
    """Raises ValueError where a label is not a class number from 0 to ``classes - 1``; as `check_whole`."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"Labels must be from 0 to {classes - 1}, got {int(labels[row])} in column {column!r}, row {row} of "
            f"{split!r} in {dataset!r}. Choose a split that has labels, or another label_column."
        )


def check_rate(rate: float) -> None:
    """Raises ValueError unless a share of wrong labels is from 0 to 1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"noise_rate must be from 0 to 1, got {rate!r}. Pass e.g. noise_rate=0.4.")


def symmetric_noise(labels: Tensor, rate: float, classes: int, seed: int) -> Tensor:
    """Labels of which a share is wrong: ``round(rate n)`` of them, each replaced by one of the other classes at random.

    Which ones, and by what, depends on the seed and the number of labels alone.

    Args:
        labels: class numbers (number), int64.
        rate: the share, from 0 to 1.
        classes: how many classes there are.
        seed: of the noise.

    Raises:
        ValueError: the rate is not from 0 to 1, or there is a single class.

    >>> noisy = symmetric_noise(torch.zeros(10, dtype=torch.long), 0.4, classes=10, seed=0)
    >>> int((noisy != 0).sum())
    4
    """
    check_rate(rate)
    if classes < 2:
        raise ValueError(f"Symmetric noise needs at least 2 classes, got {classes}. Set label_noise=none.")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=generator)[: round(rate * len(labels))]
    steps = torch.randint(1, classes, (len(rows),), generator=generator)
    noisy = labels.clone()
    noisy[rows] = (labels[rows] + steps) % classes
    return noisy


def human_noise(
    labels: Tensor, human: Tensor, clean: Tensor | None, classes: int, column: str, split: str, dataset: str
) -> Tensor:
    """Labels that people gave to the same images, after a check that they belong to the same images.

    Args:
        labels: the data set's labels (number).
        human: the labels to train on, row by row for the whole training set; may be longer than ``labels``.
        clean: the true labels as the file of human labels has them.
        classes: how many classes there are.
        column: where the human labels are, for error messages.
        split: the same.
        dataset: the same.

    Raises:
        ValueError: there are too few, or they belong to other images.
    """
    if len(human) < len(labels):
        raise ValueError(
            f"There must be a human label for each image, got {len(human)} in {dataset!r} for {len(labels)} images. "
            "Use the training split of the data set that they were collected for."
        )
    if clean is not None and not torch.equal(clean[: len(labels)], labels):
        row = int((clean[: len(labels)] != labels).nonzero()[0])
        raise ValueError(
            f"Human labels must be in the order of the images, got the true label {int(clean[row])} in row {row} of "
            f"{split!r} in {dataset!r}, where the data set has {int(labels[row])}. "
            "Use the original order of the training split."
        )
    human = human[: len(labels)]
    check_labels(human, classes, column, split, dataset)
    return human
