"""VGG networks with batch normalization for small images, Simonyan and Zisserman (2015)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_sharp.vision.models.base import AbstractImageClassifier, check_counts, check_pixels, pooled


@strict
class CifarVGGConfig(PreTrainedConfig):
    """The shape of a VGG network whose classifier is one linear layer.

    Args:
        depths: convolutions per stage; each stage ends with a halving of the image.
        widths: channels per stage.
    """

    model_type = "cifar_vgg"

    depths: list[int] | tuple[int, ...] = (2, 2, 4, 4, 4)
    widths: list[int] | tuple[int, ...] = (64, 128, 256, 512, 512)

    def validate_shape(self) -> None:
        """Raises ValueError where the fields do not describe a VGG network."""
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths and widths must have one entry per stage, got {len(self.depths)} and {len(self.widths)}. "
                "Pass e.g. depths=(1, 1, 2), widths=(64, 128, 256)."
            )
        check_counts("depths", self.depths)
        check_counts("widths", self.widths)


class CifarVGGForImageClassification(AbstractImageClassifier):
    """A VGG network, by default for images of at least 32x32 pixels; its convolutions have biases, as the original's."""

    config_class = CifarVGGConfig

    def __init__(self, config: CifarVGGConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = 3
        for depth, width in zip(config.depths, config.widths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.finish(channels)

    def features(self, pixel_values: Tensor) -> Tensor:
        check_pixels(pixel_values, 2 ** len(self.config.depths))
        return pooled(self.layers(pixel_values))
