"""Checkpoints of the Hub or of a folder, and data for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from hf_sharp.checkpoints import found
from hf_sharp.measure.rows import first_rows, numbers_of
from hf_sharp.methods.checks import one_of, whole

if TYPE_CHECKING:
    from datasets import Dataset

_MODELS: dict[str, Any] = {
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
TASKS = tuple(_MODELS)
Collate = Callable[[list[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Which samples a checkpoint is measured on.

    Args:
        data: a data set of the Hub, a folder with one, or for images ``"digits"``, scikit-learn's.
        task: ``"image-classification"``, ``"text-classification"``, ``"causal-lm"`` or ``"seq2seq"``.
        samples: the first so many of a split; >= 1.
        batch_size: samples per forward pass, >= 1; a Hessian product keeps the graph of one batch in memory.
        text_column: of the data set; what a sequence-to-sequence model reads.
        label_column: the classes, or the texts that a sequence-to-sequence model shall write; None: ``"label"``, and for
            images also the other usual names.
        max_length: tokens per text; longer ones are cut.
        config: the data set's configuration on the Hub.
    """

    data: str
    task: str = "image-classification"
    samples: int = 512
    batch_size: int = 256
    text_column: str = "text"
    label_column: str | None = None
    max_length: int = 128
    config: str | None = None

    def __post_init__(self) -> None:
        one_of(TASKS, "task", self.task)
        whole(1, "samples", self.samples)
        whole(1, "batch_size", self.batch_size)
        whole(1, "max_length", self.max_length)

    def model(self, checkpoint: str) -> PreTrainedModel:
        """The checkpoint's model in float32, as the task needs it.

        Raises:
            ValueError: there is no such checkpoint, or it lacks weights of such a model: its head, say.
        """
        self._know_our_models()
        with found(checkpoint):
            model, info = _MODELS[self.task].from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
        lacking = [name for name, _ in model.named_parameters() if name in info["missing_keys"]]
        if lacking:
            raise ValueError(
                f"A checkpoint must have all weights of {type(model).__name__}, got {checkpoint!r} without {lacking[0]!r}. "
                "Train it for the task first, or name the task that it was trained for."
            )
        return model

    def loader(self, checkpoint: str, split: str) -> DataLoader:
        """The samples of a split as the checkpoint's processor or tokenizer makes them, in order, without augmentation.

        The data set's classes are found by name among the model's, so the two may number them differently.

        Raises:
            ValueError: the data set has no such split or column, has a class that the model lacks, or is sorted by class and
                its first samples miss one.
        """
        rows, collate = (self._images if self.task == "image-classification" else self._texts)(checkpoint, split)
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=collate)  # type: ignore[arg-type]

    def _images(self, checkpoint: str, split: str) -> tuple[Sequence[Any], Collate]:
        from hf_sharp.vision.data.sources import DataArguments, load_split, load_task

        if self.data == "digits":
            if split not in ("train", "test"):
                raise ValueError(f"split must be one of train, test, got {split!r} for 'digits'. Pass another one.")
            task = load_task(DataArguments())
            shown, names = task.train if split == "train" else task.test, task.classes
        else:
            args = DataArguments(
                dataset_name=self.data,
                dataset_config=self.config,
                label_column=self.label_column,
                test_split=split,
                in_memory="never",
            )
            shown, names = load_split(args)
        numbers = numbers_of(names, self._config(checkpoint))
        chosen = first_rows(shown.labels.tolist(), names, self.samples, split)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        rows = [(shown.images[i], numbers[int(shown.labels[i])]) for i in chosen]

        def collate(items: list[Any]) -> dict[str, Any]:
            pixels = processor(images=[image for image, _ in items], return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, "labels": torch.tensor([label for _, label in items])}

        return rows, collate

    def _texts(self, checkpoint: str, split: str) -> tuple[Sequence[Any], Collate]:
        from datasets import load_dataset

        loaded = load_dataset(self.data, self.config)
        if split not in loaded:
            raise ValueError(f"split must be one of {', '.join(loaded)}, got {split!r} for {self.data!r}. Pass another one.")
        rows, label = loaded[split], self.label_column or "label"
        asked = {"text_column": self.text_column} | ({} if self.task == "causal-lm" else {"label_column": label})
        for name, column in asked.items():
            if column not in rows.column_names:
                fix = "Name the one of text." if name == "text_column" else "Name the one of classes or target texts."
                raise ValueError(f"{name} must be one of {', '.join(rows.column_names)}, got {column!r}. {fix}")
        chosen: Sequence[int] = range(min(self.samples, len(rows)))
        numbers: list[int] | None = None
        config = self._config(checkpoint)
        if self.task == "text-classification" and config.num_labels > 1:
            numbers, chosen = self._classes(rows, label, config, split)
        return rows.select(chosen), self._text_collate(checkpoint, label, numbers)

    def _classes(self, rows: Dataset, label: str, config: Any, split: str) -> tuple[list[int], range]:
        from hf_sharp.vision.data.classes import class_names

        names = class_names(rows, label, split, self.data)
        return numbers_of(names, config), first_rows(rows[label][:], names, self.samples, split)

    def _text_collate(self, checkpoint: str, label: str, numbers: list[int] | None) -> Collate:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        how: dict[str, Any] = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}

        def labels(items: list[Any], batch: dict[str, Any]) -> Tensor:
            if self.task == "causal-lm":
                return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            wanted = [item[label] for item in items]
            if self.task == "seq2seq":
                targets = tokenizer(text_target=wanted, **how)
                return targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
            return torch.tensor(wanted if numbers is None else [numbers[i] for i in wanted])

        def collate(items: list[Any]) -> dict[str, Any]:
            batch = dict(tokenizer([item[self.text_column] for item in items], **how))
            return batch | {"labels": labels(items, batch)}

        return collate

    def _config(self, checkpoint: str) -> Any:
        self._know_our_models()
        with found(checkpoint):
            return AutoConfig.from_pretrained(checkpoint)

    def _know_our_models(self) -> None:
        """Makes the Auto classes know this package's models."""
        if self.task == "image-classification":
            import hf_sharp.vision.models  # noqa: F401
