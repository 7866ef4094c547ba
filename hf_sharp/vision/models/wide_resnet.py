"""Wide ResNets, Zagoruyko and Komodakis (2016)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from hf_sharp.vision.models.base import AbstractImageClassifier, check_counts, conv, pooled


@strict
class WideResNetConfig(PreTrainedConfig):
    """The shape of a WRN-``depth``-``widen``.

    Args:
        depth: layers, 6 n + 4 for n blocks in each of the three stages.
        widen: the width in units of 16, 32 and 64 channels.
        dropout: probability of dropout between the convolutions of a block, from 0 to 1.
    """

    model_type = "wide_resnet"

    depth: int = 28
    widen: int = 10
    dropout: float = 0.0

    def validate_shape(self) -> None:
        """Raises ValueError where there is no such WRN."""
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n >= 1, got {self.depth}. Pass e.g. depth=28.")
        check_counts("widen", [self.widen])
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1, got {self.dropout}. Pass e.g. dropout=0.3.")


class WideBlock(nn.Module):
    """A residual block with the norms before the convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.dropout = nn.Dropout(dropout)
        changes = stride != 1 or inputs != outputs
        self.projection = conv(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(x))
        short = x if self.projection is None else self.projection(y)
        y = self.dropout(functional.relu(self.norm2(self.conv1(y))))
        return short + self.conv2(y)


class WideResNetForImageClassification(AbstractImageClassifier):
    """A Wide ResNet for images of about 32x32 pixels."""

    config_class = WideResNetConfig

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__(config)
        self.stem = conv(3, 16, 3)
        blocks, channels = [], 16
        for stage in range(3):
            for i in range((config.depth - 4) // 6):
                outputs = 16 * config.widen * 2**stage
                blocks.append(WideBlock(channels, outputs, 2 if stage and not i else 1, config.dropout))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.finish(channels)

    def features(self, pixel_values: Tensor) -> Tensor:
        return pooled(functional.relu(self.norm(self.blocks(self.stem(pixel_values)))))
