"""Models by name: those of this package, of transformers and of timm."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_sharp.checkpoints import found

_SMALL = {"depths": (3, 3, 3), "widths": (16, 32, 64), "stem_width": 16, "shortcut": "pad"}
_BOTTLENECK = {"block": "bottleneck", "depths": (3, 4, 6, 3)}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet8": ("cifar_resnet", _SMALL | {"depths": (1, 1, 1)}),
    "resnet18": ("cifar_resnet", {}),
    "resnet20": ("cifar_resnet", _SMALL),
    "resnet32": ("cifar_resnet", _SMALL | {"depths": (5, 5, 5)}),
    "resnet50": ("cifar_resnet", _BOTTLENECK),
    "resnet56": ("cifar_resnet", _SMALL | {"depths": (9, 9, 9)}),
    "resnet101": ("cifar_resnet", _BOTTLENECK | {"depths": (3, 4, 23, 3)}),
    "resnext29_32x4d": (
        "cifar_resnet",
        {"block": "bottleneck", "depths": (3, 3, 3), "widths": (128, 256, 512), "expansion": 2, "groups": 32},
    ),
    "wrn16_8": ("wide_resnet", {"depth": 16, "widen": 8}),
    "wrn28_2": ("wide_resnet", {"depth": 28, "widen": 2}),
    "wrn28_10": ("wide_resnet", {"depth": 28, "widen": 10}),
    "pyramidnet110": ("pyramidnet", {"depth": 110, "alpha": 270}),
    "pyramidnet272": ("pyramidnet", {"depth": 272, "alpha": 200, "bottleneck": True, "drop": 0.5}),
    "densenet121": ("densenet", {}),
    "vgg19_bn": ("cifar_vgg", {}),
}
"""Models for small images: model type, and what differs from its config's defaults."""


def build(name: str, labels: list[str], model_args: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The model that is meant, for these classes.

    Args:
        name: one of `ARCHITECTURES`, with fresh weights; a folder or a model of the Hub (``"microsoft/resnet-50"``,
            ``"timm/swin_tiny_patch4_window7_224.ms_in1k"``), with its weights, and a fresh classifier where the number of
            classes differs; ``"timm:NAME"``, timm's architecture with fresh weights; or a model type of transformers
            (``"vit"``), with fresh weights.
        labels: the classes' names, in order.
        model_args: fields of the model's config that differ.

    Raises:
        ValueError: there is no such model, or it has no such field.
    """
    extra = dict(model_args or {})
    named: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {x: i for i, x in enumerate(labels)}}
    if name.startswith("timm:"):
        config = _timm_config(name.removeprefix("timm:"), extra, named)
        try:
            return AutoModelForImageClassification.from_config(config)
        except TypeError as error:
            raise ValueError(
                f"model_args must be what timm takes for {name!r}, got {extra}: {error}. Correct or leave out model_args."
            ) from error
    if name in ARCHITECTURES:
        model_type, fields = ARCHITECTURES[name]
        return AutoModelForImageClassification.from_config(_config(name, model_type, fields | extra, named))
    if name in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return AutoModelForImageClassification.from_config(_config(name, name, extra, named))
    if is_checkpoint(name):
        return _trained(name, extra, named | {"num_labels": len(labels)})
    near = get_close_matches(name, ARCHITECTURES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown model {name!r}.{hint} Choose from {', '.join(ARCHITECTURES)}; 'timm:NAME'; a model type of transformers, "
        "e.g. 'vit'; a folder, or a model of the Hub such as 'microsoft/resnet-50'."
    )


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a folder or of a model of the Hub, which come with their weights."""
    known = name.startswith("timm:") or name in ARCHITECTURES or name in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return not known and ("/" in name or Path(name).is_dir())


def _trained(name: str, extra: Mapping[str, Any], named: Mapping[str, Any]) -> PreTrainedModel:
    with found(name):
        known = AutoConfig.from_pretrained(name).to_dict()
        _check_fields(name, extra, known)
        # timm's configs take the number of classes from the checkpoint, unless it is said beside the names
        return AutoModelForImageClassification.from_pretrained(name, ignore_mismatched_sizes=True, **named, **extra)


def _check_fields(name: str, fields: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = next((field for field in fields if field not in known), None)
    if unknown is not None:
        near = get_close_matches(unknown, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" See the config of {known.get('model_type')!r}."
        raise ValueError(f"The model {name!r} has no field {unknown!r}.{hint}")


def _config(name: str, model_type: str, fields: Mapping[str, Any], named: Mapping[str, Any]) -> PreTrainedConfig:
    known = AutoConfig.for_model(model_type).to_dict()
    _check_fields(name, fields, known)
    for field, value in fields.items():
        if isinstance(known[field], int | float) and isinstance(value, str):
            raise ValueError(f"{field} must be a number, got {value!r}. Pass e.g. {field}={known[field]}.")
    try:
        return AutoConfig.for_model(model_type, **fields, **named)
    except StrictDataclassClassValidationError as error:  # the config's own check
        raise ValueError(str(error.__cause__)) from error
    except StrictDataclassFieldValidationError as error:
        raise ValueError(f"The fields of {name!r} must be of their types: {error.__cause__}. Correct model_args.") from error


def _timm_config(architecture: str, model_args: dict[str, Any], named: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"The model 'timm:{architecture}' needs timm, which is not installed. Run: pip install timm"
        ) from error
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=1)
        hint = f" Did you mean 'timm:{near[0]}'?" if near else ""
        raise ValueError(f"timm {timm.__version__} has no architecture {architecture!r}.{hint} See timm.list_models().")
    return AutoConfig.for_model("timm_wrapper", architecture=architecture, model_args=model_args or None, **named)
