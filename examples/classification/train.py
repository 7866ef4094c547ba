"""Train an image classifier, with or without a sharpness-aware method.

    python examples/classification/train.py
    python examples/classification/train.py configs/cifar10/asam.yaml --num_train_epochs 30
    python examples/classification/train.py --paper asam --row 17
    accelerate launch examples/classification/train.py configs/imagenet/sam.yaml

Results go to ``runs/TASK/RECIPE`` or ``runs/PAPER/rowN``, unless ``--output_dir`` says otherwise.

The first argument may be a file of settings, ``--paper`` and ``--row`` take those of a row of a paper's tables; the flags
behind them override them. Without either, a small ResNet learns scikit-learn's digits with SAM.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    HfArgumentParser,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_sharp import SharpnessArguments, method_to_dict
from hf_sharp.checkpoints import last_complete
from hf_sharp.comparison.metrics import Metric
from hf_sharp.comparison.papers import read_row
from hf_sharp.comparison.passes import passes_per_step
from hf_sharp.comparison.recipes import flags, overrides, read_recipe
from hf_sharp.comparison.results import provenance, save_results
from hf_sharp.descriptions import read_yaml
from hf_sharp.leaving import leave
from hf_sharp.vision.batch_sizes import divided, training_devices
from hf_sharp.vision.data.augmentation import AugmentationArguments, mixing, training_transform
from hf_sharp.vision.data.batches import Collator, ImageDataset
from hf_sharp.vision.data.preprocessing import preprocessing_for
from hf_sharp.vision.data.sources import DataArguments, load_task
from hf_sharp.vision.data.splits import ImageTask
from hf_sharp.vision.models import build, is_checkpoint
from hf_sharp.vision.progress import Progress
from hf_sharp.vision.record import RunRecord, check_same_settings, record_of, training_settings
from hf_sharp.vision.training import ClassificationTrainer, OptimizationArguments, SharpnessAwareClassificationTrainer

METRICS = ("accuracy", "top5", "cross_entropy", "calibration_error")
CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class ModelArguments:
    """Which model to train, and how."""

    model: str = field(
        default="resnet8",
        metadata={"help": "A name (resnet18, timm:vit_small_patch16_224), or a folder or a model of the Hub to fine-tune."},
    )
    model_args: dict | str | None = field(default=None, metadata={"help": "Fields of the model's config, as JSON."})
    plain: bool = field(default=False, metadata={"help": "Train without a sharpness-aware method."})
    evaluate_training: bool = field(
        default=False, metadata={"help": "Evaluate at the end on the training images, too, with their labels as trained on."}
    )

    def __post_init__(self) -> None:
        self.fields()

    def fields(self) -> Mapping[str, Any] | None:
        """The fields of the model's config.

        Raises:
            ValueError: they are no mapping.
        """
        given = self.model_args
        read = read_yaml(given, "model_args", "'{\"depths\": [2, 2]}'") if isinstance(given, str) else given
        if read is not None and not isinstance(read, Mapping):
            raise ValueError(f"model_args must be a mapping, got {given!r}. Write e.g. '{{\"depths\": [2, 2]}}'.")
        return read


@dataclass(frozen=True)
class Settings:
    """All that a run depends on."""

    model: ModelArguments
    data: DataArguments
    augmentation: AugmentationArguments
    optimization: OptimizationArguments
    sharpness: SharpnessArguments
    training: TrainingArguments
    given: dict[str, Any]


def asked(line: Sequence[str]) -> dict[str, Any]:
    """What a command line asks for: a recipe, or a row of a paper, and what overrides it; each has a folder of its own."""
    words, given = list(line), {}
    if words and words[0].endswith((".yaml", ".yml")):
        given = recipe(Path(words.pop(0)))
    own = overrides(words)
    if "paper" in own or "row" in own:
        paper, row = own.pop("paper", None), own.pop("row", None)
        if not isinstance(paper, str) or not str(row).isdecimal():
            raise ValueError(f"paper must be a name and row a number, got {paper} and {row}. Pass --paper asam --row 1.")
        found = read_row(CONFIGS / "papers" / f"{paper}.yaml", int(str(row)))
        given |= {**found.settings, "output_dir": f"runs/{paper}/row{found.number}"}
    elif not given:
        given = recipe(CONFIGS / "digits" / "sam.yaml")
    return given | own


def recipe(file: Path) -> dict[str, Any]:
    """The settings of a recipe; its runs go to a folder named after it, where it names none."""
    return {"output_dir": f"runs/{file.absolute().parent.name}/{file.stem}"} | read_recipe(file)


@cache
def parser() -> HfArgumentParser:
    """The parser of all settings."""
    own_kinds = (ModelArguments, DataArguments, AugmentationArguments, OptimizationArguments)
    return HfArgumentParser((*own_kinds, SharpnessArguments, TrainingArguments), description=__doc__)


def settings(given: dict[str, Any]) -> Settings:
    """The settings of a run, checked; ``total_batch_size`` and ``m`` are divided over the devices that train."""
    devices = training_devices(str(given.get("use_cpu", False)).lower() == "true")
    line = flags({"output_dir": "runs/classification"} | divided(given, devices))
    run = Settings(*parser().parse_args_into_dataclasses(line), given=given)
    run.optimization.check_mixing(run.augmentation.mixes)
    return run


def processor_of(model: str) -> BaseImageProcessor | None:
    """The image processor of a checkpoint; None for a model with fresh weights, or where the checkpoint has none."""
    if not is_checkpoint(model):
        return None
    try:
        return AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError, TypeError):  # TypeError: a folder of timm's without its preprocessing
        return None


def decisive(run: Settings) -> dict[str, Any]:
    """What a run's result depends on: a run is resumed only with the same."""
    aside = ("plain", "evaluate_training", "in_memory")
    parts = (run.model, run.data, run.augmentation, run.optimization)
    own = {name: value for part in parts for name, value in asdict(part).items() if name not in aside}
    kwargs = {} if run.model.plain else run.sharpness.trainer_kwargs()
    method = kwargs.pop("method", None)
    about = {"method": None if method is None else method_to_dict(method)} | {name: str(x) for name, x in kwargs.items()}
    return {**about, **own, **training_settings(run.training)}


