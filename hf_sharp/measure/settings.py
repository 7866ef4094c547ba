"""How a loss is taken: the settings that all quantities share, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from hf_sharp.measure.stillness import STATISTICS
from hf_sharp.methods.checks import above, one_of
from hf_sharp.parameters import Perturb

LossOf: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""Takes the model and a batch on the model's device and returns the batch's mean loss."""
HVP = ("exact", "difference")


@dataclass(frozen=True)
class How:
    """How a loss is taken, the same for every quantity.

    Args:
        statistics: what BatchNorm divides by: ``"running"`` averages, as in evaluation, or the ``"batch"``'s own, as in
            training. Dropout is off in both.
        hvp: how Hessian products are taken: ``"exact"``, by double backward, or ``"difference"``, the central difference of
            two gradients, where an operation has no second derivative.
        step: the length of that difference in weight space, > 0; None: the cube root of the precision times the length of
            the weights.
        perturb: which parameters count: see `hf_sharp.parameters.describe`. The Hessian is that of these alone.
        seed: of every random direction.
    """

    statistics: str = "running"
    hvp: str = "exact"
    step: float | None = None
    perturb: Perturb = None
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(STATISTICS, "statistics", self.statistics)
        one_of(HVP, "hvp", self.hvp)
        if self.step is not None:
            above(0, "step", self.step, example="0.01")


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a transformers model returns for a batch with labels.

    Raises:
        ValueError: it returns none.
    """
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    loss = output.get("loss") if isinstance(output, Mapping) else None
    if loss is None:
        raise ValueError(
            f"The model must return a loss, got {type(output).__name__} of {type(model).__name__} without one. "
            "Load a class with a head for the task and give its batches labels, or pass loss_of."
        )
    return loss
