"""The processes that measure together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK_BYTES = 25 * 2**20


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; each holds all weights and its own share of the samples.

    Attributes:
        rank: from 0.
        size: how many there are; 1 leaves all communication out.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def present(cls) -> Ranks:
        """The processes of the default group, or this one alone where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over the processes, in place, in pieces of at most 25 MB."""
        if self.size == 1:
            return
        run: list[Tensor] = []
        for x in tensors:
            if run and (run[0].dtype != x.dtype or sum(_bytes(y) for y in [*run, x]) > _CHUNK_BYTES):
                _reduce(run)
                run = []
            run.append(x)
        if run:
            _reduce(run)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A ValueError that one process meets inside is met by all: one alone would leave the others waiting."""
        met: ValueError | None = None
        try:
            yield
        except ValueError as error:
            met = error
        everyone: list[ValueError | None] = [met]
        if self.size > 1:
            everyone *= self.size
            dist.all_gather_object(everyone, met)
        first = next((theirs for theirs in everyone if theirs is not None), None)
        if first is not None:
            raise first

    def gathered(self, values: list[Any]) -> list[Any]:
        """The values of all processes, in the order in which one process would have met them: turn by turn."""
        if self.size == 1:
            return values
        everyone: list[list[Any]] = [[] for _ in range(self.size)]
        dist.all_gather_object(everyone, values)
        longest = max(map(len, everyone))
        return [theirs[i] for i in range(longest) for theirs in everyone if i < len(theirs)]


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _reduce(tensors: list[Tensor]) -> None:
    flat = torch.cat([x.reshape(-1) for x in tensors])
    dist.all_reduce(flat)
    for x, total in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
        x.copy_(total.view(x.shape))