def trainer_for(run: Settings, task: ImageTask, checkpoint: Path | None = None) -> Trainer:
    """The Trainer of a run, which goes on from a checkpoint where there is one."""
    preprocessing = preprocessing_for(run.augmentation, task.train.images, processor_of(run.model.model))
    set_seed(run.training.seed)
    model = build(run.model.model, task.classes, run.model.fields())
    mixed = mixing(run.augmentation, len(task.classes))
    last = run.optimization.channels_last
    augmented = training_transform(run.augmentation, preprocessing.size, preprocessing.fill)
    common: dict[str, Any] = {
        "model": model,
        "args": run.training,
        "train_dataset": ImageDataset(task.train, augmented),
        "eval_dataset": ImageDataset(task.test, preprocessing.test_transform()),
        "data_collator": Collator(preprocessing, channels_last=last),
        "training_collator": Collator(
            preprocessing, mixed, run.augmentation.mix_probability, len(task.classes), channels_last=last
        ),
        "processing_class": preprocessing.processor(),
        "optimization": run.optimization,
        "record": RunRecord(decisive(run), record_of(checkpoint)[1] if checkpoint is not None else 0.0),
    }
    if run.model.plain:
        trainer: Trainer = ClassificationTrainer(**common)
    else:
        trainer = SharpnessAwareClassificationTrainer(**common, **run.sharpness.trainer_kwargs())
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    return trainer


def train(run: Settings) -> dict[str, Any]:
    """Trains, evaluates, saves the model and the results, and returns these."""
    checkpoint = resume_point(run)
    task = load_task(run.data)
    trainer = trainer_for(run, task, checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = trainer.record.seconds
    history = evaluations(trainer)
    if not history or history[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        history = evaluations(trainer)
    results: dict[str, Any] = {
        "settings": run.given,
        "method": None if run.model.plain else method_to_dict(run.sharpness.method()),
        "seed": run.training.seed,
        "passes_per_step": passes_per_step(None if run.model.plain else run.sharpness.method()),
        "steps": trainer.state.global_step,
        "training_images": len(task.train.labels),
        "seconds": seconds,
        "last": history[-1],
        "best": Metric.of("accuracy").best_entry(history),
        "history": history,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        **provenance(),
    }
    if run.model.evaluate_training:
        same = ImageDataset(task.train, trainer.eval_dataset.transform)
        found = trainer.evaluate(same, metric_key_prefix="training")
        results["training"] = {name.removeprefix("training_"): value for name, value in found.items()}
    trainer.save_model()
    if trainer.is_world_process_zero():
        save_results(Path(run.training.output_dir), results)
    return results


def evaluations(trainer: Trainer) -> list[dict[str, float]]:
    """The metrics of all evaluations so far, in order, with their step and epoch."""
    return [
        {name.removeprefix("eval_"): value for name, value in entry.items()}
        for entry in trainer.state.log_history
        if "eval_accuracy" in entry
    ]


def resume_point(run: Settings) -> Path | None:
    """The checkpoint that ``--resume_from_checkpoint`` means: a folder, or with ``true`` the newest whole one, if any.

    Raises:
        ValueError: it was made with other settings.
    """
    given = run.training.resume_from_checkpoint
    if given is None or str(given).lower() == "false":
        return None
    point = last_complete(run.training.output_dir)[0] if str(given).lower() == "true" else Path(given)
    if point is not None:
        check_same_settings(decisive(run), point)
    return point


def main() -> None:
    """Runs what the command line asks for."""
    run = settings(asked(sys.argv[1:]))
    results = train(run)
    if run.training.process_index:
        return
    last, best = results["last"], results["best"]
    shown = ", ".join(f"{name} {last[name]:.4f}" for name in METRICS if name in last)
    print(f"\n{results['method'] or 'no method'}\nlast epoch: {shown}")
    print(f"best epoch: accuracy {best['accuracy']:.4f} at epoch {best['epoch']:g}")
    print(f"{results['seconds']:.0f} s of training. Results: {Path(run.training.output_dir) / 'results.json'}")


if __name__ == "__main__":
    main()
    leave()
