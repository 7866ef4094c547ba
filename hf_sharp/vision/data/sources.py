"""Data sets of images by their name on the Hub, a local folder, or scikit-learn's digits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_sharp.vision.data.classes import check_files, check_first, check_same_names, check_trained, class_names
from hf_sharp.vision.data.images import AbstractImages, EncodedImages
from hf_sharp.vision.data.labels import check_labels, check_rate, check_whole, human_noise, symmetric_noise
from hf_sharp.vision.data.splits import ImageTask, Split, digits

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_TEST_SPLITS = ("test", "validation", "valid", "val")
_SMALL = 128 * 128
_STORED_AT_MOST = 4 << 30


@dataclass(frozen=True)
class DataArguments:
    """Which images to train and test on."""

    dataset_name: str = field(
        default="digits", metadata={"help": "A data set of the Hub, a local folder, or 'digits' of scikit-learn."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The Hub data set's configuration."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the only column with images."})
    label_column: str | None = field(default=None, metadata={"help": "Default: label, labels, fine_label or class."})
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    test_split: str | None = field(default=None, metadata={"help": "Default: test, or else validation."})
    train_limit: int | None = field(default=None, metadata={"help": "Train on this many images only, the first ones."})
    test_limit: int | None = field(default=None, metadata={"help": "Test on this many images only, the first ones."})
    holdout: float = field(
        default=0.0, metadata={"help": "Hold out this share of the training images, and test on it instead."}
    )
    label_noise: str = field(
        default="none",
        metadata={"help": "none, symmetric, or a data set with human labels of the training split (CIFAR-10N)."},
    )
    noise_rate: float = field(default=0.4, metadata={"help": "The share of wrong labels under symmetric noise."})
    noise_seed: int = field(default=0, metadata={"help": "Decides which labels are wrong, and which images are held out."})
    noise_column: str = field(default="worse_label", metadata={"help": "The column with the human labels."})
    in_memory: str = field(
        default="auto",
        metadata={"help": "always: decode all images once; never: each time; auto: always if they are small."},
    )

    def __post_init__(self) -> None:
        for name, value in (("train_limit", self.train_limit), ("test_limit", self.test_limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}. Pass e.g. {name}=5000.")
        check_rate(self.noise_rate)
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be from 0 to below 1, got {self.holdout}. Pass e.g. holdout=0.1.")
        named = self.label_noise in ("none", "symmetric")
        if not named and "/" not in self.label_noise and not Path(self.label_noise).is_dir():
            raise ValueError(
                f"label_noise must be none, symmetric, a folder or a data set of the Hub, got {self.label_noise!r}. "
                "Pass e.g. label_noise=symmetric."
            )
        if self.in_memory not in ("auto", "always", "never"):
            raise ValueError(f"in_memory must be auto, always or never, got {self.in_memory!r}. Pass e.g. in_memory='auto'.")


def load_task(args: DataArguments) -> ImageTask:
    """The task that the arguments describe; only its training labels are noisy.

    Raises:
        ValueError: a split, column, label or image is missing or wrong.
    """
    task = digits(args.train_limit, args.test_limit) if args.dataset_name == "digits" else _from_datasets(args)
    train, test = replace(task.train, labels=_noisy(task.train.labels, len(task.classes), args)), task.test
    if args.holdout:
        kept, out = _held_out(len(train.labels), args)
        train, test = train.chosen(kept), replace(task.train.chosen(out), name="holdout")
    return ImageTask(train, test, task.classes)


def load_split(args: DataArguments) -> tuple[Split, list[str]]:
    """The test split as it is, and its classes; where the data set has a single split, that one.

    Raises:
        ValueError: as `load_task`.
    """
    if args.dataset_name == "digits":
        task = digits(args.train_limit, args.test_limit)
        return task.test, task.classes
    loaded = _loaded(args)
    name = args.test_split or (next(iter(loaded)) if len(loaded) == 1 else _test_name(loaded))
    rows = _rows(loaded, name)
    image, label = _columns(rows, args, name)
    classes = class_names(rows, label, name, args.dataset_name)
    split = _split(rows, image, label, name, args, args.test_limit)
    check_labels(split.labels, len(classes), label, name, args.dataset_name)
    check_first(_numbers(rows, label, name, args.dataset_name), args.test_limit, classes, name, "test_limit")
    return split, classes


def _from_datasets(args: DataArguments) -> ImageTask:
    from datasets import ClassLabel

    loaded, dataset = _loaded(args), args.dataset_name
    test_name = args.test_split or _test_name(loaded)
    if args.holdout and test_name not in loaded:
        test_name = args.train_split
    train, test = _rows(loaded, args.train_split), _rows(loaded, test_name)
    image, label = _columns(train, args, args.train_split)
    if test.column_names != train.column_names:
        _columns(test, replace(args, image_column=image, label_column=label), test_name)
    classes = class_names(train, label, args.train_split, dataset)
    if isinstance(test.features[label], ClassLabel):
        check_same_names(class_names(test, label, test_name, dataset), test_name, classes, args.train_split)
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        check_files(folder, label)
    limits = {"train_limit": (train, args.train_split, args.train_limit), "test_limit": (test, test_name, args.test_limit)}
    for key, (rows, split, limit) in limits.items():
        numbers = _numbers(rows, label, split, dataset)
        check_labels(numbers, len(classes), label, split, dataset)
        check_first(numbers, limit, classes, split, key)
    check_trained(_numbers(train, label, args.train_split, dataset), _numbers(test, label, test_name, dataset), classes)
    return ImageTask(
        _split(train, image, label, args.train_split, args, args.train_limit),
        _split(test, image, label, test_name, args, args.test_limit),
        classes,
    )


def _loaded(args: DataArguments) -> DatasetDict:
    from datasets import load_dataset

    if args.dataset_name.startswith((".", "/", "~")) and not Path(args.dataset_name).expanduser().is_dir():
        raise ValueError(
            f"dataset_name must be 'digits', an existing folder or a data set of the Hub, got {args.dataset_name!r}. "
            "Pass e.g. dataset_name='uoft-cs/cifar10'."
        )
    name = str(Path(args.dataset_name).expanduser()) if args.dataset_name.startswith("~") else args.dataset_name
    try:
        return load_dataset(name, args.dataset_config)
    except ValueError as error:
        empty = re.search(r'Instruction "(.+)" corresponds to no data', str(error))
        if empty is None:
            raise
        raise ValueError(f"A split must have images, got none in {empty[1]!r}. Remove its file.") from error


def _test_name(loaded: DatasetDict) -> str:
    return next((name for name in _TEST_SPLITS if name in loaded), "test")


def _rows(loaded: DatasetDict, split: str) -> Dataset:
    if split not in loaded:
        listed = ", ".join(loaded)
        raise ValueError(f"The data set has no split {split!r}. Its splits are {listed}: set train_split and test_split.")
    if not len(loaded[split]):
        raise ValueError(f"A split must have images, got none in {split!r}. Choose another one of {', '.join(loaded)}.")
    return loaded[split]


def _columns(rows: Dataset, args: DataArguments, split: str) -> tuple[str, str]:
    """The image column and the label column."""
    from datasets import ClassLabel, Image

    listed = ", ".join(rows.column_names)
    for name, value in (("image_column", args.image_column), ("label_column", args.label_column)):
        if value is not None and value not in rows.column_names:
            raise ValueError(f"{name} must be a column of {split!r}, got {value!r}. Its columns are {listed}.")
    images = [args.image_column or name for name, kind in rows.features.items() if isinstance(kind, Image)]
    if not images or (len(images) > 1 and args.image_column is None):
        raise ValueError(
            f"There must be one column with images, got {len(images)} in {split!r}: {listed}. Set image_column."
        )
    named = [name for name in _LABEL_COLUMNS if name in rows.column_names]
    labels = named or [name for name, kind in rows.features.items() if isinstance(kind, ClassLabel)]
    if args.label_column is None and not labels:
        raise ValueError(f"There must be a label column, got none in {split!r}: {listed}. Set label_column.")
    return images[0], args.label_column or labels[0]


def _split(rows: Dataset, image: str, label: str, name: str, args: DataArguments, limit: int | None) -> Split:
    from datasets import Image

    rows = rows.select(range(min(limit or len(rows), len(rows))))
    images: AbstractImages = EncodedImages(rows.select_columns([image]).cast_column(image, Image(decode=False)), image, name)
    assert isinstance(images, EncodedImages)
    if args.in_memory == "always" or (args.in_memory == "auto" and _are_small(images)):
        images = images.stored()
    return Split(images, _numbers(rows, label, name, args.dataset_name), name)


def _numbers(rows: Dataset, column: str, split: str, dataset: str) -> Tensor:
    labels = rows[column][:]
    check_whole(labels, column, split, dataset)
    return torch.tensor(labels, dtype=torch.long)


def _are_small(images: AbstractImages) -> bool:
    first = images[0]
    return first[0].numel() <= _SMALL and first.numel() * len(images) <= _STORED_AT_MOST


def _noisy(labels: Tensor, classes: int, args: DataArguments) -> Tensor:
    if args.label_noise == "none":
        return labels
    if args.label_noise == "symmetric":
        return symmetric_noise(labels, args.noise_rate, classes, args.noise_seed)
    rows = _rows(_loaded(replace(args, dataset_name=args.label_noise, dataset_config=None)), "train")
    if args.noise_column not in rows.column_names:
        listed = ", ".join(rows.column_names)
        raise ValueError(
            f"noise_column must be a column of {args.label_noise!r}, got {args.noise_column!r}. Its columns are {listed}."
        )
    where = "train", args.label_noise
    clean = _numbers(rows, "clean_label", *where) if "clean_label" in rows.column_names else None
    human = _numbers(rows, args.noise_column, *where)
    return human_noise(labels, human, clean, classes, args.noise_column, *where)


def _held_out(images: int, args: DataArguments) -> tuple[list[int], list[int]]:
    """The rows of the training images that are kept, and of those that are held out; drawn by the seed."""
    number = round(args.holdout * images)
    if not 0 < number < images:
        raise ValueError(
            f"holdout must leave images on both sides, got {args.holdout} of {images} images. "
            "Pass e.g. holdout=0.1 with more images."
        )
    order = torch.randperm(images, generator=torch.Generator().manual_seed(args.noise_seed)).tolist()
    return sorted(order[number:]), sorted(order[:number])
