"""AdamW, SAM, ASAM and GSAM on scikit-learn's digits, with a small ViT: about two minutes on two CPU cores.

    python examples/quickstart.py

It prints a table, writes one JSON file per method and seed into ``quickstart_results/`` and saves ``quickstart.png``, both
in the current folder. All methods share one set of settings, which was chosen so that each of them trains, not so that one
of them wins. The methods have their default hyper-parameters, except that ASAM has the radius that its paper uses for a
Transformer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

import hf_sharp
from hf_sharp import ASAM, GSAM, SAM, AbstractMethod, SharpnessAwareTrainer, method_to_dict

LABELS = {"adamw": "AdamW", "sam": "SAM", "asam": "ASAM", "gsam": "GSAM"}
METHODS: dict[str, AbstractMethod | None] = {"adamw": None, "sam": SAM(), "asam": ASAM(rho=0.2), "gsam": GSAM()}
COLORS = {"adamw": "#000000", "sam": "#0072b2", "asam": "#d55e00", "gsam": "#009e73"}


@dataclass(frozen=True)
class Settings:
    """What all methods share.

    Attributes:
        epochs: passes over the training set.
        batch_size: images per optimizer step.
        learning_rate: of AdamW, which every method feeds; reached after a warm-up, then falling along a cosine.
        weight_decay: of AdamW.
        warmup: optimizer steps until the learning rate has its peak, as a share of all steps.
        test_share: share of the images that is kept for the test.
        radius: length of e in the loss gap, the same for all methods.
        reach: how far the figure's line goes to either side, in lengths of the filter-normalised direction.
        points: points on that line.
        threads: CPU threads. The last bits of the numbers depend on them, and for a model of this size more than one gain
            little and lose much when the machine has other work.
    """

    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    test_share: float = 0.3
    radius: float = 0.05
    reach: float = 0.5
    points: int = 21
    threads: int = 1


@dataclass(frozen=True)
class Split:
    """Images (number, 1, 8, 8) from -1 to 1 and labels (number)."""

    images: Tensor
    labels: Tensor

    def items(self) -> list[dict[str, Tensor]]:
        """The same as a Trainer takes it: one dict per image."""
        return [{"pixel_values": x, "labels": y} for x, y in zip(self.images, self.labels, strict=True)]


class Progress(ProgressCallback):
    """The Trainer's progress bar with the training loss behind it, in place of a printed dict per log entry."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the loss that was logged last."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4f}")


def digits(seed: int, test_share: float) -> tuple[Split, Split]:
    """Training and test set, with the same shares of each digit in both; the seed alone decides which image is where."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)
    train, test = train_test_split(range(len(labels)), test_size=test_share, random_state=seed, stratify=data.target)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def small_vit() -> ViTForImageClassification:
    """A ViT of 69 thousand parameters that sees 16 patches of 2x2 pixels.

    Its weights start larger than by default: 0.02 is meant for 768 channels, and with 64 training would start on a plateau.
    """
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            num_labels=10,
            initializer_range=0.1,
        )
    )


def train(
    model: ViTForImageClassification, data: Split, method: AbstractMethod | None, seed: int, settings: Settings
) -> float:
    """Trains the model in place, without a method as the plain Trainer does; returns the seconds that it took."""
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup,
            seed=seed,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        if method is None:
            trainer = Trainer(model, args, train_dataset=data.items())
        else:
            trainer = SharpnessAwareTrainer(model, args, train_dataset=data.items(), method=method)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


@contextmanager
def moved(model: ViTForImageClassification, shift: Sequence[Tensor]) -> Iterator[None]:
    """The model at ``w + shift``; afterwards at exactly w again."""
    weights = [w.detach() for w in model.parameters()]
    old = [w.clone() for w in weights]
    for w, e in zip(weights, shift, strict=True):
        w.add_(e)
    try:
        yield
    finally:
        for w, was in zip(weights, old, strict=True):
            w.copy_(was)


@torch.no_grad()
def loss(model: ViTForImageClassification, data: Split) -> float:
    """The mean cross-entropy."""
    return model(pixel_values=data.images, labels=data.labels).loss.item()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, data: Split) -> float:
    """The share of images whose largest logit is the label's."""
    return (model(pixel_values=data.images).logits.argmax(-1) == data.labels).double().mean().item()


