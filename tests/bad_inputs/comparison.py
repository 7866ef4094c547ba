"""Bad input to comparisons of runs, papers' tables, and the scores of classifiers and translations."""

from __future__ import annotations

from pathlib import Path

import torch

from hf_sharp.comparison.cells import with_equal_passes
from hf_sharp.comparison.metrics import Metric
from hf_sharp.comparison.papers import read_row, read_rows
from hf_sharp.comparison.recipes import is_plain, overrides, read_recipe
from hf_sharp.comparison.sweeps import Axis, best, grid
from hf_sharp.comparison.tables import summary
from hf_sharp.evaluation import accuracy, bleu
from hf_sharp.evaluation.accuracy import calibration_error, top_k
from hf_sharp.evaluation.robustness import (
    ALEXNET_ERRORS,
    class_numbers,
    corruption_scores,
    multi_label_accuracy,
    validation_number,
)
from tests.bad_inputs.cases import Cases, written

EYE, LABELS = torch.eye(3), torch.arange(3)
CORRUPTIONS = ", ".join(ALEXNET_ERRORS)
TABLE = """\
names: {dataset: {d: {}}, model: {small: {}, big: {}}, augmentation: {none: {}}, method: {sam: {}}}
rows:
- {table: 1, dataset: d, model: MODEL, augmentation: none, method: sam, published: {accuracy: [1.0]}, FIELD: {}}
"""
SHAPE = "Pass one row of logits and one class number per image."
LINES = "Score the files line by line, empty lines included."


def table(folder: Path, model: str = "small", field: str = "overrides") -> Path:
    """A paper's table of one row."""
    return written(folder / "paper.yaml", TABLE.replace("MODEL", model).replace("FIELD", field))


