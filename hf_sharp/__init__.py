"""Sharpness-aware training for Hugging Face: change one class name."""

from hf_sharp.arguments import SharpnessArguments
from hf_sharp.methods import (
    ASAM,
    CRSAM,
    GAM,
    GSAM,
    LPF,
    METHODS,
    RGSAM,
    RSAM,
    SAM,
    AbstractMethod,
    AbstractSchedule,
    AcceleratedGAM,
    Constant,
    Cosine,
    Decayed,
    During,
    Every,
    FollowLR,
    InverseSqrt,
    Linear,
    WarmUp,
)
from hf_sharp.parsing import method_to_dict, parse_method
from hf_sharp.step import SharpStep
from hf_sharp.trainer import SharpnessAwareMixin, SharpnessAwareSeq2SeqTrainer, SharpnessAwareTrainer

__version__ = "0.1.0"
__all__ = [
    "ASAM",
    "CRSAM",
    "GAM",
    "GSAM",
    "LPF",
    "METHODS",
    "RGSAM",
    "RSAM",
    "SAM",
    "AbstractMethod",
    "AbstractSchedule",
    "AcceleratedGAM",
    "Constant",
    "Cosine",
    "Decayed",
    "During",
    "Every",
    "FollowLR",
    "InverseSqrt",
    "Linear",
    "SharpStep",
    "SharpnessArguments",
    "SharpnessAwareMixin",
    "SharpnessAwareSeq2SeqTrainer",
    "SharpnessAwareTrainer",
    "WarmUp",
    "method_to_dict",
    "parse_method",
]
