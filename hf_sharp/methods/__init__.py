"""The methods, and how to name one in a script or a config file."""

from __future__ import annotations

from hf_sharp.methods.accelerated_gam import AcceleratedGAM
from hf_sharp.methods.asam import ASAM
from hf_sharp.methods.base import AbstractMethod, ascend, unit, without
from hf_sharp.methods.crsam import CRSAM
from hf_sharp.methods.decayed import Decayed
from hf_sharp.methods.during import During
from hf_sharp.methods.every import Every
from hf_sharp.methods.gam import GAM
from hf_sharp.methods.gsam import GSAM
from hf_sharp.methods.lpf import LPF
from hf_sharp.methods.noise import kernel_noise
from hf_sharp.methods.rgsam import RGSAM
from hf_sharp.methods.rsam import RSAM
from hf_sharp.methods.sam import SAM
from hf_sharp.methods.schedules import (
    AbstractSchedule,
    Constant,
    Cosine,
    FollowLR,
    InverseSqrt,
    Linear,
    WarmUp,
)

METHODS: dict[str, type[AbstractMethod]] = {
    "accelerated_gam": AcceleratedGAM,
    "asam": ASAM,
    "crsam": CRSAM,
    "decayed": Decayed,
    "during": During,
    "every": Every,
    "gam": GAM,
    "gsam": GSAM,
    "lpf": LPF,
    "rgsam": RGSAM,
    "rsam": RSAM,
    "sam": SAM,
}

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
    "WarmUp",
    "ascend",
    "kernel_noise",
    "unit",
    "without",
]
