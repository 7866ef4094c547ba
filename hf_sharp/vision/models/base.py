"""What the image classifiers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class AbstractImageClassifier(PreTrainedModel):
    """A classifier of images: ``logits`` from ``features`` and one linear layer.

    Weights of convolutions start as in He et al. (2015), for the number of outputs (``fan_out``), norm layers at 1 and 0.
    """

    main_input_name = "pixel_values"
    base_model_prefix = ""
    classifier: nn.Linear

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)

    def finish(self, channels: int) -> None:
        """Put the classifier behind this many features, and let the weights start."""
        assert self.config.num_labels is not None
        self.classifier = nn.Linear(channels, self.config.num_labels)
        self.post_init()

    @abstractmethod
    def features(self, pixel_values: Tensor) -> Tensor:
        """The pooled features (batch, channels) of images (batch, 3, height, width)."""

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutputWithNoAttention | tuple[Tensor, ...]:
        """Logits, and the mean cross-entropy where there are labels.

        Args:
            pixel_values: images (batch, 3, height, width), normalised.
            labels: class numbers (batch) or probabilities (batch, classes).
            return_dict: whether to return a `ModelOutput`; None takes the config's.
        """
        logits = self.classifier(self.features(pixel_values))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.reset_running_stats()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)


def check_counts(name: str, counts: Sequence[int]) -> None:
    """Raises ValueError where a field of a config counts fewer than one."""
    if not counts or min(counts) < 1:
        got = counts[0] if len(counts) == 1 else list(counts)
        raise ValueError(f"{name} must be at least 1, got {got}. Leave it out for the default.")


def check_pixels(images: Tensor, least: int) -> None:
    """Raises ValueError where images (batch, 3, height, width) are too small for a model."""
    height, width = images.shape[2:]
    if min(height, width) < least:
        raise ValueError(
            f"Images must have at least {least}x{least} pixels for this model, got {height}x{width}. "
            f"Pass e.g. image_size={least}, or take a model that halves them less often."
        )


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the image's size where ``stride`` is 1."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


def pooled(x: Tensor) -> Tensor:
    """The mean over each channel: (batch, channels, height, width) to (batch, channels)."""
    return x.mean(dim=(2, 3))


def padded(x: Tensor, channels: int) -> Tensor:
    """``x`` with channels of zeros behind its own."""
    missing = channels - x.shape[1]
    return functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
