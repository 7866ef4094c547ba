"""What each rank of the test of translation on several processes runs: three steps of SAM, of four batches each.

    torchrun --nproc-per-node 2 -m tests.workers.translating FOLDER

Writes ``RANKS.pt`` with the weights at the end and the validation figures. The ranks together take the same batches, so
that every number of ranks that divides four must end at the same weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments

from hf_sharp.translation.trainer import SharpTranslationTrainer
from tests.translation.cases import pairs_of_numbers, small_model

RANKS, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def main() -> None:
    """Trains, evaluates, and writes what came out."""
    folder = Path(sys.argv[1])
    arguments = Seq2SeqTrainingArguments(
        str(folder),
        max_steps=3,
        gradient_accumulation_steps=4 // RANKS,
        learning_rate=0.5,
        warmup_steps=2,
        optim="sgd",
        weight_decay=0.0,
        max_grad_norm=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.manual_seed(0)
    model = small_model(dropout=0.0)
    data = pairs_of_numbers(52)
    trainer = SharpTranslationTrainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        max_tokens=24,
        first_learning_rate=0.1,
        method="{name: sam, rho: 0.1}",
    )
    sampler = trainer._sampler(data, shuffle=True)
    assert (sampler.ranks, len(sampler.batches) % 4) == (RANKS, 0)  # else the ranks would cut the batches in other ways
    assert trainer.accelerator.num_processes == RANKS
    trainer.train()
    figures = trainer.likelihood(data)
    if RANK == 0:
        weights = {name: w.detach() for name, w in model.named_parameters()}
        torch.save({"weights": weights, "figures": figures}, folder / f"{RANKS}.pt")


if __name__ == "__main__":
    main()
