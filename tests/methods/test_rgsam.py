"""R-GSAM against its twin, which is given the noise that the first forward ran at."""

from __future__ import annotations

import pytest

from hf_sharp import RGSAM
from tests.problems import MODELS, Perceptron, compare
from tests.reference import Small, gsam, rgsam, rsam


@pytest.mark.parametrize("lam", [0.3, 2.0])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], lam: float) -> None:
    """R-SAM's shift, and GSAM's decomposition of the gradient at w + delta_0."""
    method = RGSAM(rho=0.2, gamma=0.05, lam=lam, alpha=0.7)
    assert compare(kind, method, lambda f, w, shifts, step: rgsam(f, w, shifts[0], 0.2, lam, 0.7)) < 1e-10


def test_contains_rsam_and_gsam() -> None:
    """alpha = 0 leaves R-SAM, gamma = 0 leaves GSAM."""
    rsam_like = RGSAM(rho=0.2, gamma=0.05, lam=2.0, alpha=0.0)
    assert compare(Perceptron, rsam_like, lambda f, w, shifts, step: rsam(f, w, shifts[0], 0.2, 2.0)) < 1e-10
    gsam_like = RGSAM(rho=0.2, gamma=0.0, lam=2.0, alpha=0.7)
    assert compare(Perceptron, gsam_like, lambda f, w, shifts, step: gsam(f, w, 0.2, 0.7)) < 1e-10
