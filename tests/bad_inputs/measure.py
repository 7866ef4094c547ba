"""Bad input to the measurements: quantities, surfaces, callbacks, checkpoints, correlations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_sharp.measure import (
    QUANTITIES,
    ApproximationRatio,
    AscentLoss,
    AverageSharpness,
    Extrema,
    Flatness,
    GradientCosine,
    How,
    LossBetween,
    LossLine,
    NormalizedTrace,
    Sharpness,
    SharpnessCallback,
    SpectralDensity,
    ThreeLosses,
    TopEigenvalues,
    loss_surface,
    parse_quantity,
)
from hf_sharp.measure.callback import named, read_history
from hf_sharp.measure.checkpoints import Source
from hf_sharp.measure.correlation import Run, rank_correlation, read_runs
from hf_sharp.measure.figures import evolution
from tests.bad_inputs.cases import Cases, written
from tests.measure.models import Classifier, Fused, Lossless, Quadratic, batches, made, opened, symmetric
from tests.models import collated, rows, vit
from tests.scripts import example

NAMES = ", ".join(sorted(QUANTITIES))
NO_TRAINER: Any = None


def ask(model: nn.Module, data: Any, **settings: Any) -> None:
    """One Hessian product."""
    with opened(model, data, **settings) as f:
        f.hessian_vector(f.normal(0))


def taken(quantity: Any, model: nn.Module, data: Any = None) -> None:
    """A measurement."""
    with opened(model, data) as f:
        quantity.measure(f)


def vit_batch() -> dict[str, Tensor]:
    """A batch for a ViT."""
    return collated(rows("vit", 2))


def other_weights(folder: Path) -> str:
    """The weights of a model of another shape."""
    torch.save(Classifier(hidden=7).state_dict(), folder / "other.pt")
    return str(folder / "other.pt")


def headless(folder: Path) -> str:
    """A checkpoint without a loss."""
    vit().base_model.save_pretrained(folder)
    return str(folder)


def read(samples: int) -> None:
    """A surface on so many samples."""
    with loss_surface(made(Classifier()), batches(), samples=samples):
        pass


HISTORY = [{"loader": "train", "epoch": 1.0, "step": 1, "values": {"trace": 1.0}, "standard_errors": {}}]
CASES: Cases = [
    (
        lambda f: evolution({"SAM": HISTORY}, ["trce"]),
        "values must be what a history has, got 'trce'. Choose from trace.",
    ),
    (
        lambda f: evolution({"SAM": HISTORY}, ["trace"]),
        "loaders must be what a history has, got 'test'. Choose from train.",
    ),
    *(
        (
            lambda f, line=line: example("measure/evolution").main([line]),  # type: ignore[misc]
            f"Each history must be NAME=FILE with an existing file, got {line!r}. Write e.g. SAM=history.json.",
        )
        for line in ("history.json", "SAM=none.json", "=none.json")
    ),
    (lambda f: parse_quantity("tarce"), f"Unknown quantity 'tarce'. Did you mean 'trace'? Choose from {NAMES}."),
    (
        lambda f: parse_quantity({"name": "trace", "k": 1}),
        "Trace has no field 'k'. Its fields are draws, distribution.",
    ),
    (
        lambda f: parse_quantity("3"),
        "A quantity must be a name, a mapping with 'name' or a quantity object, got '3'. "
        "Write e.g. {'name': 'trace', 'draws': 50}.",
    ),
    (lambda f: Sharpness(rho=0), "rho must be > 0, got 0. Pass e.g. rho=0.05."),
    (lambda f: Flatness(rho=0), "rho must be > 0, got 0. Pass e.g. rho=0.1."),
    (lambda f: ApproximationRatio(rho=0), "rho must be > 0, got 0. Pass e.g. rho=0.05."),
    (lambda f: AverageSharpness(rho=0), "rho must be > 0, got 0. Pass e.g. rho=0.05."),
    (lambda f: Extrema(rho=0), "rho must be > 0, got 0. Pass e.g. rho=0.1."),
    (lambda f: GradientCosine(rhos=[0.0]), "rho must be > 0, got 0.0. Pass e.g. rho=0.05."),
    (lambda f: AscentLoss(rhos=[]), "rhos must be a list of numbers, got []. Pass e.g. rhos=[0.05, 0.1]."),
    (lambda f: ThreeLosses(radius=0), "radius must be > 0, got 0. Pass e.g. radius=0.1."),
    (lambda f: Sharpness(p=3.0), "p must be 2.0 or inf, got 3.0. Pass e.g. p=2.0."),
    (lambda f: Sharpness(m=0), "m must be a whole number >= 1, got 0. Pass e.g. m=2."),
    (
        lambda f: taken(Sharpness(m=9), made(Classifier()), batches(20, 8)),
        "m must be at most the batch size, got 9, which no batch holds. Use a larger batch size.",
    ),
    (
        lambda f: taken(TopEigenvalues(k=7), Quadratic(symmetric(6))),
        "k must be at most the number of weights, 6, got 7. Pass e.g. k=1.",
    ),
    (
        lambda f: taken(SpectralDensity(lanczos=7), Quadratic(symmetric(6))),
        "lanczos must be at most the number of weights, 6, got 7. Pass e.g. lanczos=2.",
    ),
    (
        lambda f: taken(NormalizedTrace(), Quadratic(symmetric(6))),
        "The normalised trace needs a gradient that is not zero, got 0 at the weights. Measure 'trace'.",
    ),
    (
        lambda f: taken(ThreeLosses(direction="gradient"), Quadratic(symmetric(6))),
        "three_losses along the gradient need one that is not zero, got 0 at the weights. Use direction='random'.",
    ),
    (
        lambda f: taken(TopEigenvalues(), Quadratic(symmetric(6) * math.nan)),
        "The loss must be finite at the weights, got nan: the model has diverged, or a batch is broken. "
        "Measure a checkpoint from before.",
    ),
    (lambda f: LossLine(points=4), "points must be odd, got 4: the weights are in the middle. Pass e.g. points=5."),
    (
        lambda f: ask(Lossless(), [{"x": torch.ones(2, 2)}]),
        "The model must return a loss, got dict of Lossless without one. "
        "Load a class with a head for the task and give its batches labels, or pass loss_of.",
    ),
    (
        lambda f: ask(made(Classifier()), []),
        "The loader must hold at least one sample, got [] without any. Check the data set's split.",
    ),
    (
        lambda f: ask(made(Classifier()).bfloat16(), batches()),
        "Weights must be float32 or float64, got bfloat16 for 'layers.0.weight': a small shift vanishes in its rounding. "
        "Load the model with dtype=torch.float32.",
    ),
    (
        lambda f: ask(made(Fused()), batches()),
        "hvp='exact' needs a second derivative of every operation, got one without: a function that is marked with "
        "@once_differentiable. Use hvp='difference', or load the model with "
        "attn_implementation='eager'.",
    ),
    (
        lambda f: How(statistics="train"),
        "statistics must be 'running' or 'batch', got 'train'. Pass e.g. statistics='running'.",
    ),
    (lambda f: How(hvp="fast"), "hvp must be 'exact' or 'difference', got 'fast'. Pass e.g. hvp='exact'."),
    (lambda f: How(step=0), "step must be > 0, got 0. Pass e.g. step=0.01."),
    (
        lambda f: SharpnessCallback(NO_TRAINER, ["trace"], {"train": []}, every=-1),
        "every must be 'epoch' or a whole number >= 0, got -1. Pass e.g. every=100.",
    ),
    *(
        (
            lambda f, at=at: SharpnessCallback(NO_TRAINER, ["trace"], {"train": []}, at=at),  # type: ignore[misc]
            f"at must be a list of whole numbers >= 0, got {at!r}. Pass e.g. at=[0, 100].",
        )
        for at in ([-1], "5", [2.5], 3, [True])
    ),
    (
        lambda f: read_history(written(f / "x.json", "x")),
        "A history must be the file of a SharpnessCallback, got '{f}/x.json', which is none. Name another.",
    ),
    (
        lambda f: SharpnessCallback(NO_TRAINER, ["trace"], {}),
        "There must be a loader to measure on, got none. Pass e.g. loaders={'train': loader}.",
    ),
    (
        lambda f: named(["trace", {"name": "trace", "draws": 3}]),
        "Each quantity must have a name of its own, got 'trace' twice. "
        "Pass a mapping, e.g. {'trace_1': ..., 'trace_2': ...}.",
    ),
    (
        lambda f: rank_correlation([Run({"lr": 1}, 0.1, {"a": 1.0})], "a"),
        "A correlation needs at least 2 runs, got 1. Train a grid of hyper-parameters.",
    ),
    (
        lambda f: rank_correlation([Run({"lr": 1}, 0.1, {"a": 1.0})] * 2, "b"),
        "Every run must have the measure 'b', got one with a. Measure it.",
    ),
    (
        lambda f: rank_correlation([Run({"lr": 1}, 0.1, {"a": 1.0})] * 2, "a"),
        "Some runs must differ in 'lr' alone, got none among 2. Train a full grid, or leave it out.",
    ),
    (
        lambda f: rank_correlation([Run({"lr": 1}, 0.1, {"a": 1.0}), Run({"lr": 2}, 0.2, {"a": math.nan})], "a"),
        "'a' must be a finite number in every run, got nan with {'lr': 2}. Leave that run out.",
    ),
    (
        lambda f: rank_correlation([Run({"lr": 1}, 0.1, {"a": 1.0}), Run({"lr": 2}, math.inf, {"a": 1.0})], "a"),
        "'gap' must be a finite number in every run, got inf with {'lr': 2}. Leave that run out.",
    ),
    (
        lambda f: rank_correlation([Run({"lr": 1}, 0.1, {"a": 1.0}), Run({"wd": 2}, 0.2, {"a": 1.0})], "a"),
        "All runs must have the same settings, got some without lr, wd. Name it in all, or in none.",
    ),
    *(
        (
            lambda f, draw=draw: LossLine(draw=draw),  # type: ignore[misc]
            f"draw must be a whole number >= 0, got {draw!r}. Pass e.g. draw=2.",
        )
        for draw in (-1, "x")
    ),
    (
        lambda f: read_runs(written(f / "runs.json", '[{"gap": 1}]')),
        "Runs must be a JSON list of objects with settings, gap and measures, got '{f}/runs.json' ('settings'). "
        'Write e.g. [{"settings": {"lr": 0.1}, "gap": 0.3, "measures": {"trace": 812.0}}, ...].',
    ),
    (
        lambda f: LossBetween("x", margin=-1),
        "margin must be >= 0, got -1. Pass e.g. margin=0.25.",
    ),
    (
        lambda f: taken(LossBetween(str(f / "none")), made(Classifier()), batches()),
        "A model that transformers does not know needs the file of a state dict, got '{f}/none'. "
        "Write one with torch.save(other.state_dict(), file).",
    ),
    (
        lambda f: taken(LossBetween(str(f / "none")), vit().eval(), [vit_batch()]),
        "A checkpoint must be a folder or a model of the Hub, got '{f}/none', which cannot be loaded. "
        "Check the path or the name.",
    ),
    (
        lambda f: taken(LossBetween(str(written(f / "x.pt", "x"))), made(Classifier()), batches()),
        "A checkpoint's file must be a state dict, got '{f}/x.pt', which is none. Write it with torch.save.",
    ),
    (
        lambda f: taken(LossBetween(other_weights(f)), made(Classifier()), batches()),
        "Both checkpoints must have the same weights, got shape (7, 4) for 'layers.0.weight' of shape (5, 4) in "
        "'{f}/other.pt'. Give two checkpoints of one model.",
    ),
    (lambda f: read(0), "samples must be a whole number >= 1, got 0. Pass e.g. samples=2."),
    (
        lambda f: ask(made(Classifier()), [{"x": "text"}]),
        "A batch must hold a tensor with one row per sample, got {'x': 'text'}. Let the collator stack them.",
    ),
    (
        lambda f: ask(made(Classifier()), batches(), perturb="none"),
        "Each pattern in perturb must match a trainable parameter, got 'none', which matches none. "
        "The nearest name is 'layers.3.bias'; '*' stands for any characters.",
    ),
    (
        lambda f: SharpnessCallback(NO_TRAINER, ["trace"], batches()),  # type: ignore[arg-type]
        "loaders must be a mapping from name to loader, got list. Pass e.g. {'train': loader}.",
    ),
    (lambda f: named("trace"), "quantities must be a list or a mapping, got 'trace'. Pass e.g. ['trace']."),
    (
        lambda f: Source("digits", "translation"),
        "task must be 'image-classification' or 'text-classification' or 'causal-lm' or 'seq2seq', got 'translation'. "
        "Pass e.g. task='image-classification'.",
    ),
    (lambda f: Source("digits", samples=0), "samples must be a whole number >= 1, got 0. Pass e.g. samples=2."),
    (
        lambda f: Source("digits").loader(str(f), "dev"),
        "split must be one of train, test, got 'dev' for 'digits'. Pass another one.",
    ),
    (
        lambda f: Source("digits").model(headless(f)),
        "A checkpoint must have all weights of ViTForImageClassification, got '{f}' without 'classifier.weight'. "
        "Train it for the task first, or name the task that it was trained for.",
    ),
    (
        lambda f: Source("digits").model(str(f / "none")),
        "A checkpoint must be a folder or a model of the Hub, got '{f}/none', which cannot be loaded. "
        "Check the path or the name.",
    ),
]
