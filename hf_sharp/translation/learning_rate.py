"""fairseq's inverse-square-root learning rate."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def inverse_sqrt(optimizer: Optimizer, warmup: int, start: float = 1e-7) -> LambdaLR:
    """A straight line from ``start`` to the optimizer's learning rate over the warm-up, then ``1 / sqrt(steps)``.

    Args:
        optimizer: its learning rate is the peak.
        warmup: optimizer steps, at least 1.
        start: the first step's learning rate.

    Raises:
        ValueError: a number is out of its range.
    """
    if warmup < 1:
        raise ValueError(f"warmup_steps must be at least 1, got {warmup}. Use e.g. 4000.")
    if start < 0:
        raise ValueError(f"The first learning rate must be >= 0, got {start}. Use e.g. 1e-7.")
    peaks = [group["lr"] for group in optimizer.param_groups]

    def factor(peak: float) -> Callable[[int], float]:
        def at(step: int) -> float:
            if step < warmup:
                return (start + (peak - start) * step / warmup) / peak if peak else 1.0
            return (warmup / step) ** 0.5

        return at

    return LambdaLR(optimizer, [factor(peak) for peak in peaks])
