"""Batches of sentence pairs, cut by the number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from hf_sharp.translation.dictionary import EOS, PAD
from hf_sharp.translation.model import IGNORED


@dataclass(frozen=True)
class Collator:
    """Puts pairs of numbers into tensors, padded on the right.

    Source padding is masked; target padding is -100 in the labels, which no loss counts.

    Attributes:
        generating: leave ``decoder_input_ids`` out.
    """

    generating: bool = False

    def __call__(self, pairs: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """A batch of rows with ``input_ids`` and ``labels``.

        Returns:
            ``input_ids`` and ``attention_mask`` (batch, longest source), ``labels`` and ``decoder_input_ids``, the labels
            behind ``</s>``, (batch, longest target).
        """
        sources = _padded([pair["input_ids"] for pair in pairs], PAD)
        labels = _padded([pair["labels"] for pair in pairs], IGNORED)
        batch = {"input_ids": sources, "attention_mask": sources.ne(PAD).long(), "labels": labels}
        if not self.generating:
            batch["decoder_input_ids"] = _padded([[EOS, *pair["labels"][:-1]] for pair in pairs], PAD)
        return batch


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])


def check_length(symbols: int, longest: int, where: str, *, shortest: int = 2) -> None:
    """Raises ValueError unless a sentence has symbols beside ``</s>``, and no more than the model has positions."""
    if symbols < shortest:
        raise ValueError(f"A sentence must not be empty, got an empty one in {where}. Remove the pair.")
    if symbols > longest:
        raise ValueError(
            f"A sentence must have at most {longest} symbols with </s>, got {symbols} in {where}. "
            "Remove the pair, or give the model larger max_position_embeddings."
        )


def token_batches(
    sources: Sequence[int], targets: Sequence[int], budget: int, *, multiple: int = 8, seed: int = 0
) -> list[list[int]]:
    """Pairs of similar length together, as many as the budget holds, as fairseq cuts them.

    Args:
        sources: length of each source, in tokens.
        targets: length of each target.
        budget: tokens per batch, counted as pairs times the longest sentence in the batch, on either side.
        multiple: batches of more pairs than this have a multiple of it, but for the last.
        seed: of the order among pairs of the same lengths.

    Returns:
        The numbers of the pairs, each once.

    Raises:
        ValueError: a pair is longer than the budget.
    """
    lengths = np.maximum(np.asarray(sources, dtype=np.int64), np.asarray(targets, dtype=np.int64))
    if len(lengths) and lengths.max() > budget:
        raise ValueError(
            f"max_tokens must hold the longest sentence, got {budget} for {lengths.max()} symbols in pair "
            f"{int(lengths.argmax())}. Raise max_tokens to {lengths.max()}."
        )
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[np.lexsort((np.asarray(targets)[order], np.asarray(sources)[order]))]
    batches: list[list[int]] = []
    open_batch: list[int] = []
    longest = 0
    for pair in order.tolist():
        grown = max(longest, int(lengths[pair]))
        if open_batch and (len(open_batch) + 1) * grown > budget:
            whole = len(open_batch) - len(open_batch) % multiple if len(open_batch) > multiple else len(open_batch)
            batches.append(open_batch[:whole])
            open_batch = open_batch[whole:]
            grown = max([int(lengths[pair]), *(int(lengths[other]) for other in open_batch)])
            if open_batch and (len(open_batch) + 1) * grown > budget:
                batches.append(open_batch)
                open_batch, grown = [], int(lengths[pair])
        open_batch.append(pair)
        longest = grown
    return [*batches, open_batch] if open_batch else batches


class TokenBatchSampler(Sampler[list[int]]):
    """This rank's batches of an epoch: the same batches in every epoch, in an order of the epoch's own.

    All ranks together see each pair once per epoch, and have the same number of batches: where the batches do not divide,
    the largest are cut in two. The order depends on seed and epoch alone, so a resumed run goes on with the right batch.

    Args:
        sources, targets: length of each sentence, in tokens.
        budget: tokens per batch, see `token_batches`.
        ranks: how many processes train together.
        rank: which of them this is.
        seed: of the order.
        shuffle: whether batches come in random order; otherwise short sentences come first.

    Raises:
        ValueError: a pair is longer than the budget, or there are too few pairs for the ranks.
    """

    def __init__(
        self,
        sources: Sequence[int],
        targets: Sequence[int],
        budget: int,
        *,
        ranks: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.batches = token_batches(sources, targets, budget, seed=seed)
        needed = -(-len(self.batches) // ranks) * ranks
        if needed > len(sources) or not self.batches:
            raise ValueError(
                f"Pairs must be shared out evenly, got {len(sources)} in {len(self.batches)} batches for {ranks} processes. "
                "Use fewer processes or a larger max_tokens."
            )
        while len(self.batches) % ranks:
            largest = max(range(len(self.batches)), key=lambda number: len(self.batches[number]))
            whole = self.batches[largest]
            self.batches[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
        self.ranks, self.rank, self.seed, self.shuffle, self.epoch = ranks, rank, seed, shuffle, 0

    def __len__(self) -> int:
        return len(self.batches) // self.ranks

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.batches))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(order))
        for number in order[self.rank :: self.ranks]:
            yield self.batches[number]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the Trainer calls it before each epoch."""
        self.epoch = epoch
