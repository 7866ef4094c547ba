"""Models and images as the benchmarks run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import transformers
from torch import Tensor, nn
from torchvision.models import resnet18

Batch: TypeAlias = dict[str, Tensor]


class ImageClassifier(nn.Module):
    """A torchvision network that the Trainer can train."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Batch:
        """Loss and logits, (batch, classes), of images, (batch, 3, height, width), and labels, (batch,)."""
        logits = self.network(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def vit_tiny() -> nn.Module:
    """ViT-Ti/16 at 224 x 224: 5.7 million weights in 200 parameters."""
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, patch_size=16, num_labels=1000
    )
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit_tiny": vit_tiny,
    "resnet18": lambda: ImageClassifier(resnet18()),
}


def images(size: int, device: torch.device | str = "cpu", classes: int = 1000) -> Batch:
    """One batch of random images."""
    pixels = torch.randn(size, 3, 224, 224, device=device)
    return {"pixel_values": pixels, "labels": torch.randint(classes, (size,), device=device)}
