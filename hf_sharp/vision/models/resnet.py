"""ResNets and ResNeXts for small images, He et al. (2016), Xie et al. (2017)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from hf_sharp.vision.models.base import AbstractImageClassifier, check_counts, conv, padded, pooled


@strict
class CifarResNetConfig(PreTrainedConfig):
    """The shape of a ResNet whose stem is one 3x3 convolution.

    Args:
        block: ``"basic"`` (two 3x3 convolutions) or ``"bottleneck"`` (1x1, 3x3, 1x1).
        depths: blocks per stage; each stage after the first halves the image.
        widths: channels of the 3x3 convolutions per stage.
        stem_width: channels of the stem.
        stem_stride: stride of the stem; 2 makes a network that costs a quarter.
        expansion: the outputs of a bottleneck in units of its width.
        groups: groups of the 3x3 convolutions (the cardinality of ResNeXt).
        shortcut: ``"projection"`` (1x1 convolution and norm) or ``"pad"`` (every second pixel, and channels of zeros), where
            the shape changes.
    """

    model_type = "cifar_resnet"

    block: str = "basic"
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    widths: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    stem_stride: int = 1
    expansion: int = 4
    groups: int = 1
    shortcut: str = "projection"

    def validate_shape(self) -> None:
        """Raises ValueError where the fields do not describe a ResNet."""
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"block must be 'basic' or 'bottleneck', got {self.block!r}. Pass e.g. block='basic'.")
        if self.shortcut not in ("projection", "pad"):
            raise ValueError(f"shortcut must be 'projection' or 'pad', got {self.shortcut!r}. Pass e.g. shortcut='pad'.")
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths and widths must have one entry per stage, got {len(self.depths)} and {len(self.widths)}. "
                "Pass e.g. depths=(3, 3, 3), widths=(16, 32, 64)."
            )
        check_counts("depths", self.depths)
        check_counts("widths", self.widths)
        for name in ("stem_width", "stem_stride", "expansion", "groups"):
            check_counts(name, [vars(self)[name]])
        grouped = [*([self.stem_width] if self.block == "basic" else []), *self.widths]
        if any(width % self.groups for width in grouped):
            raise ValueError(
                f"groups must divide the channels of the 3x3 convolutions, got {self.groups} and {grouped}. "
                "Pass e.g. groups=1."
            )


class Block(nn.Module):
    """A residual block: norms behind the convolutions, ReLU behind the sum."""

    def __init__(self, config: CifarResNetConfig, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        if config.block == "basic":
            outputs = width
            shapes = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        else:
            outputs = width * config.expansion
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.convs = nn.ModuleList(conv(a, b, k, s, config.groups if k == 3 else 1) for a, b, k, s in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in shapes)
        self.stride, self.outputs = stride, outputs
        changes = stride != 1 or inputs != outputs
        self.projection = (
            nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            if changes and config.shortcut == "projection"
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(convolution(functional.relu(y) if i else y))
        return functional.relu(y + self.short(x))

    def short(self, x: Tensor) -> Tensor:
        """The shortcut."""
        if self.projection is not None:
            return self.projection(x)
        return padded(x[:, :, :: self.stride, :: self.stride], self.outputs)


class CifarResNetForImageClassification(AbstractImageClassifier):
    """A ResNet or ResNeXt for images of about 32x32 pixels."""

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        stem = conv(3, config.stem_width, 3, config.stem_stride)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(config.stem_width), nn.ReLU())
        stages, channels = [], config.stem_width
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            blocks = []
            for i in range(depth):
                blocks.append(Block(config, channels, width, stride=2 if stage and not i else 1))
                channels = blocks[-1].outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.finish(channels)

    def features(self, pixel_values: Tensor) -> Tensor:
        return pooled(self.stages(self.stem(pixel_values)))
