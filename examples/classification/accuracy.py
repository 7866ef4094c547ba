"""Measure a trained classifier: accuracy, cross-entropy and calibration; on ImageNet's variants, too.

    python examples/classification/accuracy.py runs/cifar10/sam --dataset_name uoft-cs/cifar10 --test_split test
    python examples/classification/accuracy.py runs/imagenet/sam --dataset_name data/imagenet-r --variant r
    python examples/classification/accuracy.py runs/imagenet/sam --dataset_name data/imagenet-c --variant c

Variants: ``c`` (a folder with one folder per corruption, and in each ``1`` to ``5`` with the classes' folders), ``r`` (only
its 200 classes can be predicted), ``v2`` (folders named by class number) and ``real`` (ImageNet's validation images, by
their file names).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    HfArgumentParser,
    PreTrainedModel,
)

import hf_sharp.vision.models  # noqa: F401 - the Auto classes learn of the package's models
from hf_sharp.checkpoints import found
from hf_sharp.evaluation.accuracy import classification_metrics, top_k
from hf_sharp.evaluation.robustness import (
    ALEXNET_ERRORS,
    class_numbers,
    corruption_scores,
    masked,
    multi_label_accuracy,
    real_labels,
    validation_number,
)
from hf_sharp.methods.checks import whole
from hf_sharp.vision.data.images import EncodedImages
from hf_sharp.vision.data.processing import ProcessedImages
from hf_sharp.vision.data.sources import DataArguments, load_split
from hf_sharp.vision.data.splits import Split


@dataclass(frozen=True)
class AccuracyArguments:
    """How to measure."""

    variant: str = field(default="plain", metadata={"help": "plain, or ImageNet's c, r, v2 or real."})
    batch_size: int = field(default=250, metadata={"help": "Images at a time."})
    workers: int = field(default=0, metadata={"help": "Processes that decode images."})
    output_file: str | None = field(default=None, metadata={"help": "A JSON file for the result."})

    def __post_init__(self) -> None:
        if self.variant not in ("plain", "c", "r", "v2", "real"):
            raise ValueError(f"variant must be plain, c, r, v2 or real, got {self.variant!r}. Pass e.g. --variant plain.")
        whole(1, "batch_size", self.batch_size)
        whole(0, "workers", self.workers)
        if self.output_file is not None and not Path(self.output_file).parent.is_dir():
            raise ValueError(f"output_file must be in an existing folder, got {self.output_file!r}. Make the folder first.")


@dataclass(frozen=True)
class Classifier:
    """A trained model with its own image processor."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    device: torch.device

    @classmethod
    def load(cls, name: str) -> Classifier:
        """The model of a folder or of the Hub, on the GPU where there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with found(name):
            model = AutoModelForImageClassification.from_pretrained(name).to(device).eval()
            return cls(model, AutoImageProcessor.from_pretrained(name), device)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in order."""
        labels = self.model.config.id2label
        assert labels is not None
        return [labels[i] for i in range(len(labels))]

    @torch.no_grad()
    def logits(self, split: Split, args: AccuracyArguments) -> Tensor:
        """The logits (images, classes) on the CPU."""
        data = ProcessedImages(split, self.processor, ready=args.variant == "c")
        loader = DataLoader(data, args.batch_size, num_workers=args.workers)  # type: ignore[arg-type]
        parts = [self.model(pixel_values=b["pixel_values"].to(self.device)).logits.cpu() for b in tqdm(loader, split.name)]
        return torch.cat(parts)


def measure(classifier: Classifier, data: DataArguments, args: AccuracyArguments) -> dict[str, float]:
    """The metrics of a variant."""
    if args.variant == "c":
        check_corruptions(Path(data.dataset_name))
        accuracies = {name: [severity(classifier, data, args, name, i) for i in range(1, 6)] for name in ALEXNET_ERRORS}
        return corruption_scores(accuracies)
    split, names = load_split(data)
    numbers = torch.tensor(class_numbers(names, classifier.classes))
    if args.variant == "real":
        if not isinstance(split.images, EncodedImages):
            raise ValueError(f"ReaL needs the files' names, got images in memory of {split.name!r}. Pass --in_memory never.")
        logits = classifier.logits(split, args)
        labels, rows = real_labels(), range(len(split.images))
        wanted = [labels[validation_number(split.images.path(i))] for i in rows]
        return {"accuracy": multi_label_accuracy(logits, wanted), "original_accuracy": top_k(logits, numbers[split.labels])}
    logits = classifier.logits(split, args)
    if args.variant == "r":
        return classification_metrics(masked(logits, numbers.tolist()), split.labels)
    return classification_metrics(logits, numbers[split.labels])


def check_corruptions(folder: Path) -> None:
    """Raises ValueError where a folder of ImageNet-C is missing or empty, before anything is measured."""
    for part in (folder / name / str(level) for name in ALEXNET_ERRORS for level in range(1, 6)):
        if not any(path.is_file() for path in part.glob("*/*")):
            raise ValueError(
                f"ImageNet-C needs a folder of images per class in each of its 15 corruptions' folders 1 to 5, got none in "
                f"{str(part)!r}. Download it again, or correct dataset_name."
            )


def severity(classifier: Classifier, data: DataArguments, args: AccuracyArguments, corruption: str, level: int) -> float:
    """The top-1 accuracy under one corruption of one severity."""
    folder = Path(data.dataset_name) / corruption / str(level)
    split, names = load_split(replace(data, dataset_name=str(folder.absolute())))
    numbers = torch.tensor(class_numbers(names, classifier.classes))
    named = replace(split, name=f"{corruption} {level}")
    return top_k(classifier.logits(named, args), numbers[split.labels])


def main(line: Sequence[str] | None = None) -> dict[str, float]:
    """Measures what the command line asks for."""
    words = list(sys.argv[1:] if line is None else line)
    if not words or words[0].startswith("-"):
        raise SystemExit(f"{__doc__}\nThe first argument must be a model: a folder, or a name of the Hub.")
    data, args = HfArgumentParser((DataArguments, AccuracyArguments)).parse_args_into_dataclasses(words[1:])
    metrics = measure(Classifier.load(words[0]), data, args)
    for name, value in metrics.items():
        print(f"{name:20} {value:.4f}")
    if args.output_file is not None:
        Path(args.output_file).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


if __name__ == "__main__":
    main()
