"""Measuring sharpness: the quantities of the papers on any model and loader, and how to name one."""

from __future__ import annotations

from hf_sharp.measure.approximation import ApproximationRatio
from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.batches import Batches, read
from hf_sharp.measure.callback import SharpnessCallback
from hf_sharp.measure.directional import ThreeLosses
from hf_sharp.measure.extrema import Extrema
from hf_sharp.measure.flatness import Flatness
from hf_sharp.measure.hessian import NormalizedTrace, SpectralDensity, TopEigenvalues, Trace
from hf_sharp.measure.landscape import LossBetween, LossLine, LossPlane
from hf_sharp.measure.opening import loss_surface
from hf_sharp.measure.ranks import Ranks
from hf_sharp.measure.registry import QUANTITIES, parse_quantity
from hf_sharp.measure.result import Found, Result
from hf_sharp.measure.settings import How
from hf_sharp.measure.sharpness import AverageSharpness, Sharpness
from hf_sharp.measure.stability import AscentLoss, GradientCosine
from hf_sharp.measure.surface import Surface

__all__ = [
    "QUANTITIES",
    "AbstractQuantity",
    "ApproximationRatio",
    "AscentLoss",
    "AverageSharpness",
    "Batches",
    "Extrema",
    "Flatness",
    "Found",
    "GradientCosine",
    "How",
    "LossBetween",
    "LossLine",
    "LossPlane",
    "NormalizedTrace",
    "Ranks",
    "Result",
    "Sharpness",
    "SharpnessCallback",
    "SpectralDensity",
    "Surface",
    "ThreeLosses",
    "TopEigenvalues",
    "Trace",
    "loss_surface",
    "parse_quantity",
    "read",
]
