"""Bad input to the vision parts: data, labels, images, augmentation, models, training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image

from hf_sharp.vision.data.augmentation import AugmentationArguments
from hf_sharp.vision.data.classes import class_names
from hf_sharp.vision.data.images import StoredImages, decoded
from hf_sharp.vision.data.labels import check_labels, human_noise, symmetric_noise
from hf_sharp.vision.data.preprocessing import preprocessing_for
from hf_sharp.vision.data.sources import DataArguments, load_split, load_task
from hf_sharp.vision.models import ARCHITECTURES, build
from hf_sharp.vision.training import ClassificationLoss, OptimizationArguments
from tests.bad_inputs.cases import Cases
from tests.vision.data.test_sources import args, png, write

CLEAN = torch.arange(10)
HUMAN = "worse_label", "train", "c10n"
LARGER = "Pass e.g. image_size={}, or take a model that halves them less often."
ROW = "row 7 of 'train'"
SAME = (
    "'train.parquet' and 'test.parquet' must have the same classes in the same order, got 3 and 3, which differ in {}. "
    "Give both the same classes, or choose another test_split."
)


def task(folder: Path, train: dict[str, Any] | None = None, test: dict[str, Any] | None = None, **fields: Any) -> object:
    """A data set of two splits, loaded."""
    write(folder, "train", **{"labels": [0, 1, 2], **(train or {})})
    write(folder, "test", **{"labels": [0, 1, 2], **(test or {})})
    return load_task(args(folder, **fields))


def noisy(folder: Path) -> object:
    """A data set with human labels, of which another column is asked for."""
    (folder / "noisy").mkdir()
    datasets.Dataset.from_dict({"clean_label": [0], "worse_label": [1]}).to_parquet(folder / "noisy" / "train.parquet")
    return task(folder / "images", label_noise=str(folder / "noisy"), noise_column="better_label")


def encoded(image: Image.Image) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


CASES: Cases = [
    (
        lambda f: task(f, {"label": "kind", "names": None}, {"label": "kind", "names": None}),
        "There must be a label column, got none in 'train': img, kind. Set label_column.",
    ),
    (
        lambda f: task(f, label_column="labels"),
        "label_column must be a column of 'train', got 'labels'. Its columns are img, label.",
    ),
    (
        lambda f: task(f, image_column="image"),
        "image_column must be a column of 'train', got 'image'. Its columns are img, label.",
    ),
    (
        lambda f: task(f, {"names": None, "labels": ["x", "y"]}, {"names": None, "labels": ["x", "y"]}),
        "Labels must be class numbers, got string in column 'label' of 'train' in '{f}'. Set label_column.",
    ),
    (
        lambda f: task(f, {"names": None}, {"names": None, "labels": [0, -1]}),
        "Labels must be from 0 to 2, got -1 in column 'label', row 1 of 'test' in '{f}'. "
        "Choose a split that has labels, or another label_column.",
    ),
    (lambda f: task(f, {}, {"names": ["cat", "cow", "owl"]}), SAME.format("'cow'")),
    (lambda f: task(f, {}, {"names": ["dog", "cat", "owl"]}), SAME.format("'cat'")),
    (
        lambda f: task(f, {"labels": [0, 1, 0]}),
        "Each class of the test images must have training images, got none of 'owl'. "
        "Give both the same classes, or choose another test_split.",
    ),
    (
        lambda f: task(f, {"labels": [0, 0, 1, 1, 2]}, train_limit=2),
        "The first rows must have images of all classes, got train_limit=2 of 'train' without 'dog', 'owl'. "
        "Pass train_limit=5 or more, or shuffle the data set once.",
    ),
    (
        lambda f: task(f, {}, {"labels": [0, 0, 1, 1, 2]}, test_limit=4),
        "The first rows must have images of all classes, got test_limit=4 of 'test' without 'owl'. "
        "Pass test_limit=5 or more, or shuffle the data set once.",
    ),
    (
        lambda f: load_split(args(write(f, "test", [0, 1, 1, 2]), test_limit=2)),
        "The first rows must have images of all classes, got test_limit=2 of 'test' without 'owl'. "
        "Pass test_limit=4 or more, or shuffle the data set once.",
    ),
    (
        lambda f: task(f, {"labels": [0, None, 2]}),
        "Each row must have a label, got none in column 'label', row 1 of 'train' in '{f}'. "
        "Drop the row, or choose a split that has labels.",
    ),
    (
        lambda f: task(f, {"names": None, "labels": [0, 1, None]}, {"names": None}),
        "Each row must have a label, got none in column 'label', row 2 of 'train' in '{f}'. "
        "Drop the row, or choose a split that has labels.",
    ),
    (
        lambda f: class_names(datasets.Dataset.from_dict({"label": [[0], [1]]}), "label", "train", "birds"),
        "Labels must be class numbers, got a list in column 'label' of 'train' in 'birds'. Set label_column.",
    ),
    (
        lambda f: symmetric_noise(CLEAN, 0.4, 1, 0),
        "Symmetric noise needs at least 2 classes, got 1. Set label_noise=none.",
    ),
    (
        lambda f: AugmentationArguments(image_mean=[125, 123, 114]),
        "image_mean must be from 0 to 1, got [125, 123, 114]. Divide by 255, e.g. image_mean=[0.5, 0.5, 0.5].",
    ),
    (
        lambda f: ClassificationLoss(smoothing=-1.0),
        "label_smoothing_factor must be from 0 to 1, got -1.0. Pass e.g. 0.1.",
    ),
    (
        lambda f: build("resnet8", ["a"], {"depths": [0, 1, 1]}),
        "depths must be at least 1, got [0, 1, 1]. Leave it out for the default.",
    ),
    (
        lambda f: build("wrn28_2", ["a"], {"widen": 0}),
        "widen must be at least 1, got 0. Leave it out for the default.",
    ),
    (
        lambda f: task(f, test_split="valid"),
        "The data set has no split 'valid'. Its splits are train, test: set train_split and test_split.",
    ),
    (lambda f: task(f, {}, {"labels": []}), "A split must have images, got none in 'test'. Remove its file."),
    (
        lambda f: task(f, {"images": [png(0), {"bytes": png(3, 64)[:90], "path": "owl.png"}, png(1)]}),
        "Images must be whole and readable, got 'image file is truncated' in row 1 of 'train', file owl.png. "
        "Replace or drop it.",
    ),
    (
        lambda f: load_task(args(f / "none")),
        "dataset_name must be 'digits', an existing folder or a data set of the Hub, got '{f}/none'. "
        "Pass e.g. dataset_name='uoft-cs/cifar10'.",
    ),
    (
        lambda f: task(f, holdout=0.1),
        "holdout must leave images on both sides, got 0.1 of 3 images. Pass e.g. holdout=0.1 with more images.",
    ),
    (
        noisy,
        "noise_column must be a column of '{f}/noisy', got 'better_label'. Its columns are clean_label, worse_label.",
    ),
    (lambda f: DataArguments(train_limit=0), "train_limit must be at least 1, got 0. Pass e.g. train_limit=5000."),
    (
        lambda f: DataArguments(label_noise="symetric"),
        "label_noise must be none, symmetric, a folder or a data set of the Hub, got 'symetric'. "
        "Pass e.g. label_noise=symmetric.",
    ),
    (lambda f: DataArguments(holdout=1.0), "holdout must be from 0 to below 1, got 1.0. Pass e.g. holdout=0.1."),
    (
        lambda f: DataArguments(in_memory="yes"),
        "in_memory must be auto, always or never, got 'yes'. Pass e.g. in_memory='auto'.",
    ),
    (lambda f: DataArguments(noise_rate=1.1), "noise_rate must be from 0 to 1, got 1.1. Pass e.g. noise_rate=0.4."),
    (
        lambda f: symmetric_noise(CLEAN, -0.1, 10, 0),
        "noise_rate must be from 0 to 1, got -0.1. Pass e.g. noise_rate=0.4.",
    ),
    (
        lambda f: human_noise(CLEAN, CLEAN[:5], None, 10, *HUMAN),
        "There must be a human label for each image, got 5 in 'c10n' for 10 images. "
        "Use the training split of the data set that they were collected for.",
    ),
    (
        lambda f: human_noise(CLEAN, CLEAN, CLEAN.flip(0), 10, *HUMAN),
        "Human labels must be in the order of the images, got the true label 9 in row 0 of 'train' in 'c10n', where the "
        "data set has 0. "
        "Use the original order of the training split.",
    ),
    (
        lambda f: human_noise(CLEAN, CLEAN + 1, None, 10, *HUMAN),
        "Labels must be from 0 to 9, got 10 in column 'worse_label', row 9 of 'train' in 'c10n'. "
        "Choose a split that has labels, or another label_column.",
    ),
    (
        lambda f: check_labels(torch.tensor([0, 9, -1]), 10, "label", "test", "birds"),
        "Labels must be from 0 to 9, got -1 in column 'label', row 2 of 'test' in 'birds'. "
        "Choose a split that has labels, or another label_column.",
    ),
    (
        lambda f: decoded({"bytes": b"no image", "path": "cat.jpg"}, ROW),
        f"Images must be whole and readable, got 'an unknown format' in {ROW}, file cat.jpg. Replace or drop it.",
    ),
    (
        lambda f: decoded({"bytes": encoded(Image.new("I;16", (4, 4))), "path": None}, ROW),
        f"Images must have 8 bits per channel, got mode 'I;16' in {ROW}. Convert it to RGB.",
    ),
    (lambda f: decoded(None, ROW), f"Each row must have an image, got none in {ROW}. Drop the row."),
    (
        lambda f: decoded({"bytes": None, "path": None}, ROW),
        f"Each row must have an image, got none in {ROW}. Drop the row.",
    ),
    (
        lambda f: AugmentationArguments(augmentation=["basics"]),
        "Unknown augmentation 'basics'. Did you mean 'basic'? "
        "Choose from none, basic, resize, inception, cutout, randaugment, autoaugment, mixup, cutmix.",
    ),
    (
        lambda f: AugmentationArguments(augmentation=["basic", "resize"]),
        "augmentation must have at most one of basic, resize, inception, got basic resize. Leave all but one out.",
    ),
    (
        lambda f: AugmentationArguments(augmentation=["none", "cutout"]),
        "augmentation 'none' must stand alone, got none cutout. Leave it out.",
    ),
    (
        lambda f: AugmentationArguments(mixup_alpha=0.0),
        "mixup_alpha must be > 0, got 0.0. Pass e.g. mixup_alpha=0.2.",
    ),
    (
        lambda f: AugmentationArguments(mix_probability=2.0),
        "mix_probability must be from 0 to 1, got 2.0. Pass e.g. 0.5.",
    ),
    (
        lambda f: AugmentationArguments(image_mean=[0.5]),
        "image_mean must have three numbers, got [0.5]. Pass e.g. image_mean=[0.5, 0.5, 0.5].",
    ),
    (
        lambda f: AugmentationArguments(image_std=[0.5, 0.0, 0.5]),
        "image_std must be > 0, got [0.5, 0.0, 0.5]. Pass e.g. image_std=[0.5, 0.5, 0.5].",
    ),
    (
        lambda f: AugmentationArguments(image_size=0),
        "image_size must be a whole number >= 1, got 0. Pass e.g. image_size=2.",
    ),
    (
        lambda f: AugmentationArguments(randaugment_magnitude=31),
        "randaugment_magnitude must be from 0 to 30, got 31. Pass e.g. randaugment_magnitude=9.",
    ),
    (
        lambda f: preprocessing_for(AugmentationArguments(), StoredImages(torch.zeros(2, 3, 8, 6, dtype=torch.uint8))),
        "image_size must be given where images are not square, got a first image of 8x6 pixels. Pass e.g. image_size=224.",
    ),
    (
        lambda f: build("resnet19", ["a"]),
        f"Unknown model 'resnet19'. Did you mean 'resnet18'? Choose from {', '.join(ARCHITECTURES)}; 'timm:NAME'; a model "
        "type of transformers, e.g. 'vit'; a folder, or a model of the Hub such as 'microsoft/resnet-50'.",
    ),
    (
        lambda f: build(str(f / "none"), ["a"]),
        "A checkpoint must be a folder or a model of the Hub, got '{f}/none', which cannot be loaded. "
        "Check the path or the name.",
    ),
    (
        lambda f: build("resnet18", ["a"], {"width": [1]}),
        "The model 'resnet18' has no field 'width'. Did you mean 'widths'?",
    ),
    (
        lambda f: build("resnet18", ["a"], {"stem_width": "64"}),
        "stem_width must be a number, got '64'. Pass e.g. stem_width=64.",
    ),
    (
        lambda f: build("vit", ["a"], {"hidden_size": [64]}),
        "The fields of 'vit' must be of their types: Field 'hidden_size' expected int, got list (value: [64]). "
        "Correct model_args.",
    ),
    (
        lambda f: build("resnet18", ["a"], {"block": "b"}),
        "block must be 'basic' or 'bottleneck', got 'b'. Pass e.g. block='basic'.",
    ),
    (
        lambda f: build("resnet18", ["a"], {"shortcut": "b"}),
        "shortcut must be 'projection' or 'pad', got 'b'. Pass e.g. shortcut='pad'.",
    ),
    (
        lambda f: build("resnet18", ["a"], {"depths": [2, 2]}),
        "depths and widths must have one entry per stage, got 2 and 4. Pass e.g. depths=(3, 3, 3), widths=(16, 32, 64).",
    ),
    (
        lambda f: build("wrn28_10", ["a"], {"depth": 27}),
        "depth must be 6 n + 4 with n >= 1, got 27. Pass e.g. depth=28.",
    ),
    (
        lambda f: build("pyramidnet110", ["a"], {"depth": 111}),
        "depth must be 6 n + 2 with n >= 1, got 111. Pass e.g. depth=74.",
    ),
    (
        lambda f: build("pyramidnet110", ["a"], {"drop": 1.5}),
        "drop must be from 0 to 1, got 1.5. Pass e.g. drop=0.5.",
    ),
    (
        lambda f: build("pyramidnet110", ["a"], {"alpha": -20}),
        "alpha must be >= 0, got -20. Pass e.g. alpha=48.",
    ),
    (
        lambda f: build("wrn28_2", ["a"], {"dropout": 2.0}),
        "dropout must be from 0 to 1, got 2.0. Pass e.g. dropout=0.3.",
    ),
    (
        lambda f: build("resnext29_32x4d", ["a"], {"groups": 3}),
        "groups must divide the channels of the 3x3 convolutions, got 3 and [128, 256, 512]. Pass e.g. groups=1.",
    ),
    (
        lambda f: build("resnet8", ["a"], {"stem_width": 8, "groups": 16}),
        "groups must divide the channels of the 3x3 convolutions, got 16 and [8, 16, 32, 64]. Pass e.g. groups=1.",
    ),
    (
        lambda f: build("resnet8", ["a"], {"stem_stride": 0}),
        "stem_stride must be at least 1, got 0. Leave it out for the default.",
    ),
    (
        lambda f: build("vgg19_bn", ["a"], {"depths": [1, 1]}),
        "depths and widths must have one entry per stage, got 2 and 5. Pass e.g. depths=(1, 1, 2), widths=(64, 128, 256).",
    ),
    (
        lambda f: build("vgg19_bn", ["a"], {"depths": [0, 1, 1, 1, 1]}),
        "depths must be at least 1, got [0, 1, 1, 1, 1]. Leave it out for the default.",
    ),
    (
        lambda f: build("vgg19_bn", ["a"], {"widths": [4, 4, 4, 4, 0]}),
        "widths must be at least 1, got [4, 4, 4, 4, 0]. Leave it out for the default.",
    ),
    (
        lambda f: build("vgg19_bn", ["a"], {"widths": [1] * 5})(torch.zeros(2, 3, 8, 8)),
        f"Images must have at least 32x32 pixels for this model, got 8x8. {LARGER.format(32)}",
    ),
    (
        lambda f: build("densenet121", ["a"], {"growth": 4, "depths": [1, 1, 1, 1]})(torch.zeros(2, 3, 9, 7)),
        f"Images must have at least 8x8 pixels for this model, got 9x7. {LARGER.format(8)}",
    ),
    (
        lambda f: build("densenet121", ["a"], {"growth": 4, "depths": [1] * 4, "stem": "imagenet"})(
            torch.zeros(2, 3, 28, 28)
        ),
        f"Images must have at least 29x29 pixels for this model, got 28x28. {LARGER.format(29)}",
    ),
    (
        lambda f: build("densenet121", ["a"], {"stem": "x"}),
        "stem must be 'cifar' or 'imagenet', got 'x'. Pass e.g. stem='cifar'.",
    ),
    (
        lambda f: OptimizationArguments(loss="model").check_mixing(True),
        "mixup and cutmix need a loss that takes probabilities, got loss='model', which takes class numbers. "
        "Set loss='cross_entropy'.",
    ),
    (
        lambda f: OptimizationArguments(loss="mse"),
        "loss must be one of cross_entropy, sigmoid, model, got 'mse'. Pass e.g. cross_entropy.",
    ),
    (
        lambda f: OptimizationArguments(base_optimizer="lamb"),
        "base_optimizer must be one of sgd, nesterov, rmsprop, adam, adamw, got 'lamb'. Pass e.g. sgd.",
    ),
    (
        lambda f: OptimizationArguments(momentum=1.0),
        "momentum must be from 0 to below 1, got 1.0. Pass e.g. momentum=0.9.",
    ),
]
