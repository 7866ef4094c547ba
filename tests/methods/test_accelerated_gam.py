"""Accelerated GAM against its twin."""

from __future__ import annotations

import pytest

from hf_sharp import AcceleratedGAM
from tests.problems import MODELS, Perceptron, compare
from tests.reference import Small, accelerated_gam, gsam


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("a", "b"), [(0.6, 0.5), (0.1, 0.3), (0.0, 1.0)])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], a: float, b: float, released: bool) -> None:
    """Algorithm 2 of the paper, and the released code's weight 1 on g0."""
    method = AcceleratedGAM(0.3, 0.05, a, b, gamma=0.6, released=released)
    assert compare(kind, method, lambda f, w, shifts, step: accelerated_gam(f, w, 0.3, 0.05, a, b, 0.6, released)) < 1e-10


@pytest.mark.parametrize("released", [False, True])
def test_contains_gsam(released: bool) -> None:
    """With a = b = 1 only g0 and g1 count: GSAM with radius ``step`` and weight ``gamma``."""
    method = AcceleratedGAM(0.3, 0.05, a=1.0, b=1.0, gamma=0.6, released=released)
    assert compare(Perceptron, method, lambda f, w, shifts, step: gsam(f, w, 0.05, 0.6)) < 1e-10
