"""Sinusoidal positions as fairseq counts them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Sines in the first half of the channels, cosines in the second; not trained, not saved.

    Tokens are counted from ``padding + 1`` and padding is skipped, so the side on which a sentence is padded makes no
    difference. Padding has the zero vector.

    Args:
        length: the longest sentence, in tokens.
        width: channels.
        padding: the padding token.
    """

    table: Tensor

    def __init__(self, length: int, width: int, padding: int) -> None:
        super().__init__()
        self.length, self.width, self.padding_idx = length, width, padding
        # In the precision in which the weights beside it are made: from_pretrained(dtype=...) sets it as the default.
        self.register_buffer("table", self.computed().to(torch.get_default_dtype()), persistent=False)

    def computed(self) -> Tensor:
        """The table in float32, (padding + 1 + length, width)."""
        half = self.width // 2
        rates = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
        angles = torch.arange(self.padding_idx + 1 + self.length, dtype=torch.float).unsqueeze(1) * rates
        table = torch.cat([angles.sin(), angles.cos(), torch.zeros(len(angles), self.width % 2)], dim=1)
        table[self.padding_idx] = 0
        return table

    def forward(self, tokens: Tensor, *, cache_length: int = 0, past_key_values_length: int = 0) -> Tensor:
        """The positions' vectors.

        Args:
            tokens: (batch, length).
            cache_length: how many tokens of each sentence came before.
            past_key_values_length: the same, as FSMT names it before transformers 5.24.

        Returns:
            (batch, length, width).

        Raises:
            ValueError: a sentence is longer than the table.
        """
        before = cache_length + past_key_values_length
        if before + tokens.size(1) > self.length:
            raise ValueError(
                f"A sentence must have at most {self.length} tokens, got {before + tokens.size(1)}. "
                "Shorten it, or make a model with larger max_position_embeddings."
            )
        present = tokens.ne(self.padding_idx)
        places = present.cumsum(1).add_(before + self.padding_idx)
        return self.table[places.where(present, self.padding_idx)]
