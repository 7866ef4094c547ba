"""ShakeDrop, Yamada et al. (2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ShakeDrop(nn.Module):
    """Random scaling of a residual branch, per image.

    In training the branch is multiplied with ``b + alpha - b alpha`` in the forward and ``b + beta - b beta`` in the
    backward, where b is 1 with probability ``keep`` and else 0, alpha is uniform in (-1, 1) and beta in (0, 1). In
    evaluation it is multiplied with ``keep``, the mean.

    Args:
        keep: probability of leaving the branch as it is, from 0 to 1.

    References:
        Yamada et al., ShakeDrop Regularization for Deep Residual Learning, IEEE Access 2019, eq. 6.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * self.keep
        shape = (len(x), 1, 1, 1)
        kept = torch.rand(1, device=x.device, dtype=x.dtype) < self.keep
        alpha = torch.rand(shape, device=x.device, dtype=x.dtype) * 2 - 1
        beta = torch.rand(shape, device=x.device, dtype=x.dtype)
        one = torch.ones_like(alpha)
        return _Scale.apply(x, torch.where(kept, one, alpha), torch.where(kept, one, beta))


class _Scale(torch.autograd.Function):
    """``x * forward``, whose gradient is multiplied with something else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return x * forward

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None, None
