"""fairseq's label-smoothed cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput

from hf_sharp.translation.model import IGNORED


@dataclass(frozen=True)
class LabelSmoothing:
    """Per token ``(1 - e - e/(V-1)) nll + e/(V-1) sum(nll of all symbols)``: e is spread over the V - 1 wrong symbols.

    Transformers' own smoothing spreads it over all V. For the Trainer's ``compute_loss_func``: the sum over the batch is
    divided by the tokens of the whole optimizer step, over accumulation and ranks.

    Attributes:
        epsilon: 0 to 1; 0.1 is usual.

    Raises:
        ValueError: epsilon is outside of its range.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"label_smoothing must be from 0 to below 1, got {self.epsilon}. Use e.g. 0.1.")

    def __call__(self, outputs: Seq2SeqLMOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss in nats.

        Args:
            outputs: with logits (batch, length, symbols).
            labels: (batch, length), -100 at padding.
            num_items_in_batch: tokens to divide by; by default those of these labels.
        """
        tokens = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        assert outputs.logits is not None
        return self.total(outputs.logits, labels) / tokens

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over all tokens, in nats."""
        log_p = logits.flatten(0, 1).float().log_softmax(-1)
        wrong = self.epsilon / (logits.size(-1) - 1)
        return _Smoothed.apply(log_p, labels.flatten(), 1 - self.epsilon - wrong, wrong)


class _Smoothed(torch.autograd.Function):
    """``-sum(right log_p[label] + wrong sum(log_p))`` over the rows that have a label.

    PyTorch's cross_entropy makes two gradients of the size of the logits here, and adds them; this makes one.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, labels: Tensor, right: float, wrong: float) -> Tensor:
        """Both sums; ``log_p`` is (rows, symbols), ``labels`` (rows,)."""
        kept = labels.ne(IGNORED)
        picked = labels.where(kept, 0).unsqueeze(1)
        ctx.save_for_backward(picked, kept)
        ctx.shape, ctx.right, ctx.wrong = log_p.shape, right, wrong
        rows = right * log_p.gather(1, picked).squeeze(1) + wrong * log_p.sum(1)
        return -rows.where(kept, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Linear in the gradient, and made of PyTorch's operations, so that it can be differentiated again."""
        picked, kept = ctx.saved_tensors
        rows = -gradients[0] * kept.unsqueeze(1)
        return (rows * ctx.wrong).expand(ctx.shape).contiguous().scatter_add_(1, picked, rows * ctx.right), None, None, None
