"""Accuracy of ImageNet classifiers on ImageNet's variants: -C, -R, -V2 and -ReaL."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from statistics import mean

import torch
from torch import Tensor

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error per corruption, mean over the five severities (Hendrycks and Dietterich, 2019)."""


def corruption_scores(accuracies: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """ImageNet-C in one number, two ways.

    ``accuracy`` is the mean top-1 accuracy over corruptions and severities, as the papers on sharpness report it; ``mce``
    the mean corruption error, each corruption's mean error in ratio to AlexNet's.

    Args:
        accuracies: corruption (a key of `ALEXNET_ERRORS`) to the top-1 accuracies of its severities, from 0 to 1.

    Raises:
        ValueError: a corruption is missing or unknown, or has not five severities.
    """
    for name in [*ALEXNET_ERRORS, *accuracies]:
        if name not in ALEXNET_ERRORS or name not in accuracies:
            what = "unknown" if name not in ALEXNET_ERRORS else "missing"
            raise ValueError(f"ImageNet-C needs its 15 corruptions, {name!r} is {what}. Give {', '.join(ALEXNET_ERRORS)}.")
        if len(accuracies[name]) != 5:
            raise ValueError(f"Each corruption must have 5 severities, got {len(accuracies[name])} for {name!r}. Give all.")
    ratios = [(1 - mean(values)) / ALEXNET_ERRORS[name] for name, values in accuracies.items()]
    return {"accuracy": mean(mean(values) for values in accuracies.values()), "mce": mean(ratios)}


def masked(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits (images, all classes) of these classes alone (images, classes), so that no other one can be predicted."""
    return logits[:, torch.as_tensor(list(classes), device=logits.device)]


def multi_label_accuracy(logits: Tensor, labels: Sequence[Sequence[int]]) -> float:
    """The share of images whose largest logit is one of their labels (Beyer et al., 2020), among those that have any.

    Args:
        logits: (images, classes).
        labels: class numbers per image, none or several.

    Raises:
        ValueError: the numbers of images differ, or no image has a label.
    """
    if len(logits) != len(labels):
        raise ValueError(
            f"There must be labels for each image, got {len(labels)} for {len(logits)} images. Give one list each."
        )
    predicted = logits.argmax(1).tolist()
    hits = [float(best in some) for best, some in zip(predicted, labels, strict=True) if some]
    if not hits:
        raise ValueError("Some images must have labels, got none. Check the file of labels.")
    return mean(hits)


def synsets(name: str = "imagenet") -> list[str]:
    """The WordNet numbers of a set's classes in order: ``"imagenet"`` (1000) or ``"imagenet_r"`` (200); timm has them."""
    return _info(f"{name}_synsets.txt").split()


def real_labels() -> list[list[int]]:
    """The ReaL labels of the 50,000 validation images, in the order of their file names; timm has them."""
    return json.loads(_info("imagenet_real_labels.json"))


def validation_number(path: str) -> int:
    """Which validation image a file is, from 0.

    Raises:
        ValueError: the name is not one of ImageNet's.

    >>> validation_number("val/ILSVRC2012_val_00000293.JPEG")
    292
    """
    found = re.search(r"ILSVRC2012_val_(\d{8})", path)
    if found is None:
        raise ValueError(
            f"ReaL needs ImageNet's file names, got {path!r}. Use the validation split with names such as "
            "'ILSVRC2012_val_00000293.JPEG'."
        )
    number = int(found.group(1))
    if not 1 <= number <= 50_000:
        raise ValueError(f"ImageNet's validation images have the numbers 1 to 50000, got {path!r}. Remove the file.")
    return number - 1


def class_numbers(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Which of a model's classes each class of a data set is.

    Args:
        names: the data set's classes: names that the model knows, WordNet numbers, or class numbers (ImageNet-V2).
        known: the model's classes in order.

    Raises:
        ValueError: a name is none of these.

    >>> class_numbers(["10", "9"], [f"class {i}" for i in range(1000)])
    [10, 9]
    """
    if set(names) <= set(known):
        return [list(known).index(name) for name in names]
    if len(known) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names):
        order = {name: i for i, name in enumerate(synsets())}
        if set(names) <= order.keys():
            return [order[name] for name in names]
    if all(name.isdigit() and int(name) < len(known) for name in names):
        return [int(name) for name in names]
    numbered = all(name.isdigit() for name in names)
    stranger = next(name for name in names if (int(name) >= len(known) if numbered else name not in known))
    raise ValueError(
        f"The data set's classes must be the model's, got {stranger!r}. Use a data set with the classes of the training set."
    )


def _info(file: str) -> str:
    return (files("timm.data") / "_info" / file).read_text(encoding="utf-8")
