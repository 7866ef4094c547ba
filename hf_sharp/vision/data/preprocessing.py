"""What a model needs done to an image, whether it trains or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2
from transformers import BaseImageProcessor, BitImageProcessor

from hf_sharp.vision.data.augmentation import AugmentationArguments
from hf_sharp.vision.data.images import AbstractImages
from hf_sharp.vision.data.processing import model_size, normalisation

_SAMPLE = 5000


@dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of the images that a model sees.

    Args:
        size: height and width.
        mean: per channel, from 0 to 1.
        std: per channel, > 0.
        resize: the length to which the shorter side of test images is resized before the centre is cut out; None resizes
            them to ``size`` whatever their shape.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean colour, from 0 to 255."""
        return tuple(round(255 * x) for x in self.mean)

    def test_transform(self) -> v2.Transform:
        """What happens to a test image (3, height, width) of type uint8, which stays one."""
        if self.resize is None:
            return v2.Resize((self.size, self.size), antialias=True)
        return v2.Compose([v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)])

    def normalised(self, images: Tensor) -> Tensor:
        """Images (batch, 3, height, width) from uint8 to float, with mean 0 and standard deviation 1 per channel."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)

    def processor(self) -> BitImageProcessor:
        """The same as an image processor, which is saved beside a model and read by ``pipeline``."""
        square = {"height": self.size, "width": self.size}
        return BitImageProcessor(
            size=square if self.resize is None else {"shortest_edge": self.resize},
            do_center_crop=self.resize is not None,
            crop_size=square,
            image_mean=list(self.mean),
            image_std=list(self.std),
            resample=2,  # bilinear, as `test_transform`; the class's own default is bicubic
        )


def preprocessing_for(
    args: AugmentationArguments, images: AbstractImages, processor: BaseImageProcessor | None = None
) -> Preprocessing:
    """What the arguments say, then what a checkpoint's processor says, and the training images where neither does.

    Args:
        args: size, mean and standard deviation, where they are given.
        images: the training images.
        processor: that of the checkpoint that is fine-tuned.

    Raises:
        ValueError: the first image is not square, and no size is given.
    """
    size, mean, std = args.image_size, args.image_mean, args.image_std
    if processor is not None:
        size = size or model_size(processor)
        found = normalisation(processor)
        mean, std = mean or list(found[0]), std or list(found[1])
    if size is None:
        height, width = images[0].shape[1:]
        if height != width:
            raise ValueError(
                f"image_size must be given where images are not square, got a first image of {height}x{width} pixels. "
                "Pass e.g. image_size=224."
            )
        size = height
    if mean is None or std is None:
        found = moments(images)
        mean, std = list(mean or found[0]), list(std or found[1])
    resize = round(size * 256 / 224) if "inception" in args.augmentation else None
    return Preprocessing(size, tuple(mean), tuple(std), resize)


def moments(images: AbstractImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, from 0 to 1, over the first 5000 images."""
    total, square, count = torch.zeros(3, dtype=torch.double), torch.zeros(3, dtype=torch.double), 0
    for i in range(min(len(images), _SAMPLE)):
        x = images[i].double().div_(255)
        total, square, count = total + x.sum((1, 2)), square + x.square().sum((1, 2)), count + x[0].numel()
    mean = total / count
    return _rounded(mean), _rounded((square / count - mean.square()).clamp(min=1e-4).sqrt())


def _rounded(values: Sequence[float] | Tensor) -> tuple[float, ...]:
    return tuple(round(float(x), 4) for x in values)
