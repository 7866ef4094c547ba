"""The samples that a loss is taken over: batches of a loader, read once and shared out over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch import Tensor

from hf_sharp.measure.ranks import Ranks

IGNORED = -100
Count: TypeAlias = Callable[[Any], int]
"""How many terms a batch's loss is the mean of."""


@dataclass(frozen=True)
class Batches:
    """This process's batches, and how many terms the loss of each is the mean of.

    Attributes:
        held: the batches, on the CPU as the loader gave them.
        counts: one number per batch.
        total: the sum of the counts over all processes.
        largest: the samples of the largest batch of any process.
        filler: some batch, and how many batches every process must have where all must take part in every pass.
    """

    held: tuple[Any, ...]
    counts: tuple[int, ...]
    total: int
    largest: int = 0
    filler: tuple[Any, int] = (None, 0)

    def filled(self) -> Batches:
        """The same with as many batches on every process, those too many with a count of 0."""
        batch, rounds = self.filler
        missing = max(0, rounds - len(self.held))
        return replace(self, held=self.held + (batch,) * missing, counts=self.counts + (0,) * missing)

    def groups(self, m: int | None) -> list[Batches]:
        """Slices of m samples from each batch, each a set of its own; a shorter rest is left out. None: whole batches."""
        if m is None:
            return [Batches((batch,), (n,), n) for batch, n in zip(self.held, self.counts, strict=True)]
        slices = []
        for batch, count in zip(self.held, self.counts, strict=True):
            size = _size(batch)
            for start in range(0, size - m + 1, m):
                part = _sliced(batch, size, slice(start, start + m))
                n = m if count == size else count_terms(part)
                slices.append(Batches((part,), (n,), n))
        return slices


def read(loader: Iterable[Any], ranks: Ranks, *, samples: int | None = None, count: Count | None = None) -> Batches:
    """The batches of a loader that are this process's: every n-th one, where there are n processes.

    Each process goes through the whole loader, which must give all of them the same batches. The batches are kept in
    memory, so a loader that shuffles or augments is read once and then stands still.

    Args:
        loader: gives mappings of tensors (or whatever the loss takes); not one that was prepared for several processes.
        ranks: the processes.
        samples: read whole batches until there are this many samples that the loss is taken of; None: all.
        count: see `Count`; by default `count_terms`.

    Raises:
        ValueError: the loader is empty, or was prepared for several processes.
    """
    if isinstance(loader, DataLoaderShard | DataLoaderDispatcher) and ranks.size > 1:
        raise ValueError(
            "The loader must give every process all batches, got a prepared one, which shares them out and repeats samples "
            "to even them up. Pass the loader from before accelerator.prepare."
        )
    held, counts, filler = [], [], None
    sizes: list[int] = []
    total, met = 0, 0
    for batch in loader:
        n = (count or count_terms)(batch)
        if not n:  # the mean of no terms is not a number
            continue
        if len(sizes) % ranks.size == ranks.rank:
            held.append(batch)
            counts.append(n)
        sizes.append(_size(batch))
        total, met, filler = total + n, met + sizes[-1], batch
        if samples is not None and met >= samples:
            break
    if total == 0:
        raise ValueError(
            f"The loader must hold at least one sample, got {loader!r} without any. Check the data set's split."
        )
    return Batches(tuple(held), tuple(counts), total, max(sizes), (filler, -(-len(sizes) // ranks.size)))


def count_terms(batch: Any) -> int:
    """The labels that count, where ``labels`` has one per token; else the samples."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    return _size(batch)


def count_next_tokens(batch: Any) -> int:
    """The labels that a causal language model is scored on: all but each sequence's first."""
    return int((batch["labels"][..., 1:] != IGNORED).sum())


def _size(batch: Any) -> int:
    """The samples of a batch: the length of its first tensor."""
    found = next(_tensors(batch), None)
    if found is None or found.ndim == 0:
        raise ValueError(f"A batch must hold a tensor with one row per sample, got {batch!r}. Let the collator stack them.")
    return len(found)


def _tensors(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for value in batch:
            yield from _tensors(value)


def _sliced(batch: Any, size: int, rows: slice) -> Any:
    """The rows of every tensor that has one row per sample; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, Mapping):
        return {key: _sliced(value, size, rows) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_sliced(value, size, rows) for value in batch)
    return batch


def on(device: torch.device, batch: Any) -> Any:
    """The batch with its tensors on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: on(device, value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(on(device, value) for value in batch)
    return batch
