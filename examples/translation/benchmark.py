"""Words per second of training and sentences per second of beam search, beside fairseq's, on the same model and machine.

    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 python examples/translation/benchmark.py BINARISED --fairseq FAIRSEQ_PYTHON

BINARISED is a folder of ``fairseq-preprocess``. The two sides take turns; the script prints the ratio of each turn and
their median. The model has 3+3 layers of 256; the search uses a checkpoint, given with ``--model``, for both sides.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import Seq2SeqTrainingArguments, set_seed

from hf_sharp.translation.conversion import to_fairseq
from hf_sharp.translation.model import FairseqTransformer, FairseqTransformerConfig
from hf_sharp.translation.preprocessed import load_preprocessed
from hf_sharp.translation.search import BeamSearch
from hf_sharp.translation.trainer import TranslationTrainer

SHAPE = "--encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --decoder-embed-dim 256"
SHAPE += " --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 --encoder-attention-heads 4 --decoder-attention-heads 4"
RECIPE = "--arch transformer_iwslt_de_en --optimizer adam --adam-betas (0.9,0.98) --lr 2e-3 --lr-scheduler inverse_sqrt"
RECIPE += " --warmup-updates 500 --warmup-init-lr 1e-7 --weight-decay 1e-4 --dropout 0.3 --max-tokens 4096 --cpu --no-save"
RECIPE += " --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --share-all-embeddings --num-workers 0"
RECIPE += " --disable-validation --log-format simple --log-interval 1 --seed 1"


def fairseq(python: Path, command: str, *words: str, threads: int) -> str:
    """What a fairseq command prints."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run([python.with_name(command), *words], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def fairseq_words(python: Path, data: str, steps: int, threads: int) -> float:
    """Target tokens per second of fairseq-train, without its first step."""
    out = fairseq(python, "fairseq-train", data, *f"{SHAPE} {RECIPE} --max-update {steps}".split(), threads=threads)
    rows = re.findall(r"wps=([\d.]+).*?wpb=([\d.]+).*?num_updates=(\d+)", out)
    timed = [
        (float(tokens), float(tokens) / float(speed)) for speed, tokens, number in rows if int(number) > 1 and float(speed)
    ]
    return sum(tokens for tokens, _ in timed) / sum(seconds for _, seconds in timed)


class Timed(TranslationTrainer):
    """Notes when each step begins, and its tokens."""

    seen: list[tuple[float, int]]

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """The Trainer's."""
        self.seen.append((time.perf_counter(), int(inputs["labels"].ne(-100).sum())))
        return super().training_step(model, inputs, num_items_in_batch)


def own_words(data: str, steps: int, threads: int) -> float:
    """Target tokens per second of the Trainer, without its first step."""
    torch.set_num_threads(threads)
    set_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        _, numbers, tokenizer = load_preprocessed(data, "de", "en", splits=["train"])
        symbols = len(tokenizer.source)
        config = FairseqTransformerConfig.of_size("small", symbols, symbols, share_embeddings="all", dropout=0.3)
        args = Seq2SeqTrainingArguments(
            folder,
            max_steps=steps + 1,
            learning_rate=2e-3,
            warmup_steps=500,
            adam_beta2=0.98,
            weight_decay=1e-4,
            max_grad_norm=0,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            seed=1,
        )
        trainer = Timed(FairseqTransformer(config), args, train_dataset=numbers["train"])
        trainer.seen = []
        trainer.train()
    times = [moment for moment, _ in trainer.seen]
    return sum(tokens for _, tokens in trainer.seen[1:-1]) / (times[-1] - times[1])


def own_sentences(model: FairseqTransformer, sources: list[list[int]], threads: int) -> float:
    """Sentences per second of `BeamSearch`."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    BeamSearch(5)(model, sources)
    return len(sources) / (time.perf_counter() - start)


def fairseq_sentences(python: Path, data: str, checkpoint: str, threads: int) -> float:
    """Sentences per second of fairseq-generate, as it prints them."""
    search = "--beam 5 --lenpen 1.0 --cpu --max-tokens 4096 --num-workers 0"
    out = fairseq(python, "fairseq-generate", data, "--path", checkpoint, *search.split(), threads=threads)
    return float(re.findall(r"([\d.]+) sentences/s", out)[-1])


def report(what: str, unit: str, pairs: list[tuple[float, float]]) -> None:
    """One line."""
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (median(side) for side in zip(*pairs, strict=True))
    turns = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{what}: {ours:.0f} {unit}, fairseq {theirs:.0f}; ratios {turns}; median {median(ratios):.2f}")


def main() -> None:
    """Takes turns and reports."""
    parser = argparse.ArgumentParser(description="Speed of training and search beside fairseq's.")
    parser.add_argument("binarised", help="a folder of fairseq-preprocess, with one dictionary for both languages")
    parser.add_argument("--fairseq", type=Path, required=True, help="a Python that has fairseq")
    parser.add_argument("--model", help="a trained model's folder, for the search; without it only training is timed")
    parser.add_argument("--steps", type=int, default=10, help="training steps per turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    args = parser.parse_args()
    pairs = []
    for _ in range(args.turns):
        theirs = fairseq_words(args.fairseq, args.binarised, args.steps, args.threads)
        pairs.append((own_words(args.binarised, args.steps, args.threads), theirs))
    report("training", "words/s", pairs)
    if args.model is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        to_fairseq(args.model, f"{folder}/checkpoint.pt")
        model = FairseqTransformer.from_pretrained(args.model)
        _, numbers, _ = load_preprocessed(args.binarised, "de", "en", splits=["test"])
        sources = numbers["test"]["input_ids"][:]
        pairs = []
        for _ in range(args.turns):
            theirs = fairseq_sentences(args.fairseq, args.binarised, f"{folder}/checkpoint.pt", args.threads)
            pairs.append((own_sentences(model, sources, args.threads), theirs))
    report("beam 5", "sentences/s", pairs)


if __name__ == "__main__":
    sys.exit(main())
