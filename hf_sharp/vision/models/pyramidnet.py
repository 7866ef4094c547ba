"""PyramidNets, Han et al. (2017), with ShakeDrop."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from hf_sharp.vision.models.base import AbstractImageClassifier, conv, padded, pooled
from hf_sharp.vision.models.shakedrop import ShakeDrop


@strict
class PyramidNetConfig(PreTrainedConfig):
    """The shape of a PyramidNet, whose width grows by the same amount in every block.

    Args:
        depth: layers: 6 n + 2, with bottlenecks 9 n + 2, for n blocks in each of the three stages.
        alpha: how many channels the last block has more than the stem's 16.
        bottleneck: whether blocks are 1x1, 3x3, 1x1 (4 times as many outputs) instead of two 3x3 convolutions.
        drop: probability of ShakeDrop in the last block, from 0 (none) to 1; in the l-th of L it is ``drop l / L``.
    """

    model_type = "pyramidnet"

    depth: int = 110
    alpha: int = 270
    bottleneck: bool = False
    drop: float = 0.0

    def validate_shape(self) -> None:
        """Raises ValueError where there is no such PyramidNet."""
        layers = 9 if self.bottleneck else 6
        if self.depth < layers + 2 or (self.depth - 2) % layers:
            raise ValueError(
                f"depth must be {layers} n + 2 with n >= 1, got {self.depth}. Pass e.g. depth={12 * layers + 2}."
            )
        if self.alpha < 0:
            raise ValueError(f"alpha must be >= 0, got {self.alpha}. Pass e.g. alpha=48.")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must be from 0 to 1, got {self.drop}. Pass e.g. drop=0.5.")


class PyramidBlock(nn.Module):
    """A residual block that begins and ends with a norm, and whose shortcut is padded with zeros."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, drop: float) -> None:
        super().__init__()
        self.outputs = 4 * width if bottleneck else width
        shapes = (
            [(inputs, width, 1, 1), (width, width, 3, stride), (width, self.outputs, 1, 1)]
            if bottleneck
            else [(inputs, width, 3, stride), (width, width, 3, 1)]
        )
        self.norm = nn.BatchNorm2d(inputs)
        self.convs = nn.ModuleList(conv(a, b, k, s) for a, b, k, s in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in shapes)
        self.shakedrop = ShakeDrop(1 - drop) if drop else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        for i, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(convolution(functional.relu(y) if i else y))
        short = functional.avg_pool2d(x, 2, ceil_mode=True) if self.stride == 2 else x
        return self.shakedrop(y) + padded(short, self.outputs)


class PyramidNetForImageClassification(AbstractImageClassifier):
    """A PyramidNet for images of about 32x32 pixels."""

    config_class = PyramidNetConfig

    def __init__(self, config: PyramidNetConfig) -> None:
        super().__init__(config)
        self.stem = nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16))
        per_stage = (config.depth - 2) // (9 if config.bottleneck else 6)
        total = 3 * per_stage
        blocks, channels = [], 16
        for i in range(total):
            width = round(16 + config.alpha * (i + 1) / total)
            stride = 2 if i in (per_stage, 2 * per_stage) else 1
            blocks.append(PyramidBlock(channels, width, stride, config.bottleneck, config.drop * (i + 1) / total))
            channels = blocks[-1].outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.finish(channels)

    def features(self, pixel_values: Tensor) -> Tensor:
        return pooled(functional.relu(self.norm(self.blocks(self.stem(pixel_values)))))
