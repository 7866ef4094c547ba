"""The decoder, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.models.fsmt.modeling_fsmt import Attention, DecoderLayer

from hf_sharp.translation.model import FairseqTransformer


class _Layer:
    """One decoder layer with the keys and values of what it has seen; several hypotheses share a sentence's source.

    Args:
        layer: the model's.
        encoded: (sentences, source length, width).
        hidden: the source's padding, (sentences, source length).
    """

    def __init__(self, layer: DecoderLayer, encoded: Tensor, hidden: Tensor) -> None:
        own: Attention = layer.self_attn
        self.layer, self.cross = layer, layer.encoder_attn
        self.heads, self.scaling = own.num_heads, own.scaling
        projections = (own.q_proj, own.k_proj, own.v_proj)
        self.weight = torch.cat([projection.weight for projection in projections])
        self.bias = torch.cat([projection.bias for projection in projections])
        self.source_keys = self._split(self.cross.k_proj(encoded)).transpose(2, 3).contiguous()
        self.source_values = self._split(self.cross.v_proj(encoded)).contiguous()
        self.hidden = encoded.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None, None]
        self.keys = self.values = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """The next token's states, (sentences, hypotheses, width), from those of the layer below."""
        sentences, hypotheses, width = x.shape
        layer = self.layer
        rows = x.reshape(-1, 1, width)
        query, key, value = (self._split(y) for y in linear(rows, self.weight, self.bias).chunk(3, dim=-1))
        self.keys = torch.cat([self.keys, key], dim=2) if self.keys.numel() else key
        self.values = torch.cat([self.values, value], dim=2) if self.values.numel() else value
        attention = (query * self.scaling @ self.keys.transpose(2, 3)).softmax(-1) @ self.values
        x = layer.self_attn_layer_norm(x + layer.self_attn.out_proj(attention.reshape(sentences, hypotheses, width)))
        query = self._split(self.cross.q_proj(x) * self.cross.scaling)
        attention = (query @ self.source_keys + self.hidden).softmax(-1) @ self.source_values
        merged = attention.transpose(1, 2).reshape(sentences, hypotheses, width)
        x = layer.encoder_attn_layer_norm(x + self.cross.out_proj(merged))
        return layer.final_layer_norm(x + layer.fc2(layer.activation_fn(layer.fc1(x))))

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Go on from these rows of hypotheses; ``sentences`` are those that are left, None for all."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if sentences is not None:
            self.source_keys = self.source_keys.index_select(0, sentences)
            self.source_values = self.source_values.index_select(0, sentences)
            self.hidden = self.hidden.index_select(0, sentences)

    def _split(self, x: Tensor) -> Tensor:
        """(batch, length, width) to (batch, heads, length, width of a head)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class IncrementalDecoder:
    """A model's decoder over one batch of sources, which keeps what it has computed.

    The source's keys and values are computed once per sentence, whatever the number of hypotheses.

    Args:
        model: in evaluation mode.
        sources: tokens, (sentences, source length), padded.
    """

    def __init__(self, model: FairseqTransformer, sources: Tensor) -> None:
        decoder = model.model.decoder
        padding = decoder.padding_idx
        present = sources.ne(padding)
        encoded = model.model.encoder(sources, attention_mask=present.long())[0]
        self.layers = [_Layer(layer, encoded, ~present) for layer in decoder.layers]
        self.tokens, self.scale = decoder.embed_tokens, decoder.embed_scale
        self.positions = decoder.embed_positions.table[padding + 1 :]
        self.projection = decoder.output_projection

    def __call__(self, tokens: Tensor, place: int) -> Tensor:
        """The scores of all symbols.

        Args:
            tokens: the last ones, (sentences, hypotheses).
            place: how many came before.

        Returns:
            Logits, (sentences, hypotheses, symbols).
        """
        x = self.tokens(tokens) * self.scale + self.positions[place]
        for layer in self.layers:
            x = layer(x)
        return self.projection(x)

    def select(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Go on from other hypotheses: rows counted over all sentences; and with these sentences only."""
        for layer in self.layers:
            layer.select(rows, sentences)
