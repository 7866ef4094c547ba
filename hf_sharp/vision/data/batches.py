"""From images and labels to the batches of a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from hf_sharp.vision.data.preprocessing import Preprocessing
from hf_sharp.vision.data.splits import Split


class ImageDataset(Dataset):
    """Images as a model's size wants them, uint8, with their labels.

    Args:
        split: the images and labels.
        transform: what happens to each image, to (3, height, width) of the same type.
    """

    def __init__(self, split: Split, transform: v2.Transform) -> None:
        self.split, self.transform = split, transform
        self._labels = split.labels.tolist()

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixel_values": self.transform(self.split.images[i]), "labels": self._labels[i]}


@dataclass(frozen=True)
class Collator:
    """Batches from items: images (batch, 3, height, width), normalised, and labels (batch).

    Args:
        preprocessing: the normalisation.
        mixing: mixup or CutMix, after which labels are probabilities (batch, classes); None: neither.
        probability: the share of batches that are mixed.
        classes: how many there are.
        channels_last: whether the images lie in memory pixel by pixel, which is faster on GPUs with tensor cores.
    """

    preprocessing: Preprocessing
    mixing: v2.Transform | None = None
    probability: float = 1.0
    classes: int = 0
    channels_last: bool = False

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        images = self.preprocessing.normalised(torch.stack([item["pixel_values"] for item in items]))
        labels = torch.tensor([item["labels"] for item in items])
        if self.mixing is not None:
            if self.probability == 1 or torch.rand(()) < self.probability:
                images, labels = self.mixing(images, labels)
            else:
                labels = torch.nn.functional.one_hot(labels, self.classes).float()
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return {"pixel_values": images, "labels": labels}
