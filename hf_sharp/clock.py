"""Where training stands, as schedules and methods may know it."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass(frozen=True)
class Clock:
    """The moment of one optimizer step.

    Attributes:
        step: optimizer steps already taken, from 0.
        optimizer: the one whose learning rate (of its first parameter group) is meant.
        total: optimizer steps of the whole training, or None where nobody said.
    """

    step: int
    optimizer: Optimizer
    total: int | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training.

        Raises:
            ValueError: they are not known.
        """
        if self.total is None:
            raise ValueError("The number of training steps must be known, got none. Pass SharpStep(..., steps=...).")
        return self.total

    @property
    def progress(self) -> float:
        """The share of training that is over: 0 at the first step, 1 at the last."""
        return min(1.0, self.step / max(1, self.steps - 1))

    @property
    def lr(self) -> float:
        """The learning rate of this step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def lr_max(self) -> float:
        """The peak learning rate: the scheduler's ``max_lr`` or ``initial_lr``, or the present one without scheduler."""
        group = self.optimizer.param_groups[0]
        return float(group.get("max_lr", group.get("initial_lr", group["lr"])))
