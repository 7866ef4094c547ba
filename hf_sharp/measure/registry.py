"""The quantities, and how to name one in a script or a config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_sharp.descriptions import built, described, looked_up
from hf_sharp.measure.approximation import ApproximationRatio
from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.directional import ThreeLosses
from hf_sharp.measure.extrema import Extrema
from hf_sharp.measure.flatness import Flatness
from hf_sharp.measure.hessian import NormalizedTrace, SpectralDensity, TopEigenvalues, Trace
from hf_sharp.measure.landscape import LossBetween, LossLine, LossPlane
from hf_sharp.measure.sharpness import AverageSharpness, Sharpness
from hf_sharp.measure.stability import AscentLoss, GradientCosine

_KINDS: tuple[type[AbstractQuantity], ...] = (
    ApproximationRatio,
    AscentLoss,
    AverageSharpness,
    Extrema,
    Flatness,
    GradientCosine,
    LossBetween,
    LossLine,
    LossPlane,
    NormalizedTrace,
    Sharpness,
    SpectralDensity,
    ThreeLosses,
    TopEigenvalues,
    Trace,
)
QUANTITIES: dict[str, type[AbstractQuantity]] = {kind.name: kind for kind in _KINDS}


def parse_quantity(given: AbstractQuantity | str | Mapping[str, Any]) -> AbstractQuantity:
    """The quantity that is meant: one, its name, a mapping with ``name`` and its settings, or either as YAML.

    Raises:
        ValueError: the name or a setting is unknown, or a value breaks its rule.

    >>> parse_quantity("{name: trace, draws: 50}")
    Trace(draws=50, distribution='rademacher')
    """
    if isinstance(given, AbstractQuantity):
        return given
    read = described("quantity", given, {"name": "trace", "draws": 50})
    return built(looked_up("quantity", QUANTITIES, read["name"]), read)
