"""Models for small images, known to the Auto classes of transformers once this package is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageClassification

from hf_sharp.vision.models.base import AbstractImageClassifier
from hf_sharp.vision.models.densenet import DenseNetConfig, DenseNetForImageClassification
from hf_sharp.vision.models.pyramidnet import PyramidNetConfig, PyramidNetForImageClassification
from hf_sharp.vision.models.resnet import CifarResNetConfig, CifarResNetForImageClassification
from hf_sharp.vision.models.vgg import CifarVGGConfig, CifarVGGForImageClassification
from hf_sharp.vision.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification

for _config, _model in (
    (CifarResNetConfig, CifarResNetForImageClassification),
    (CifarVGGConfig, CifarVGGForImageClassification),
    (DenseNetConfig, DenseNetForImageClassification),
    (PyramidNetConfig, PyramidNetForImageClassification),
    (WideResNetConfig, WideResNetForImageClassification),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _model)

from hf_sharp.vision.models.catalogue import ARCHITECTURES, build, is_checkpoint  # noqa: E402 - it asks the Auto classes

__all__ = [
    "ARCHITECTURES",
    "AbstractImageClassifier",
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "CifarVGGConfig",
    "CifarVGGForImageClassification",
    "DenseNetConfig",
    "DenseNetForImageClassification",
    "PyramidNetConfig",
    "PyramidNetForImageClassification",
    "WideResNetConfig",
    "WideResNetForImageClassification",
    "build",
    "is_checkpoint",
]
