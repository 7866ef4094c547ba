"""The Trainer, sharpness-aware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import IntervalStrategy, TrainOutput

from hf_sharp.backends import choose
from hf_sharp.checkpoints import last_complete, state_file
from hf_sharp.limits import check_training
from hf_sharp.methods import SAM, AbstractMethod
from hf_sharp.methods.checks import one_of
from hf_sharp.oracle import Backward
from hf_sharp.parameters import Perturb
from hf_sharp.parsing import parse_method
from hf_sharp.step import PERTURB_OVER, SharpStep, check_scalar

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class SharpnessAwareMixin(_Base):
    """Makes a Trainer sharpness-aware: put it in front, ``class MyTrainer(SharpnessAwareMixin, SomeTrainer)``.

    Outside ``training_step`` nothing changes: the first pass of each step is the Trainer's own, and only the value of the
    gradient that the optimizer sees is the method's. The logs gain ``sharpness/...`` entries about the step that is logged.

    Args:
        *args, **kwargs: the Trainer's own.
        method: a method, its name, a dict or a YAML fragment, see `parse_method`.
        perturb_over: which samples share one perturbation: ``"batch"`` (all of the optimizer step), ``"micro_batch"`` or
            ``"device"``, see `SharpStep`.
        perturb: which parameters are perturbed: None (all trainable ones), name patterns, or a mapping from pattern to a
            factor on the radius, see `hf_sharp.parameters.describe`.

    Raises:
        ValueError: an argument breaks its rule, or the training arguments ask for what no method can run in.
    """

    def __init__(
        self,
        *args: Any,
        method: AbstractMethod | str | Mapping[str, Any] = SAM(),  # noqa: B008 - frozen
        perturb_over: str = "batch",
        perturb: Perturb = None,
        **kwargs: Any,
    ) -> None:
        self.method = parse_method(method)
        one_of(PERTURB_OVER, "perturb_over", perturb_over)
        self._perturb_over, self._perturb = perturb_over, perturb
        self._sharp: SharpStep | None = None
        self._resumed_from: str | None = None
        super().__init__(*args, **kwargs)
        check_training(self.method, self.args, self.optimizer, self.optimizer_cls_and_kwargs)
        assert self.model is not None
        choose(self.model, self.accelerator, perturb)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """The Trainer's, with half-written checkpoints passed over where ``resume_from_checkpoint`` is True."""
        if resume_from_checkpoint is True and self.args.output_dir is not None:
            folder, passed_over = last_complete(self.args.output_dir)
            if folder is not None:
                resume_from_checkpoint = str(folder)
            elif passed_over:  # the run was killed while it wrote its first checkpoint: start it anew
                resume_from_checkpoint = None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The Trainer's, on the last micro-batch followed by the method's other passes."""
        plain = super().training_step

        def run(batch: Any, backward: Backward | None) -> Tensor:
            with _backward_through(self.accelerator, backward):
                return plain(model, batch, num_items_in_batch)

        if isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer.train()  # schedule-free optimizers swap the weights here: before a shift, not inside it
        sharp = self._sharp_step(model)
        sharp.step = self.state.global_step
        return sharp.micro_step(
            run,
            inputs,
            last=self.accelerator.sync_gradients,
            micro_batches=self.current_gradient_accumulation_steps,
            observe=self._will_log(),
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's, with the scalars of the step beside the training loss."""
        if "loss" in logs and self._sharp is not None:
            logs = {**logs, **self._sharp.scalars()}
        super().log(logs, *args, **kwargs)

    def _sharp_step(self, model: nn.Module) -> SharpStep:
        if self._sharp is None:
            assert self.optimizer is not None
            self._sharp = SharpStep(
                model,
                self.optimizer,
                self.method,
                accelerator=self.accelerator,
                steps=self.state.max_steps,
                seed=self.args.seed,
                perturb_over=self._perturb_over,
                perturb=self._perturb,
            )
            if self._resumed_from is not None:
                file = state_file(self._resumed_from, self.args.process_index)
                if file.exists():
                    self._sharp.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return self._sharp

    def _will_log(self) -> bool:
        """Whether the step under way will be logged, as far as the arguments tell."""
        step, args = self.state.global_step + 1, self.args
        if args.logging_strategy == IntervalStrategy.EPOCH:
            return self.accelerator.gradient_state.end_of_dataloader
        if args.logging_strategy == IntervalStrategy.STEPS and step % self.state.logging_steps == 0:
            return True
        return step == 1 and args.logging_first_step

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._sharp = self._resumed_from = None  # also where auto_find_batch_size starts over
        return super()._inner_training_loop(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        file = state_file(output_dir, self.args.process_index)
        file.unlink(missing_ok=True)  # of a run that was killed here
        state = {} if self._sharp is None else self._sharp.state_dict()
        if state.get("memory") or state.get("counts"):
            torch.save(state, file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from = checkpoint


class SharpnessAwareTrainer(SharpnessAwareMixin, Trainer):
    __doc__ = f"The `Trainer`, sharpness-aware.\n\n{SharpnessAwareMixin.__doc__}"


class SharpnessAwareSeq2SeqTrainer(SharpnessAwareMixin, Seq2SeqTrainer):
    __doc__ = f"The `Seq2SeqTrainer`, sharpness-aware.\n\n{SharpnessAwareMixin.__doc__}"


@contextmanager
def _backward_through(accelerator: Accelerator, stand_in: Backward | None) -> Iterator[None]:
    """Let ``accelerator.backward`` be the stand-in where there is one, and refuse losses that are not one number."""
    was = vars(accelerator).get("backward")
    usual = accelerator.backward

    def backward(loss: Tensor, **kwargs: Any) -> None:
        check_scalar(loss)
        if stand_in is None:
            usual(loss, **kwargs)
        else:
            stand_in(loss)

    accelerator.backward = backward
    try:
        yield
    finally:
        if was is None:
            del accelerator.backward
        else:
            accelerator.backward = was
