"""DenseNets, Huang et al. (2017)."""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from hf_sharp.vision.models.base import AbstractImageClassifier, check_counts, check_pixels, conv, pooled


@strict
class DenseNetConfig(PreTrainedConfig):
    """The shape of a DenseNet with bottlenecks and compression.

    Args:
        depths: layers per dense block.
        growth: channels that each layer adds.
        stem: ``"cifar"`` (one 3x3 convolution) or ``"imagenet"`` (7x7 with stride 2, and pooling).
    """

    model_type = "densenet"

    depths: list[int] | tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: str = "cifar"

    def validate_shape(self) -> None:
        """Raises ValueError where the stem is unknown."""
        if self.stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {self.stem!r}. Pass e.g. stem='cifar'.")
        check_counts("depths", self.depths)
        check_counts("growth", [self.growth])


class DenseLayer(nn.Module):
    """What a dense block adds to its channels: 1x1 and 3x3 convolution, each behind norm and ReLU."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], dim=1)


class DenseNetForImageClassification(AbstractImageClassifier):
    """A DenseNet, for small images by default."""

    config_class = DenseNetConfig

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__(config)
        channels = 2 * config.growth
        if config.stem == "cifar":
            self.stem: nn.Module = conv(3, channels, 3)
        else:
            head = [conv(3, channels, 7, 2), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
            self.stem = nn.Sequential(*head)
        layers: list[nn.Module] = []
        for i, depth in enumerate(config.depths):
            if i:
                halved = [nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                layers.append(nn.Sequential(*halved))
                channels //= 2
            for _ in range(depth):
                layers.append(DenseLayer(channels, config.growth))
                channels += config.growth
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.finish(channels)

    def features(self, pixel_values: Tensor) -> Tensor:
        least = 2 ** (len(self.config.depths) - 1)
        check_pixels(pixel_values, least if self.config.stem == "cifar" else 4 * least - 3)  # that stem rounds up, twice
        return pooled(functional.relu(self.norm(self.layers(self.stem(pixel_values)))))
