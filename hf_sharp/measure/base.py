"""What a quantity is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_sharp.measure.result import Found, Result, Values, mean_and_error
from hf_sharp.measure.sharding import check_groups
from hf_sharp.measure.stillness import normalisers
from hf_sharp.measure.surface import Surface


@dataclass(frozen=True)
class AbstractQuantity(ABC):
    """Something to measure on a `Surface`; the fields are its settings.

    A quantity of your own is a frozen dataclass with ``take`` and a ``name``; it needs no registration.
    """

    name: ClassVar[str]

    @abstractmethod
    def take(self, f: Surface) -> Found:
        """The numbers."""

    def check(self, f: Surface) -> None:  # noqa: B027 - most have nothing to say
        """Look whether it can be taken on such a surface, without a pass.

        Raises:
            ValueError: the settings do not suit the model, the batches or the way that the loss is taken.
        """

    def measure(self, f: Surface) -> Result:
        """The numbers, with what they were measured on."""
        self.check(f)
        before = Counter(f.passes)
        try:
            found = self.take(f)
        finally:
            f.release()
        return Result(self.name, found, dict(vars(self)), about(f) | {"passes": dict(f.passes - before)})


def check_size(f: Surface, m: int | None) -> None:
    """Raises ValueError where no group of m samples can be looked at."""
    check_groups(f.backend.whole)
    if m is not None and m > f.batches.largest:
        raise ValueError(f"m must be at most the batch size, got {m}, which no batch holds. Use a larger batch size.")


def about(f: Surface) -> dict[str, Any]:
    """What a loss was taken on, and how."""
    norms = normalisers(f.model)
    return {
        "terms": f.batches.total,
        "processes": f.ranks.size,
        "parameters": f.dimension,
        "dtype": str(f.space.like[0].dtype).removeprefix("torch."),
        "device": f.device.type,
        "batch_norm": f"{f.how.statistics} statistics in {len(norms)} layers" if norms else "none in the model",
        "dropout": "frozen mask" if f.draws else "off",
        "hvp": f.how.hvp,
        "step": f.how.step,
        "perturb": f.how.perturb,
        "seed": f.how.seed,
    }


def over_groups(f: Surface, m: int | None, measured: Callable[[Surface], Values]) -> Found:
    """Means over all processes' m-sized groups of samples, with their standard errors and the single numbers."""
    with torch.no_grad():
        rows = f.ranks.gathered([measured(group) for group in f.groups(m)])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    pairs = {name: mean_and_error(column) for name, column in columns.items()}
    values = {name: pair[0] for name, pair in pairs.items()}
    return Found(values, {name: pair[1] for name, pair in pairs.items()}, {"groups": columns})
