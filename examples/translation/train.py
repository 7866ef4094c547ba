"""Train a translation model, sharpness-aware or not, and score it.

    python examples/translation/train.py configs/numbers/asam.yaml
    python examples/translation/train.py configs/multi30k/sam.yaml --data my/multi30k --rho 0.05 --output_dir runs/sam
    accelerate launch --num_processes 2 examples/translation/train.py configs/iwslt14/asam.yaml

The first words are YAML files (``defaults.yaml`` beside them is read before); flags that follow win. Beside the model,
``output_dir`` then holds the test set's ``sources.txt``, ``predictions.txt`` and ``references.txt``, and ``results.json``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, set_seed

from hf_sharp import SharpnessArguments
from hf_sharp.evaluation.bleu import as_row, score
from hf_sharp.leaving import leave
from hf_sharp.methods.checks import whole
from hf_sharp.translation.averaging import Saved, check_average, last_checkpoints, load_average
from hf_sharp.translation.configuration import flags
from hf_sharp.translation.data import TranslationData, check_tokenizer, load_data, load_tokenizer
from hf_sharp.translation.files import replaced
from hf_sharp.translation.loss import LabelSmoothing
from hf_sharp.translation.model import FairseqTransformer, FairseqTransformerConfig
from hf_sharp.translation.pairs import TextSettings
from hf_sharp.translation.search import BeamSearch
from hf_sharp.translation.tokenizer import TranslationTokenizer
from hf_sharp.translation.trainer import FairseqRecipe, SharpTranslationTrainer, TranslationTrainer, check_arguments


@dataclass
class TranslationArguments:
    """Data, model and search."""

    data: str = field(
        default="numbers",
        metadata={"help": "'numbers'; a name or folder for load_dataset; or a folder of fairseq-preprocess."},
    )
    source: str = field(default="de", metadata={"help": "The language to translate from."})
    target: str = field(default="en", metadata={"help": "The language to translate to."})
    data_config: str | None = field(default=None, metadata={"help": "The data set's configuration, as 'de-en' of wmt16."})
    moses: bool | None = field(default=None, metadata={"help": "Tokenise (true), or take tokens between blanks."})
    lower: bool | None = field(default=None, metadata={"help": "Lower-case (true)."})
    merges: int | None = field(default=None, metadata={"help": "Merges of the subwords (10000); 0 for whole words."})
    joint: bool | None = field(default=None, metadata={"help": "One dictionary for both languages (false)."})
    detokenize: bool | None = field(default=None, metadata={"help": "Undo Moses' tokens for sacreBLEU, chrF (true)."})
    tokenizer: str | None = field(default=None, metadata={"help": "A tokenizer's folder, instead of learning one."})
    size: str = field(default="iwslt", metadata={"help": "tiny, small or iwslt."})
    share_embeddings: str = field(default="decoder", metadata={"help": "all, decoder or none."})
    dropout: float = field(default=0.3, metadata={"help": "Dropout, 0 to 1."})
    positions: int = field(default=1024, metadata={"help": "Symbols in the longest sentence."})
    max_tokens: int = field(default=4096, metadata={"help": "Tokens per batch and device."})
    label_smoothing: float = field(default=0.1, metadata={"help": "In fairseq's form; 0 for none."})
    first_learning_rate: float = field(default=1e-7, metadata={"help": "Where the warm-up starts."})
    average: int = field(default=0, metadata={"help": "How many last checkpoints to average; 0 for the last weights."})
    beam: int = field(default=5, metadata={"help": "Hypotheses that the search follows."})
    length_penalty: float = field(default=1.0, metadata={"help": "Above 1 favours long translations."})
    longest: int = field(default=200, metadata={"help": "Tokens of the longest translation."})
    patience: float = field(default=1.0, metadata={"help": "Above 1 lets the search go on; 1 is fairseq's."})

    def __post_init__(self) -> None:
        """Checks what would otherwise be met after the data or the training."""
        self.text()
        self.searches()
        LabelSmoothing(self.label_smoothing)
        self.config(8, 8)
        whole(0, "average", self.average)

    def searches(self) -> dict[str, BeamSearch]:
        """The searches of the test set, by name."""
        return {
            "greedy": BeamSearch(1, longest=self.longest),
            f"beam {self.beam}": BeamSearch(self.beam, self.length_penalty, self.patience, self.longest),
        }

    def config(self, source: int, target: int) -> FairseqTransformerConfig:
        """The model's shape, for dictionaries of these sizes."""
        return FairseqTransformerConfig.of_size(
            self.size,
            source,
            target,
            share_embeddings=self.share_embeddings,
            dropout=self.dropout,
            max_position_embeddings=self.positions,
            langs=[self.source, self.target],
        )

    def text(self) -> TextSettings:
        """How text becomes symbols."""
        return TextSettings(self.source, self.target, **self.chosen())

    def chosen(self) -> dict[str, Any]:
        """The settings of the text that were given."""
        names = ("moses", "lower", "merges", "joint", "detokenize")
        return {name: vars(self)[name] for name in names if vars(self)[name] is not None}


@dataclass
class MethodArguments(SharpnessArguments):
    """The method; 'none' for the plain Trainer."""

    def __post_init__(self) -> None:
        """Checks the method, where there is one."""
        if self.sharpness != "none":
            super().__post_init__()


