"""Batches: every pair once, the budget, the padding, the order; and the run that goes on in mid-epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Seq2SeqTrainingArguments, TrainerCallback, set_seed

from hf_sharp import ASAM
from hf_sharp.translation.batches import Collator, TokenBatchSampler, token_batches
from hf_sharp.translation.pairs import TextSettings, encoded, learnt_tokenizer
from hf_sharp.translation.trainer import SharpTranslationTrainer
from tests.backends.launches import launch
from tests.translation.cases import pairs_of_numbers, small_model

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=4, max_size=80)


@given(
    lengths=LENGTHS, budget=st.integers(40, 400), ranks=st.integers(1, 4), seed=st.integers(0, 5), epoch=st.integers(0, 3)
)
@settings(max_examples=1000, deadline=None)
def test_every_pair_once_over_all_ranks_and_no_batch_above_its_budget(
    lengths: list[tuple[int, int]], budget: int, ranks: int, seed: int, epoch: int
) -> None:
    sources, targets = [a for a, _ in lengths], [b for _, b in lengths]
    whole = len(token_batches(sources, targets, budget, seed=seed))
    if -(-whole // ranks) * ranks > len(lengths):  # there are too few pairs to share out
        with pytest.raises(ValueError, match="must be shared out evenly"):
            TokenBatchSampler(sources, targets, budget, ranks=ranks, seed=seed)
        return
    samplers = [TokenBatchSampler(sources, targets, budget, ranks=ranks, rank=r, seed=seed) for r in range(ranks)]
    seen = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == len(samplers[0])
        for batch in batches:
            longest = max(max(lengths[pair]) for pair in batch)
            assert 0 < len(batch) * longest <= budget
        seen += [pair for batch in batches for pair in batch]
    assert sorted(seen) == list(range(len(lengths)))


def test_epochs_have_the_same_batches_in_another_order() -> None:
    lengths = [1 + i % 30 for i in range(500)]
    sampler = TokenBatchSampler(lengths, lengths, 300, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    assert sorted(first) == sorted(second)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_of_many_have_a_multiple_of_eight_but_for_the_last() -> None:
    lengths = [5] * 100
    assert [len(batch) for batch in token_batches(lengths, lengths, 105)] == [16] * 5 + [20]


def test_collator_pads_with_what_carries_no_loss() -> None:
    batch = Collator()([{"input_ids": [4, 5, 2], "labels": [6, 2]}, {"input_ids": [7, 2], "labels": [8, 9, 2]}])
    assert batch["input_ids"].tolist() == [[4, 5, 2], [7, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[6, 2, -100], [8, 9, 2]]
    assert batch["decoder_input_ids"].tolist() == [[2, 6, 1], [2, 8, 9]]


class Stop(TrainerCallback):
    """Each rank has dropout of its own; saves and stops after a number of steps."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(100 + args.process_index)  # before a resumed run takes up its own

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            assert state.epoch % 1 > 0, "not in the middle of an epoch"
            control.should_save = control.should_training_stop = True


def trained(folder: Path, *, stop: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
    set_seed(0)
    model = small_model(dropout=0.3)
    args = Seq2SeqTrainingArguments(
        str(folder),
        num_train_epochs=3,
        learning_rate=0.01,
        warmup_steps=4,
        seed=5,
        max_grad_norm=0,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SharpTranslationTrainer(
        model, args, train_dataset=pairs_of_numbers(60), max_tokens=40, method=ASAM(rho=0.1), callbacks=[Stop(stop)]
    )
    assert trainer.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    trainer.train(resume_from_checkpoint=resume or None)
    return {name: w.detach().clone() for name, w in model.named_parameters()}


def test_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "cut", stop=7)
    resumed = trained(tmp_path / "cut", resume=True)
    assert all(torch.equal(w, resumed[name]) for name, w in whole.items())


@pytest.mark.slow
def test_resumed_run_is_bit_identical_on_two_processes(tmp_path: Path) -> None:
    launch("translating_resumed", tmp_path)
    whole, resumed = ([torch.load(tmp_path / f"{name}-{r}.pt") for r in range(2)] for name in ("whole", "resumed"))
    for rank in range(2):
        assert all(torch.equal(w, resumed[rank][name]) for name, w in whole[rank].items())
    assert all(torch.equal(w, whole[1][name]) for name, w in whole[0].items())


@pytest.mark.slow
@pytest.mark.skipif(
    "HF_SHARP_MULTI30K" not in os.environ, reason="HF_SHARP_MULTI30K does not name a folder with the data set"
)
def test_padding_on_multi30k() -> None:
    """Of the symbols that the model sees with configs/multi30k; the README has both numbers."""
    pairs = load_dataset(os.environ["HF_SHARP_MULTI30K"], split="train")
    tokenizer = learnt_tokenizer(pairs, TextSettings(merges=6000, joint=True))
    numbers = encoded(pairs, tokenizer, 1024, "Multi30k")
    sources, targets = ([len(row) for row in numbers[column]] for column in ("input_ids", "labels"))
    batches = token_batches(sources, targets, 4096)
    padded = sum(len(b) * (max(sources[i] for i in b) + max(targets[i] for i in b)) for b in batches)
    padding = 1 - (sum(sources) + sum(targets)) / padded
    assert (len(batches), padding) == (130, pytest.approx(0.064, abs=5e-4))
    assert padding < 0.15
