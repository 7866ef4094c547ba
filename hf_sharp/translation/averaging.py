"""The mean of several checkpoints' weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, load
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.utils import SAFE_WEIGHTS_NAME


class Saved(TrainerCallback):
    """The checkpoints of one run: those that it saved, and after a resumption those before it."""

    def __init__(self) -> None:
        self.start, self.steps = 0, set[int]()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Notes where the run goes on."""
        self.start, self.steps = state.global_step, set()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Notes the checkpoint."""
        self.steps.add(state.global_step)

    def __contains__(self, step: int) -> bool:
        return step in self.steps or step <= self.start


def check_average(number: int, args: TrainingArguments, steps: int | None = None) -> None:
    """Raises ValueError where a run will not leave so many checkpoints to average.

    Args:
        number: of the checkpoints.
        args: the run's.
        steps: optimizer steps of an epoch; None where they are not known yet, and then only what is known is checked.
    """
    kept = [_saved(args, steps), math.inf if args.save_total_limit is None else args.save_total_limit]
    config = None if args.deepspeed_plugin is None else args.deepspeed_plugin.hf_ds_config
    whole = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    if number and config is not None and config.is_zero3() and not config.get_value(whole, False):
        raise ValueError(
            "Checkpoints that are averaged must hold whole weights, got ZeRO-3 without them. "
            "Set zero3_save_16bit_model: true in the accelerate config, or pass --average 0."
        )
    if number > min(kept):
        raise ValueError(
            f"average must be at most the checkpoints that the run keeps, {min(kept)}, got {number}. "
            "Train longer, raise save_total_limit, or pass --average 0."
        )


def _saved(args: TrainingArguments, steps: int | None) -> float:
    """The checkpoints that a run writes."""
    if args.save_strategy == SaveStrategy.NO:
        return 0
    if args.save_strategy == SaveStrategy.EPOCH and args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    if steps is None:
        return math.inf
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)
    if args.save_strategy == SaveStrategy.EPOCH:
        return math.ceil(total / steps)
    return total // math.ceil(args.save_steps if args.save_steps >= 1 else total * args.save_steps)


def last_checkpoints(folder: str | Path, number: int, run: Container[int] | None = None) -> list[Path]:
    """The Trainer's last checkpoints in a folder, the oldest of them first.

    Args:
        folder: the Trainer's ``output_dir``.
        number: how many.
        run: the steps at which the run saved; by default all there are, also those of earlier runs.

    Raises:
        ValueError: there are fewer.
    """
    steps = [(path.name.removeprefix("checkpoint-"), path) for path in Path(folder).glob("checkpoint-*")]
    numbered = [(int(step), path) for step, path in steps if step.isdecimal() and (run is None or int(step) in run)]
    found = [path for _, path in sorted(numbered)]
    if not 1 <= number <= len(found):
        raise ValueError(
            f"average must be from 1 to the number of checkpoints, got {number} for {len(found)} in {folder}. "
            "Keep more with save_total_limit."
        )
    return found[-number:]


@torch.no_grad()
def load_average(model: nn.Module, checkpoints: Sequence[str | Path]) -> None:
    """Give a model the mean of the checkpoints' weights, summed in double precision; tied weights stay tied.

    Raises:
        ValueError: a checkpoint does not have the model's weights, or no whole ones.
    """
    sums: dict[str, Tensor] = {}
    named = dict(model.named_parameters(remove_duplicate=False))  # files name one of several tied parameters
    for folder in checkpoints:
        weights = _weights(Path(folder))
        covered = {id(named[name]) for name in weights if name in named}
        missing = [name for name, parameter in named.items() if id(parameter) not in covered]
        odd = next(iter([*sorted(weights.keys() - named.keys()), *missing]), None)
        if odd is not None:
            raise ValueError(
                f"The checkpoints must be of this model, got {odd!r} in only one of model and {folder}. "
                "Average checkpoints of one run."
            )
        for name, weight in weights.items():
            sums[name] = sums[name] + weight.double() if name in sums else weight.double()
    for name, total in sums.items():
        named[name].copy_(total / len(checkpoints))


def _weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights, also where FSDP wrote them in pieces (SHARDED_STATE_DICT)."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return load_file(folder / SAFE_WEIGHTS_NAME)
    pieces = folder / f"{FSDP_MODEL_NAME}_0"
    if not pieces.is_dir():
        raise ValueError(
            f"A checkpoint must hold {SAFE_WEIGHTS_NAME} or {pieces.name}, got neither in {folder}. "
            "Under ZeRO-3 save with zero3_save_16bit_model: true."
        )
    reader = FileSystemReader(pieces)
    found = reader.read_metadata().state_dict_metadata
    weights = {name: torch.empty(x.size, dtype=x.properties.dtype) for name, x in found.items()}  # type: ignore[union-attr]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of the loading in one process, which is meant
        load(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix("model."): weight for name, weight in weights.items()}
