"""The Trainer, sharpness-aware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import EvalLoopOutput, HPSearchBackend, IntervalStrategy, TrainOutput

from hf_sharp.backends import check
from hf_sharp.checkpoints import last_complete, state_file
from hf_sharp.hub import UNREACHABLE, add_to_model_card, unreachable
from hf_sharp.limits import check_loss, check_trainer, check_training, has_second_derivative
from hf_sharp.methods import SAM, AbstractMethod
from hf_sharp.methods.checks import one_of
from hf_sharp.notes import Notes
from hf_sharp.oracle import Backward
from hf_sharp.parameters import Perturb
from hf_sharp.parsing import parse_method
from hf_sharp.passes import Made, backward_through, made_once
from hf_sharp.search import split
from hf_sharp.step import PERTURB_OVER, SharpStep

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


@dataclass(frozen=True)
class _Choice:
    """What a Trainer trains with.

    Attributes:
        method: the method.
        perturb_over, perturb: as `SharpnessAwareMixin` takes them.
    """

    method: AbstractMethod
    perturb_over: str
    perturb: Perturb


class SharpnessAwareMixin(_Base):
    """Makes a Trainer sharpness-aware: put it in front, ``class MyTrainer(SharpnessAwareMixin, SomeTrainer)``.

    Outside ``training_step`` nothing changes: the first pass of each step is the Trainer's own, and only the value of the
    gradient that the optimizer sees is the method's. The logs gain ``sharpness/...`` entries about the step that is logged.
    What a Trainer notes down in its ``compute_loss`` (metrics, token counts) counts each sample once, not once per pass, see
    `hf_sharp.notes.Notes`. Samples that it makes inside a step are made in the first pass, and all train on them; with
    R-SAM, R-GSAM and LPF that pass is at shifted weights. Parameters of a loss module that the model does not have are not
    perturbed, and keep the gradient of the first pass.

    ``hyperparameter_search`` also searches the method: ``hp_space`` may return ``rho``, ``base.rho`` or ``method``, see
    `hf_sharp.search.split`.

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
        with self._made_sharp(method, perturb_over, perturb):
            super().__init__(*args, **kwargs)

    @contextmanager
    def _made_sharp(self, method: Any, perturb_over: str = "batch", perturb: Perturb = None) -> Iterator[None]:
        """Inside, the Trainer that this is in front of is made; names of its own do not meet those that are set here."""
        one_of(PERTURB_OVER, "perturb_over", perturb_over)
        self._sharp_choice = self._sharp_given = _Choice(parse_method(method), perturb_over, perturb)
        self._sharp: SharpStep | None = None
        self._sharp_notes = Notes(self)
        self._sharp_resumed_from: str | None = None
        check_trainer(type(self), self._sharp_choice.method)
        yield
        self._check_method()
        assert self.model is not None
        exact = has_second_derivative(self._sharp_choice.method)
        check(self.model, self.accelerator, perturb, local=perturb_over == "device", exact=exact)

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
        plain, notes = super().training_step, self._sharp_notes
        notes.forget()
        counters, is_first = notes.counters(), True
        made: dict[str, Made] = {}

        def run(batch: Any, backward: Backward | None) -> Tensor:
            nonlocal is_first
            kept = nullcontext() if is_first else notes.replay(counters)
            is_first = False
            with kept, made_once(self, made), backward_through(self.accelerator, backward):
                return plain(model, batch, num_items_in_batch)

        if isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer.train()  # schedule-free optimizers swap the weights here: before a shift, not inside it
        sharp = self._sharp_step(model)
        sharp.step = self.state.global_step
        loss = sharp.micro_step(
            run,
            inputs,
            last=self.accelerator.sync_gradients,
            micro_batches=self.current_gradient_accumulation_steps,
            observe=self._will_log(),
        )
        notes.forget()
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's, with the scalars of the step beside the training loss."""
        if "loss" in logs and self._sharp is not None:
            logs = {**logs, **self._sharp.scalars()}
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, with a section about the method, its fields and its papers."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero() and self.args.output_dir is not None:
            choice = self._sharp_choice
            add_to_model_card(self.args.output_dir, choice.method, choice.perturb_over, choice.perturb)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's.

        Raises:
            ConnectionError: the Hub cannot be reached. With ``push_to_hub=True`` that is known before anything is trained.
        """
        left = "Nothing was written. Train with push_to_hub=False, and call trainer.push_to_hub() with a network."
        with unreachable(left) if self.args.push_to_hub else nullcontext():
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, which leaves the model and its card in the output folder also where the Hub cannot be reached.

        Raises:
            ConnectionError: it cannot be reached; the message names the folder.
        """
        folder = self.args.output_dir
        with unreachable(f"The model is saved in {folder}. Call trainer.push_to_hub() again with a network."):
            try:
                return super().push_to_hub(*args, **kwargs)
            except UNREACHABLE:
                if self.hub_model_id is None:  # the Trainer asks for the repository before it saves
                    self.save_model(_internal_call=True)
                    self.create_model_card()
                raise

    def _hp_search_setup(self, trial: Any) -> None:
        """The Trainer's, for searches over the method too; `hf_sharp.search.split` says what names ``hp_space`` may use."""
        if self.hp_search_backend is None or trial is None:
            super()._hp_search_setup(trial)
            return
        space = self.hp_space
        by_space = self.hp_search_backend == HPSearchBackend.OPTUNA
        theirs, method = split(space(trial) if by_space else trial, self._sharp_given.method, self.args)
        self._sharp_choice = replace(self._sharp_given, method=method)
        self.hp_space = lambda trial: theirs
        super()._hp_search_setup(trial if by_space else theirs)
        self._trial, self.hp_space = trial, space
        self._check_method()

    def _check_method(self) -> None:
        """Raises ValueError where the method cannot run in this Trainer."""
        method = self._sharp_choice.method
        check_trainer(type(self), method)
        check_loss(vars(self).get("loss"), method)
        check_training(method, self.args, self.optimizer, self.optimizer_cls_and_kwargs)

    def _sharp_step(self, model: nn.Module) -> SharpStep:
        if self._sharp is None:
            assert self.optimizer is not None
            choice = self._sharp_choice
            self._sharp = SharpStep(
                model,
                self.optimizer,
                choice.method,
                accelerator=self.accelerator,
                steps=self.state.max_steps,
                seed=self.args.seed,
                perturb_over=choice.perturb_over,
                perturb=choice.perturb,
            )
            if self._sharp_resumed_from is not None:
                file = state_file(self._sharp_resumed_from, _rank())
                if file.exists():
                    self._sharp.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return self._sharp

    def _will_log(self) -> bool:
        """Whether the step under way will be logged, as far as the arguments tell."""
        step, args = self.state.global_step + 1, self.args
        if args.logging_strategy == IntervalStrategy.EPOCH:
            return self.accelerator.gradient_state.end_of_dataloader or step >= self.state.max_steps
        if args.logging_strategy == IntervalStrategy.STEPS and step % self.state.logging_steps == 0:
            return True
        return step == 1 and args.logging_first_step

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, of the model's own weights also after an exception (DeepSpeed: call it on all ranks then)."""
        self._settle()
        super().save_model(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The Trainer's, at the model's own weights also after an exception (DeepSpeed: call it on all ranks then)."""
        self._settle()
        return super().evaluation_loop(*args, **kwargs)

    def _settle(self) -> None:
        if self._sharp is not None:
            self._sharp.settle()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._settle()
        self._sharp = self._sharp_resumed_from = None  # also where auto_find_batch_size starts over
        return super()._inner_training_loop(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        file = state_file(output_dir, _rank())
        file.unlink(missing_ok=True)  # of a run that was killed here
        state = {} if self._sharp is None else self._sharp.state_dict()
        if state.get("memory") or state.get("counts"):
            file.parent.mkdir(parents=True, exist_ok=True)  # another rank may be slower to make it
            torch.save(state, file)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        _wait_for_all_ranks()  # the Trainer's state comes next, and says that the checkpoint is whole

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._sharp_resumed_from = checkpoint


class SharpnessAwareTrainer(SharpnessAwareMixin, Trainer):
    __doc__ = f"The `Trainer`, sharpness-aware.\n\n{SharpnessAwareMixin.__doc__}"


class SharpnessAwareSeq2SeqTrainer(SharpnessAwareMixin, Seq2SeqTrainer):
    __doc__ = f"The `Seq2SeqTrainer`, sharpness-aware.\n\n{SharpnessAwareMixin.__doc__}"


def _rank() -> int:
    """This process among all, also where DeepSpeed on CPUs lets accelerate believe that it is the only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _wait_for_all_ranks() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
