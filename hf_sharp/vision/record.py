"""What a checkpoint remembers of its run beside the Trainer's state: its settings, and the time that it took."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

_TRAINING = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "label_smoothing_factor",
    "seed",
    "data_seed",
    "fp16",
    "bf16",
)


def training_settings(args: TrainingArguments) -> dict[str, Any]:
    """The Trainer's settings that a run's result depends on, with the batch of an optimizer step over all processes."""
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {name: value for name, value in args.to_dict().items() if name in _TRAINING} | {"batch": batch}


class RunRecord(TrainerCallback, ExportableState):
    """Keeps the settings of a run, and its seconds of training, in the state of each checkpoint.

    Args:
        settings: all that the result depends on, as JSON has it.
        earlier: seconds of training before this process.
    """

    def __init__(self, settings: Mapping[str, Any], earlier: float = 0.0) -> None:
        self.settings = json.loads(json.dumps(settings))
        self.seconds = earlier
        self._since: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clock, and finds a place in the state of a checkpoint that was made without a record."""
        places: Any = state.stateful_callbacks  # a mapping by now, whatever its annotation says
        places.setdefault(type(self).__name__, self.state())
        self._since = time.perf_counter()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops it."""
        self.seconds, self._since = self.so_far(), None

    def without(self, seconds: float) -> None:
        """Take these seconds, of an evaluation, off."""
        self.seconds -= seconds

    def so_far(self) -> float:
        """Seconds of training, those before a resume included, those of evaluations not."""
        return self.seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a checkpoint's state."""
        return {"args": {"settings": self.settings}, "attributes": {"seconds": self.so_far()}}


def record_of(checkpoint: Path) -> tuple[dict[str, Any] | None, float]:
    """The settings and the seconds in a checkpoint; None and 0 where it was made without a `RunRecord`."""
    file = checkpoint / TRAINER_STATE_NAME
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    own = kept.get("stateful_callbacks", {}).get(RunRecord.__name__)
    return (None, 0.0) if own is None else (own["args"]["settings"], own["attributes"]["seconds"])


def check_same_settings(now: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises ValueError where a checkpoint was made with other settings."""
    then, _ = record_of(checkpoint)
    if then is None:
        return
    current = json.loads(json.dumps(now))
    for name in [*then, *(key for key in current if key not in then)]:
        if then.get(name) != current.get(name):
            raise ValueError(
                f"A run must be resumed with its own settings, got {name}={current.get(name)!r} for {str(checkpoint)!r}, "
                f"which was made with {then.get(name)!r}. Set it back, or train anew with another output_dir."
            )
