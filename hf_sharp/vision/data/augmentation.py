"""Augmentation by name, from torchvision's transforms."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2

from hf_sharp.methods.checks import whole

GEOMETRIES = ("basic", "resize", "inception")
EXTRAS = ("cutout", "randaugment", "autoaugment")
MIXES = ("mixup", "cutmix")


@dataclass(frozen=True)
class AugmentationArguments:
    """How training images are changed at random; test images are not."""

    augmentation: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={
            "help": "Any of: basic (flip, pad 4, crop), resize (another size, then basic), inception (random resized crop, "
            "flip), cutout, randaugment, autoaugment, mixup, cutmix; or none."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width that the model sees. Default: the checkpoint's, or the first image's."},
    )
    cutout_size: int = field(default=16, metadata={"help": "Side of cutout's square in pixels."})
    randaugment_ops: int = field(default=2, metadata={"help": "How many operations RandAugment applies."})
    randaugment_magnitude: int = field(default=9, metadata={"help": "How strong they are, from 0 to 30."})
    mixup_alpha: float = field(default=0.2, metadata={"help": "Mixup draws its share from Beta(alpha, alpha)."})
    cutmix_alpha: float = field(default=1.0, metadata={"help": "CutMix draws its share from Beta(alpha, alpha)."})
    mix_probability: float = field(default=1.0, metadata={"help": "The share of batches that mixup or CutMix changes."})
    image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "The channels' means, from 0 to 1. Default: the checkpoint's, or the training images' own."},
    )
    image_std: list[float] | None = field(default=None, metadata={"help": "The channels' standard deviations."})

    def __post_init__(self) -> None:
        choices = ("none", *GEOMETRIES, *EXTRAS, *MIXES)
        for name in self.augmentation:
            if name not in choices:
                near = get_close_matches(name, choices, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"Unknown augmentation {name!r}.{hint} Choose from {', '.join(choices)}.")
        if sum(name in GEOMETRIES for name in self.augmentation) > 1:
            raise ValueError(
                f"augmentation must have at most one of {', '.join(GEOMETRIES)}, got {' '.join(self.augmentation)}. "
                "Leave all but one out."
            )
        if "none" in self.augmentation and len(self.augmentation) > 1:
            raise ValueError(f"augmentation 'none' must stand alone, got {' '.join(self.augmentation)}. Leave it out.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.image_size is not None:
            whole(1, "image_size", self.image_size)
        whole(1, "cutout_size", self.cutout_size)
        whole(0, "randaugment_ops", self.randaugment_ops)
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(
                f"randaugment_magnitude must be from 0 to 30, got {self.randaugment_magnitude}. "
                "Pass e.g. randaugment_magnitude=9."
            )
        for key, alpha in (("mixup_alpha", self.mixup_alpha), ("cutmix_alpha", self.cutmix_alpha)):
            if alpha <= 0:
                raise ValueError(f"{key} must be > 0, got {alpha}. Pass e.g. {key}=0.2.")
        if not 0 <= self.mix_probability <= 1:
            raise ValueError(f"mix_probability must be from 0 to 1, got {self.mix_probability}. Pass e.g. 0.5.")
        for key, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if values is not None and len(values) != 3:
                raise ValueError(f"{key} must have three numbers, got {values}. Pass e.g. {key}=[0.5, 0.5, 0.5].")
        if self.image_mean is not None and not all(0 <= x <= 1 for x in self.image_mean):
            raise ValueError(
                f"image_mean must be from 0 to 1, got {self.image_mean}. Divide by 255, e.g. image_mean=[0.5, 0.5, 0.5]."
            )
        if self.image_std is not None and min(self.image_std) <= 0:
            raise ValueError(f"image_std must be > 0, got {self.image_std}. Pass e.g. image_std=[0.5, 0.5, 0.5].")

    @property
    def mixes(self) -> bool:
        """Whether labels become probabilities."""
        return any(name in MIXES for name in self.augmentation)


class Cutout(v2.Transform):
    """A square of one colour with its centre anywhere in the image, cut off at the edges (DeVries and Taylor, 2017).

    Args:
        size: its side in pixels.
        fill: its colour, from 0 to 255; the mean colour, since it becomes 0 by normalisation.
    """

    def __init__(self, size: int, fill: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self._fill = torch.tensor(fill, dtype=torch.uint8).view(-1, 1, 1)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        half = self.size // 2
        return {
            "rows": slice(max(0, y - half), y - half + self.size),
            "columns": slice(max(0, x - half), x - half + self.size),
        }

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        image = inpt.clone()
        image[..., params["rows"], params["columns"]] = self._fill
        return image


def training_transform(args: AugmentationArguments, size: int, fill: tuple[int, ...]) -> v2.Transform:
    """What happens to a training image (3, height, width) of type uint8, which stays one.

    Args:
        args: the settings.
        size: height and width of the result.
        fill: the mean colour, from 0 to 255.
    """
    steps: list[v2.Transform] = []
    if "inception" in args.augmentation:
        steps += [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    else:
        steps.append(v2.Resize((size, size), antialias=True))
    if "resize" in args.augmentation:  # the ASAM paper gives no range; an eighth to either side is ours
        steps.append(v2.RandomResize(size - size // 8, size + size // 8 + 1, antialias=True))
    if "resize" in args.augmentation or "basic" in args.augmentation:
        steps += [v2.RandomHorizontalFlip(), v2.RandomCrop(size, padding=4, pad_if_needed=True)]
    if "randaugment" in args.augmentation:
        steps.append(v2.RandAugment(args.randaugment_ops, args.randaugment_magnitude))
    if "autoaugment" in args.augmentation:
        policy = AutoAugmentPolicy.CIFAR10 if size <= 64 else AutoAugmentPolicy.IMAGENET
        steps.append(v2.AutoAugment(policy))
    if "cutout" in args.augmentation:
        steps.append(Cutout(args.cutout_size, fill))
    return v2.Compose(steps)


def mixing(args: AugmentationArguments, classes: int) -> v2.Transform | None:
    """What happens to a batch of images (batch, 3, height, width) and labels (batch), whose labels become probabilities
    (batch, classes); None where nothing is mixed.
    """
    kinds: list[Any] = []
    if "mixup" in args.augmentation:
        kinds.append(v2.MixUp(alpha=args.mixup_alpha, num_classes=classes))
    if "cutmix" in args.augmentation:
        kinds.append(v2.CutMix(alpha=args.cutmix_alpha, num_classes=classes))
    if not kinds:
        return None
    return kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