def prepare(task: TranslationArguments) -> TranslationData:
    """The pairs as text, the same as numbers, and the tokenizer that made them."""
    tokenizer = None if task.tokenizer is None else load_tokenizer(task.tokenizer)
    if tokenizer is not None:
        check_tokenizer(tokenizer, str(task.tokenizer), task.text(), task.chosen())
    return load_data(task.data, task.text(), task.positions, tokenizer=tokenizer, name=task.data_config)


def build(task: TranslationArguments, tokenizer: TranslationTokenizer) -> FairseqTransformer:
    """A new model for the tokenizer's dictionaries."""
    config = task.config(len(tokenizer.source), len(tokenizer.target))
    config.dictionaries = tokenizer.fingerprint
    return FairseqTransformer(config)


def made(task: TranslationArguments, args: Seq2SeqTrainingArguments, method: MethodArguments, data: TranslationData) -> Any:
    """The Trainer, with a new model."""
    recipe = {
        "train_dataset": data.numbers["train"],
        "eval_dataset": data.numbers["validation"],
        "processing_class": data.tokenizer,
        "max_tokens": task.max_tokens,
        "label_smoothing": task.label_smoothing,
        "first_learning_rate": task.first_learning_rate,
    }
    model = build(task, data.tokenizer)
    if method.sharpness == "none":
        return TranslationTrainer(model, args, **recipe)
    return SharpTranslationTrainer(model, args, **recipe, **method.trainer_kwargs())


def clip_as_the_recipe(args: Seq2SeqTrainingArguments) -> None:
    """Lets DeepSpeed clip at ``max_grad_norm``, whatever the file of ``accelerate launch`` says: it must be one number."""
    if args.deepspeed_plugin is not None and not args.deepspeed:
        args.deepspeed_plugin.hf_ds_config.config["gradient_clipping"] = "auto"


def save(trainer: FairseqRecipe, model: FairseqTransformer) -> None:
    """Writes the model and its tokenizer; under FSDP2 the Trainer itself might write pieces only, or nothing."""
    if model is trainer.model:
        trainer.save_model()
    elif trainer.is_world_process_zero():
        model.save_pretrained(trainer.args.output_dir)
        trainer.processing_class.save_pretrained(trainer.args.output_dir)


def finished(trainer: FairseqRecipe, average: int, saved: Saved) -> FairseqTransformer:
    """The model at the end, whole in each process, averaged where that is wanted, and saved."""
    model = trainer.whole_model()
    save(trainer, model)
    if average:
        load_average(model, last_checkpoints(trainer.args.output_dir, average, saved))
        save(trainer, model)
    return model


def translate(
    trainer: FairseqRecipe, model: FairseqTransformer, sources: Sequence[Sequence[int]], search: BeamSearch
) -> list[list[int]]:
    """The translations of all sources, each process doing its share."""
    ranks, rank = trainer.args.world_size, trainer.args.process_index
    own = search(model, sources[rank::ranks], progress=rank == 0)
    numbered = gather_object([(rank + ranks * i, hypothesis.tokens) for i, hypothesis in enumerate(own)])
    return [tokens for _, tokens in sorted(numbered)]


def write_lines(file: Path, lines: Sequence[str]) -> None:
    """One line per sentence."""
    with replaced(file) as new:
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def report(
    trainer: FairseqRecipe, model: FairseqTransformer, data: TranslationData, searches: dict[str, BeamSearch], seconds: float
) -> None:
    """Translates the test set, and writes and prints what came out."""
    test, references, tokenizer = data.numbers["test"], data.references("test"), data.tokenizer
    results: dict[str, object] = {
        "seconds": seconds,
        "validation": trainer.likelihood(data.numbers["validation"], model),
    }
    for name, search in searches.items():
        found = translate(trainer, model, test["input_ids"], search)
        words = [tokenizer.decoded(row) for row in found]
        texts = [tokenizer.text(line) for line in words]
        scores = score(texts, references, token_hypotheses=words, token_references=test["target"])
        results[name] = as_row(scores)
        if trainer.is_world_process_zero():
            print(f"test, {name}: {scores}", flush=True)
    if trainer.is_world_process_zero():
        seen = set(data.numbers["train"]["target"])
        print(f"test references that occur in training: {sum(target in seen for target in test['target'])} of {len(test)}")
        folder = Path(trainer.args.output_dir)
        write_lines(folder / "sources.txt", data.sources("test"))
        write_lines(folder / "predictions.txt", texts)
        write_lines(folder / "references.txt", references)
        write_lines(folder / "results.json", [json.dumps(results, indent=2)])
        print(f"trained in {seconds:.0f} s; model, translations and results: {folder}", flush=True)


def main(given: Sequence[str] | None = None) -> None:
    """Trains, translates the test set, and reports."""
    parser = HfArgumentParser((TranslationArguments, Seq2SeqTrainingArguments, MethodArguments))
    task, args, method = parser.parse_args_into_dataclasses(flags(sys.argv[1:] if given is None else given))
    check_arguments(args)
    check_average(task.average, args)
    clip_as_the_recipe(args)
    set_seed(args.seed)
    with args.main_process_first(desc="the data"):
        data = prepare(task)
    trainer = made(task, args, method, data)
    trainer.check_batches(data.numbers["validation"], "the validation split")  # also where only the end asks for it
    saved = Saved()
    trainer.add_callback(saved)
    steps = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
    check_average(task.average, args, steps)
    start = time.perf_counter()
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume in ("True", "true") else resume)
    seconds = time.perf_counter() - start
    report(trainer, finished(trainer, task.average, saved), data, task.searches(), seconds)


if __name__ == "__main__":
    main()
    leave()
