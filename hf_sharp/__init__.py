"""Sharpness-aware training for Hugging Face: change one class name."""

# ruff: noqa: E402 - versions are checked before anything is imported that may not be there
from hf_sharp.versions import check_installed

check_installed()

from importlib import import_module
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from hf_sharp.arguments import SharpnessArguments
    from hf_sharp.step import SharpStep
    from hf_sharp.trainer import SharpnessAwareMixin, SharpnessAwareSeq2SeqTrainer, SharpnessAwareTrainer
else:
    # Imported when they are first asked for: they need transformers' Trainer, which takes seconds, and methods do not.
    _LATER = {
        "SharpStep": "step",
        "SharpnessArguments": "arguments",
        "SharpnessAwareMixin": "trainer",
        "SharpnessAwareSeq2SeqTrainer": "trainer",
        "SharpnessAwareTrainer": "trainer",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = vars(import_module(f"{__name__}.{_LATER[name]}"))[name]
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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
