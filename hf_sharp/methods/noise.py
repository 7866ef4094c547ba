"""Gaussian noise in proportion to the weights."""

from __future__ import annotations

from hf_sharp.methods.schedules import Radius, as_number
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


def kernel_noise(f: AbstractOracle, gamma: Radius, draw: int = 0) -> Vector:
    """``gamma z |w_j|``: standard normal z times the norm of the output unit j that an entry belongs to.

    A unit is a row of a Linear or an embedding and a filter of a convolution; a vector (bias, norm layer, class token) is
    one unit, and a position embedding has one per feature.
    """
    return as_number(gamma) * f.noise(draw, f.unit_norms())