def loss_gap(model: ViTForImageClassification, data: Split, radius: float) -> float:
    """``L(w + e) - L(w)`` over the whole set, with ``e = radius g / |g|``."""
    at_w = model(pixel_values=data.images, labels=data.labels).loss
    grads = torch.autograd.grad(at_w, list(model.parameters()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    with moved(model, [radius * g / norm for g in grads]):
        return loss(model, data) - at_w.item()


def filter_normalised_direction(model: ViTForImageClassification, seed: int) -> list[Tensor]:
    """A random direction in which each output unit's part is as long as the unit's weights (Li et al., 2018).

    Tensors with one dimension (biases, norm layers) do not move; those without output units (class token, position
    embeddings) count as one unit.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = []
    for w in model.parameters():
        d = torch.randn(w.shape, generator=generator)
        if w.ndim < 2:
            direction.append(torch.zeros_like(d))
        else:
            units = tuple(range(1, w.ndim))
            lengths = torch.linalg.vector_norm(w.detach(), dim=units, keepdim=True)
            direction.append(d * lengths / torch.linalg.vector_norm(d, dim=units, keepdim=True))
    return direction


def loss_line(model: ViTForImageClassification, data: Split, seed: int, settings: Settings) -> dict[str, list[float]]:
    """The loss at evenly spaced points along the direction; methods with the same seed share the random draw."""
    direction = filter_normalised_direction(model, seed)
    last = settings.points - 1
    distances = [settings.reach * (2 * i - last) / last for i in range(settings.points)]  # the middle is 0 to the bit
    losses = []
    for a in distances:
        with moved(model, [a * d for d in direction]):
            losses.append(loss(model, data))
    return {"distance": distances, "loss": losses}


def run_cell(method_name: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Trains and measures one method with one seed; on one machine everything but the seconds comes out the same again."""
    method = METHODS[method_name]
    torch.set_num_threads(settings.threads)
    train_set, test_set = digits(seed, settings.test_share)
    set_seed(seed)
    model = small_vit()
    seconds = train(model, train_set, method, seed, settings)
    model.eval()
    return {
        "method": {"name": method_name} if method is None else method_to_dict(method),
        "seed": seed,
        "accuracy": accuracy(model, test_set),
        "train_loss": loss(model, train_set),
        "loss_gap": loss_gap(model, train_set, settings.radius),
        "seconds": seconds,
        "line": loss_line(model, train_set, seed, settings),
        "settings": asdict(settings),
        "versions": {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "hf_sharp": hf_sharp.__version__,
        },
    }


def table(results: dict[str, list[dict[str, Any]]], radius: float) -> str:
    """One row per method: mean and standard deviation over the seeds, and the median ratio of the seconds to AdamW's."""
    rows = [("method", "test accuracy, %", "train loss L(w)", f"L(w+e) - L(w), |e| = {radius:g}", "time / AdamW")]
    for name, cells in results.items():
        ratio = "-"
        if "adamw" in results:
            pairs = zip(cells, results["adamw"], strict=True)
            ratio = f"{median(cell['seconds'] / plain['seconds'] for cell, plain in pairs):.2f}"
        accuracies = _mean_and_deviation([100 * cell["accuracy"] for cell in cells], 2)
        losses = _mean_and_deviation([cell["train_loss"] for cell in cells], 4)
        gaps = _mean_and_deviation([cell["loss_gap"] for cell in cells], 5)
        rows.append((LABELS[name], accuracies, losses, gaps, ratio))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _mean_and_deviation(values: list[float], decimals: int) -> str:
    text = f"{mean(values):.{decimals}f}"
    return f"{text} +- {stdev(values):.{decimals}f}" if len(values) > 1 else text


def save_figure(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """The loss along the random direction: the mean over the seeds, and a band from the lowest to the highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, cells in results.items():
        distances = cells[0]["line"]["distance"]
        by_distance = list(zip(*(cell["line"]["loss"] for cell in cells), strict=True))
        axes.plot(distances, [mean(losses) for losses in by_distance], color=COLORS[name], label=LABELS[name])
        lowest, highest = map(min, by_distance), map(max, by_distance)
        axes.fill_between(distances, list(lowest), list(highest), color=COLORS[name], alpha=0.12, linewidth=0)
    seeds = len(next(iter(results.values())))
    what = "one seed" if seeds == 1 else f"line: mean of {seeds} seeds, band: lowest to highest"
    axes.set_title(f"Training loss around the trained weights, small ViT on digits\n{what}", fontsize="medium")
    axes.set_xlabel("distance along a random filter-normalised direction (1: the length of each unit's weights)")
    axes.set_ylabel("training loss (cross-entropy, log scale)")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    figure.savefig(file, dpi=150)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="AdamW, SAM, ASAM and GSAM on scikit-learn's digits, with a small ViT.")
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help="passes over the training set (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (%(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which methods (all)")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="where the results go (the current folder)")
    args = parser.parse_args(given)
    for name, number in (("epochs", args.epochs), ("seeds", args.seeds)):
        if number < 1:
            parser.error(f"--{name} must be at least 1, got {number}. Use e.g. --{name} 3.")
    return args


def main() -> None:
    """Runs every method with every seed, and reports."""
    args = arguments()
    settings = Settings(epochs=args.epochs)
    folder = args.output_dir / "quickstart_results"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.methods}
    start, runs = time.perf_counter(), args.seeds * len(results)
    for seed in range(args.seeds):
        for name in results:
            number = sum(map(len, results.values())) + 1
            print(f"[{number}/{runs}] {METHODS[name] or 'AdamW, the plain Trainer'}, seed {seed}", flush=True)
            cell = run_cell(name, seed, settings)
            results[name].append(cell)
            (folder / f"{name}_seed{seed}.json").write_text(json.dumps(cell, indent=2) + "\n", encoding="utf-8")
    figure = args.output_dir / "quickstart.png"
    save_figure(results, figure)
    print(f"\n{table(results, settings.radius)}\n")
    print(f"{runs} runs in {time.perf_counter() - start:.0f} s. Each run: {folder}. Loss along a line: {figure}.")


if __name__ == "__main__":
    main()
