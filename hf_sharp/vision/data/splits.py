"""Images with their labels, for training and for testing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_sharp.vision.data.images import AbstractImages, StoredImages


@dataclass(frozen=True)
class Split:
    """Images, their labels (number, int64), and where they come from."""

    images: AbstractImages
    labels: Tensor
    name: str

    def chosen(self, rows: Sequence[int]) -> Split:
        """These rows, in this order."""
        return Split(self.images.chosen(rows), self.labels[torch.as_tensor(rows, dtype=torch.long)], self.name)


@dataclass(frozen=True)
class ImageTask:
    """What is trained on and what is tested on, with the same classes."""

    train: Split
    test: Split
    classes: list[str]


def digits(train_limit: int | None = None, test_limit: int | None = None) -> ImageTask:
    """Scikit-learn's 1797 digits of 8x8 pixels, 30 % for the test; of each part the first ones where there is a limit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    grey = (torch.tensor(data.images) * 255 / 16).round().to(torch.uint8)
    images = StoredImages(grey.unsqueeze(1).expand(-1, 3, -1, -1).contiguous())
    labels = torch.tensor(data.target)
    train, test = train_test_split(range(len(grey)), test_size=0.3, random_state=0, stratify=data.target)
    return ImageTask(
        Split(images, labels, "train").chosen(train[:train_limit]),
        Split(images, labels, "test").chosen(test[:test_limit]),
        [str(i) for i in range(10)],
    )