CASES: Cases = [
    (
        lambda f: read_row(table(f), 2),
        "row must be from 1 to 1 for the paper 'paper', got 2. Pass e.g. --row 1.",
    ),
    (
        lambda f: read_row(table(f), 0),
        "row must be from 1 to 1 for the paper 'paper', got 0. Pass e.g. --row 1.",
    ),
    (
        lambda f: read_rows(table(f).with_name("asm.yaml")),
        "paper must be one of paper, got 'asm'. Pass e.g. --paper asam.",
    ),
    (
        lambda f: read_rows(table(f, model="tiny")),
        "Row 1 has an unknown model, 'tiny'. The file knows small, big.",
    ),
    (
        lambda f: read_rows(table(f, field="override")),
        "Row 1 has no field 'override'. Its fields are table, dataset, model, augmentation, method, published, overrides.",
    ),
    (
        lambda f: read_recipe(table(f).with_name("sam.yaml")),
        "A recipe must be an existing YAML file, got '{f}/sam.yaml'. Beside it there are: paper.yaml.",
    ),
    (
        lambda f: read_recipe(written(f / "r.yaml", "- 1\n")),
        "A recipe must hold settings, got [1] in '{f}/r.yaml'. Write e.g. 'rho: 0.05'.",
    ),
    (
        lambda f: read_recipe(written(f / "r.yaml", "rho: 'x\n")),
        "A recipe must be YAML, got {f}/r.yaml: found unexpected end of stream in line 2, column 1. Write e.g. 'rho: 0.05'.",
    ),
    (lambda f: overrides(["3"]), "Overrides must begin with a flag, got '3'. Write e.g. --num_train_epochs 10."),
    (
        lambda f: Axis.read(["rho"]),
        "A sweep needs values, got none for 'rho'. Write e.g. --sweep rho 0.05 0.1.",
    ),
    (
        lambda f: best({"a": [], "b": []}, Metric.of("accuracy")),
        "A choice needs a run that succeeded, got none of a, b. Read their logs.",
    ),
    (
        lambda f: with_equal_passes({"sgd": {"plain": True}}),
        "To match passes each recipe needs num_train_epochs, got none in 'sgd'. Set it there.",
    ),
    (
        lambda f: with_equal_passes({"sgd": {"plain": True, "num_train_epochs": 2}, "sam": {"max_steps": 5}}),
        "To match passes all recipes or none must have max_steps, got it in 'sam' and not in 'sgd'. Set it in all.",
    ),
    (
        lambda f: with_equal_passes({"sam": {"num_train_epochs": "many"}}),
        "num_train_epochs must be a number, got 'many'. Write e.g. num_train_epochs: 20.",
    ),
    (lambda f: is_plain({"plain": "maybe"}), "plain must be true or false, got 'maybe'. Write e.g. --plain true."),
    (
        lambda f: grid({"sharpness_args": "p"}, [Axis("sharpness_args.eta", (0.1,))]),
        "sharpness_args must be a mapping, for a sweep of sharpness_args.eta, got 'p'. Write e.g. '{\"eta\": 0.01}'.",
    ),
    (
        lambda f: summary("sam", {0: {"last": {"epoch": 1.0, "accuracy": 0.5, "top5": 1.0}}}, 0, {}, Metric.of("bleu")),
        "The metric must be one of accuracy, top5, got 'bleu'. Pass e.g. --metric accuracy.",
    ),
    (
        lambda f: Metric.of("acc"),
        "The metric must be one of accuracy, top5, f1, bleu, token_bleu, chrf, loss, cross_entropy, calibration_error, "
        "perplexity, or come with its direction, got 'acc'. Pass e.g. --metric accuracy, or --better larger.",
    ),
    (lambda f: top_k(EYE, LABELS, 4), "k must be from 1 to the number of classes, 3, got 4. Pass e.g. k=1."),
    (
        lambda f: top_k(EYE, LABELS[:2]),
        f"logits must be (images, classes) and labels (images), got (3, 3) and (2,). {SHAPE}",
    ),
    (lambda f: top_k(EYE[:0], LABELS[:0]), "A metric needs images, got none. Check the split."),
    (lambda f: calibration_error(EYE, LABELS, 0), "bins must be >= 1, got 0. Pass e.g. bins=15."),
    (
        lambda f: accuracy.module("accuracy"),
        "The metric must be one of image_scores, top_k_accuracy, calibration_error, corruption_scores, "
        "multi_label_accuracy, got 'accuracy'. Write e.g. module('image_scores').",
    ),
    (
        lambda f: corruption_scores({"fog": [0.1] * 5}),
        f"ImageNet-C needs its 15 corruptions, 'gaussian_noise' is missing. Give {CORRUPTIONS}.",
    ),
    (
        lambda f: corruption_scores(dict.fromkeys(ALEXNET_ERRORS, [0.1] * 5) | {"rain": [0.1] * 5}),
        f"ImageNet-C needs its 15 corruptions, 'rain' is unknown. Give {CORRUPTIONS}.",
    ),
    (
        lambda f: corruption_scores(dict.fromkeys(ALEXNET_ERRORS, [0.1] * 4)),
        "Each corruption must have 5 severities, got 4 for 'gaussian_noise'. Give all.",
    ),
    (
        lambda f: multi_label_accuracy(EYE, [[1]]),
        "There must be labels for each image, got 1 for 3 images. Give one list each.",
    ),
    (
        lambda f: multi_label_accuracy(EYE, [[], [], []]),
        "Some images must have labels, got none. Check the file of labels.",
    ),
    (
        lambda f: validation_number("cat.jpg"),
        "ReaL needs ImageNet's file names, got 'cat.jpg'. "
        "Use the validation split with names such as 'ILSVRC2012_val_00000293.JPEG'.",
    ),
    (
        lambda f: validation_number("ILSVRC2012_val_00050001.JPEG"),
        "ImageNet's validation images have the numbers 1 to 50000, got 'ILSVRC2012_val_00050001.JPEG'. Remove the file.",
    ),
    (
        lambda f: validation_number("ILSVRC2012_val_00000000.JPEG"),
        "ImageNet's validation images have the numbers 1 to 50000, got 'ILSVRC2012_val_00000000.JPEG'. Remove the file.",
    ),
    (
        lambda f: class_numbers(["0", "1000"], [f"class {i}" for i in range(1000)]),
        "The data set's classes must be the model's, got '1000'. Use a data set with the classes of the training set.",
    ),
    (
        lambda f: class_numbers(["x"], ["a", "b"]),
        "The data set's classes must be the model's, got 'x'. Use a data set with the classes of the training set.",
    ),
    (
        lambda f: bleu.token_bleu(["a"], []),
        f"There must be one reference per hypothesis, got 1 hypotheses and 0 references. {LINES}",
    ),
    (
        lambda f: bleu.score([], []),
        f"There must be one reference per hypothesis, got 0 hypotheses and 0 references. {LINES}",
    ),
    (lambda f: bleu.compare(["a"], ["a"], ["a"], samples=0), "samples must be at least 1, got 0. Use e.g. 1000."),
    (
        lambda f: bleu.module("bleurt"),
        "The metric must be one of calibration_error, corruption_scores, image_scores, multi_label_accuracy, token_bleu, "
        "top_k_accuracy, translation_scores, got 'bleurt'. Use e.g. 'token_bleu'.",
    ),
]
