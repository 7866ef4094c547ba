"""Training loops that take one optimizer step per call, and tell what it took."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_optimizer
import torch
from subjects import Batch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments

from hf_sharp import SAM, AbstractMethod, SharpnessAwareMixin, SharpStep


@dataclass(frozen=True)
class Step:
    """What one optimizer step took.

    Attributes:
        passes: forward-backward passes in it.
        forward_backward: seconds in ``training_step``, the method's passes included.
        rest: seconds in everything after it.
        faults: page faults of the process; 0 where the system does not tell.
    """

    passes: int
    forward_backward: float
    rest: float
    faults: int = 0

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.forward_backward + self.rest


class CountingTrainer(Trainer):
    """A plain Trainer that counts its forward-backward passes.

    The number is the class's: what a method's later passes write into a Trainer's own attributes is put back.
    """

    passes = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's."""
        CountingTrainer.passes += 1
        return super().training_step(*args, **kwargs)


class CountingSharpTrainer(SharpnessAwareMixin, CountingTrainer):
    """A sharpness-aware Trainer that counts its forward-backward passes."""


class StopAtOnce(TrainerCallback):
    """Ends ``train()`` after its first step."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the loop to stop."""
        control.should_training_stop = True


class TrainerLoop:
    """A Trainer's loop that goes on one optimizer step per call, after ``train()`` has prepared it and taken the first.

    Args:
        model: the model to train.
        rule: the method; None for the plain Trainer.
        batch: what the first step sees, ``{name: tensor}``.
        steps: how many steps there will be, for schedules.
    """

    def __init__(self, model: nn.Module, rule: AbstractMethod | None, batch: Batch, steps: int) -> None:
        size = len(next(iter(batch.values())))
        samples = [{name: x[i].cpu() for name, x in batch.items()} for i in range(size)]
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder,
                max_steps=steps + 2,
                per_device_train_batch_size=size,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                remove_unused_columns=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            given: dict[str, Any] = {"args": args, "train_dataset": samples, "callbacks": [StopAtOnce()]}
            if rule is None:
                self.trainer = CountingTrainer(model, **given)
            else:
                self.trainer = CountingSharpTrainer(model, method=rule, **given)
            self.trainer.remove_callback(PrinterCallback)
            self.trainer.train()

    def __call__(self, batch: Batch) -> Step:
        trainer, model = self.trainer, self.trainer.model_wrapped
        (inputs,), items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        CountingTrainer.passes = 0
        start = now()
        trainer.training_step(model, inputs, items)
        middle = now()
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()
        end = now()
        trainer.state.global_step += 1
        return Step(CountingTrainer.passes, middle - start, end - middle)


def now() -> float:
    """Seconds, once the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sharp_loop(model: nn.Module) -> Callable[[Batch], Step]:
    """SAM in a loop of one's own, by hf_sharp."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sharp = SharpStep(model, optimizer, SAM(rho=0.05))

    def step(batch: Batch) -> Step:
        start = now()
        sharp(lambda batch: model(**batch)["loss"], batch)
        optimizer.step()
        optimizer.zero_grad()
        return Step(2, now() - start, 0.0)

    return step


def reference_loop(model: nn.Module) -> Callable[[Batch], Step]:
    """SAM in a loop of one's own, by pytorch_optimizer, as its documentation shows it."""
    optimizer = pytorch_optimizer.SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-4)

    def step(batch: Batch) -> Step:
        start = now()
        model(**batch)["loss"].backward()
        optimizer.first_step(zero_grad=True)
        model(**batch)["loss"].backward()
        optimizer.second_step(zero_grad=True)
        return Step(2, now() - start, 0.0)

    return step


PLAIN_LOOPS = {"SharpStep": sharp_loop, "pytorch_optimizer": reference_loop}
