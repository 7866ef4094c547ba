"""What a checkpoint's own image processor does to test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import normalize, to_pil_image
from transformers import BaseImageProcessor

from hf_sharp.vision.data.splits import Split


@dataclass(frozen=True)
class ProcessedImages:
    """Test images as a checkpoint's processor makes them, with their labels: the items of a data loader.

    Args:
        split: the images and labels.
        processor: the checkpoint's.
        ready: whether images that already have the model's size stay as they are: a benchmark such as ImageNet-C comes cut
            out, and its protocol resizes nothing.
    """

    split: Split
    processor: BaseImageProcessor
    ready: bool = False

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = self.split.images[i]
        size = model_size(self.processor)
        stays = self.ready and tuple(image.shape[1:]) == (size, size)
        return {"pixel_values": self._normalised(image) if stays else self._processed(image)}

    def _processed(self, image: Tensor) -> Tensor:
        return self.processor(_picture(image), return_tensors="pt")["pixel_values"][0]

    def _normalised(self, image: Tensor) -> Tensor:
        timm = self.processor.to_dict().get("data_config")
        if timm is not None:
            return normalize(image.float() / 255, timm["mean"], timm["std"])
        made = self.processor(_picture(image), do_resize=False, do_center_crop=False, return_tensors="pt")
        return made["pixel_values"][0]


def model_size(processor: BaseImageProcessor) -> int | None:
    """Height and width of the images that a processor makes; None where it does not say, or they are not square."""
    said = processor.to_dict()
    if "data_config" in said:  # timm's
        return int(said["data_config"]["input_size"][-1])
    asked = (said.get("crop_size") if said.get("do_center_crop") else None) or said.get("size") or {}
    if asked.get("height") is not None:
        return int(asked["height"]) if asked["height"] == asked.get("width") else None
    return int(asked["shortest_edge"]) if "shortest_edge" in asked else None


def normalisation(processor: BaseImageProcessor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, from 0 to 1, that a processor normalises images by.

    They are found from what it makes of a black and of a white image, so whatever scales or shifts counts.
    """
    size = model_size(processor) or 224
    black, white = (
        processor(_picture(torch.full((3, size, size), x, dtype=torch.uint8)), return_tensors="pt")["pixel_values"][0]
        for x in (0, 255)
    )
    low, high = black.double().mean((1, 2)), white.double().mean((1, 2))
    std = 1 / (high - low)
    return tuple(round(float(x), 6) for x in -low * std), tuple(round(float(x), 6) for x in std)


def _picture(image: Tensor) -> Any:
    return to_pil_image(image)
