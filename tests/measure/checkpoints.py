"""A checkpoint to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import BitImageProcessor, ViTConfig, ViTForImageClassification


def checkpoint(folder: Path, names: Sequence[str], seed: int = 0) -> str:
    """A tiny ViT with these classes and random weights, and its processor."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = ViTForImageClassification(config)
    nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)
    BitImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False).save_pretrained(folder)
    return str(folder)
