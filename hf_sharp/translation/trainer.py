"""Trainers that train translation models as fairseq does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainingArguments
from transformers.trainer_utils import SchedulerType

from hf_sharp.trainer import SharpnessAwareSeq2SeqTrainer
from hf_sharp.translation.batches import Collator, TokenBatchSampler
from hf_sharp.translation.learning_rate import inverse_sqrt
from hf_sharp.translation.loss import LabelSmoothing
from hf_sharp.translation.model import IGNORED, FairseqTransformer
from hf_sharp.translation.sharding import whole

if TYPE_CHECKING:
    _Base = Seq2SeqTrainer
else:
    _Base = object


class FairseqRecipe(_Base):
    """Makes a Seq2SeqTrainer train as fairseq does: put it in front of one.

    Batches are cut by tokens; the loss is fairseq's label-smoothed cross-entropy, divided by the tokens of the optimizer
    step over accumulation and ranks; all parameters decay, decoupled from the gradient; the learning rate rises over
    ``warmup_steps`` and then falls with the inverse square root. Set ``max_grad_norm=0`` for fairseq's absence of clipping.

    Args:
        model, args, *rest, **kwargs: the Trainer's own; datasets have columns ``input_ids`` and ``labels``.
        data_collator, compute_loss_func: None; the recipe has its own.
        max_tokens: per batch and device, see `hf_sharp.translation.batches.token_batches`.
        label_smoothing: see `LabelSmoothing`.
        first_learning_rate: where the warm-up starts.

    Raises:
        ValueError: a number is out of its range, something is chosen that the recipe has of its own, or there are several
            processes that do not train together.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: None = None,
        *rest: Any,
        compute_loss_func: None = None,
        max_tokens: int = 4096,
        label_smoothing: float = 0.1,
        first_learning_rate: float = 1e-7,
        **kwargs: Any,
    ) -> None:
        for name, got in (("data_collator", data_collator), ("compute_loss_func", compute_loss_func)):
            if got is not None:
                raise ValueError(
                    f"{name} must be left out, got one: the recipe has its own. "
                    "Leave it out, or use SharpnessAwareSeq2SeqTrainer."
                )
        if args is not None:
            check_arguments(args)
        self._max_tokens, self._first_learning_rate = max_tokens, first_learning_rate
        self._smoothing = LabelSmoothing(label_smoothing)
        smoothed = self._smoothing
        super().__init__(model, args, Collator(), *rest, compute_loss_func=smoothed, **kwargs)  # type: ignore[misc]
        if self.args.world_size > 1 and self.accelerator.distributed_type == DistributedType.NO:
            raise ValueError(
                f"Processes must train one model together, got {self.args.world_size} that Accelerate does not join. "
                "Without GPUs pass --use_cpu True."
            )
        if self.train_dataset is not None:
            self.check_batches(self.train_dataset, "train_dataset")
        generating = isinstance(self.args, Seq2SeqTrainingArguments) and self.args.predict_with_generate
        if self.eval_dataset is not None and not generating:
            self.check_batches(self.eval_dataset, "eval_dataset")

    def check_batches(self, data: object, name: str) -> None:
        """Raises ValueError where data cannot be cut into batches for the processes; to be asked before the training.

        Args:
            data: pairs to train on, or for `likelihood`.
            name: what they are called in an error.
        """
        rows = _rows(data, name)
        try:
            self._sampler(rows, shuffle=False)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def get_train_dataloader(self) -> DataLoader:
        """This rank's token batches."""
        data = _rows(self.train_dataset, "train_dataset")
        loader = DataLoader(
            data.select_columns(["input_ids", "labels"]),
            batch_sampler=self._sampler(data, shuffle=True),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.accelerator.device.type != "cpu",
        )
        # The sampler deals with the ranks, so the loader is prepared as one process's own.
        return prepare_data_loader(loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All of them."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The inverse square root, unless a scheduler was given."""
        if self.lr_scheduler is None:
            chosen = self.optimizer if optimizer is None else optimizer
            assert isinstance(chosen, Optimizer)
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = inverse_sqrt(chosen, warmup, self._first_learning_rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Validation figures as ``eval_nll_loss`` and so on; with ``predict_with_generate`` the Trainer's own."""
        assert isinstance(self.args, Seq2SeqTrainingArguments)
        if self.args.predict_with_generate:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        data = _rows(self.eval_dataset if eval_dataset is None else eval_dataset, "eval_dataset")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.likelihood(data).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def whole_model(self) -> FairseqTransformer:
        """The model, to search and average with; under FSDP2 and ZeRO-3 a copy with all weights in each process.

        All processes must ask. The copy does not follow the training.
        """
        assert isinstance(self.model, FairseqTransformer)
        return whole(self.model, self.accelerator)

    @torch.no_grad()
    def likelihood(self, data: Dataset, model: FairseqTransformer | None = None) -> dict[str, float]:
        """Validation figures as fairseq gives them, over all ranks.

        Args:
            data: with columns ``input_ids`` and ``labels``.
            model: another one than the Trainer's, the same in all processes.

        Returns:
            ``nll_loss`` and ``loss``, the smoothed one, per token in bits, and ``ppl``.
        """
        chosen = self.model if model is None else model
        assert isinstance(chosen, nn.Module)
        sampler = self._sampler(data, shuffle=False)
        device = self.accelerator.device
        sums = torch.zeros(3, dtype=torch.double, device=device)
        was_training = chosen.training
        chosen.eval()
        silent = self.args.disable_tqdm or self.args.process_index > 0
        for batch in tqdm(sampler, desc="validation", leave=False, disable=silent):
            collated = self.data_collator(data.select(batch).to_list())
            inputs = {name: tensor.to(device) for name, tensor in collated.items()}
            labels = inputs.pop("labels")
            logits = chosen(**inputs).logits
            totals = self._smoothing.total(logits, labels), LabelSmoothing(0).total(logits, labels), labels.ne(IGNORED).sum()
            sums += torch.stack([x.double() for x in totals])
        chosen.train(was_training)
        smoothed, nll, tokens = self.accelerator.reduce(sums).tolist()
        bits = nll / tokens / math.log(2)
        return {"nll_loss": bits, "loss": smoothed / tokens / math.log(2), "ppl": 2**bits}

    def _sampler(self, data: Dataset, *, shuffle: bool) -> TokenBatchSampler:
        return TokenBatchSampler(
            [len(row) for row in data["input_ids"]],
            [len(row) for row in data["labels"]],
            self._max_tokens,
            ranks=self.args.world_size,
            rank=self.args.process_index,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            shuffle=shuffle,
        )


def check_arguments(args: TrainingArguments) -> None:
    """Raises ValueError where training arguments choose what the recipe has of its own, and would be passed over."""
    if args.label_smoothing_factor:
        raise ValueError(
            "label_smoothing_factor must be 0, since Transformers' smoothing is not fairseq's, got "
            f"{args.label_smoothing_factor}. Pass label_smoothing={args.label_smoothing_factor}, which is fairseq's."
        )
    kind = SchedulerType(args.lr_scheduler_type)
    if kind not in (SchedulerType.LINEAR, SchedulerType.INVERSE_SQRT):  # the Trainer's default, and what the recipe does
        raise ValueError(
            f"lr_scheduler_type must be left out, got {kind.value!r}: the recipe has the inverse square root of the steps. "
            "Leave it out, or give the Trainer a scheduler in optimizers."
        )
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size must be False, got True: batches are cut by tokens, so that a smaller batch size changes "
            "nothing. Leave it out, and lower max_tokens where the memory is short."
        )
    if args.dataloader_drop_last:
        raise ValueError(
            "dataloader_drop_last must be False, got True: the recipe trains on every pair once per epoch. Leave it out."
        )


def _rows(data: object, name: str) -> Dataset:
    if not isinstance(data, Dataset) or not {"input_ids", "labels"} <= set(data.column_names):
        held = f"columns {', '.join(data.column_names)}" if isinstance(data, Dataset) else f"a {type(data).__name__}"
        raise ValueError(
            f"{name} must be one datasets.Dataset with columns input_ids and labels, got {held}. "
            "Make it with hf_sharp.translation.pairs.encoded."
        )
    return data


class TranslationTrainer(FairseqRecipe, Seq2SeqTrainer):
    __doc__ = f"The `Seq2SeqTrainer`, training as fairseq does.\n\n{FairseqRecipe.__doc__}"


class SharpTranslationTrainer(FairseqRecipe, SharpnessAwareSeq2SeqTrainer):
    __doc__ = f"The `SharpnessAwareSeq2SeqTrainer`, training as fairseq does.\n\n{FairseqRecipe.__doc__}"
