"""FSMT's layers, with activations that can be computed anew in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.fsmt import modeling_fsmt


class EncoderLayer(GradientCheckpointingLayer, modeling_fsmt.EncoderLayer):
    """FSMT's, for ``gradient_checkpointing``."""


class DecoderLayer(GradientCheckpointingLayer, modeling_fsmt.DecoderLayer):
    """FSMT's, for ``gradient_checkpointing``."""


def make_checkpointable(layers: Iterable[nn.Module]) -> None:
    """Turns FSMT's layers into these, with the weights that they have: making them anew would draw other ones."""
    for layer in layers:
        layer.__class__ = EncoderLayer if isinstance(layer, modeling_fsmt.EncoderLayer) else DecoderLayer
