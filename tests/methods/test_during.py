"""During: which steps its methods run on."""

from __future__ import annotations

import pytest
from torch import Tensor

from hf_sharp import RSAM, SAM, During, Every
from tests.problems import MODELS, Perceptron, compare
from tests.reference import Problem, Small, rsam, sam


@pytest.mark.parametrize(
    ("start", "stop", "active"),
    [
        (0.0, 1.0, "SSSSSSSSSS"),
        (0.5, 1.0, ".....SSSSS"),
        (0.0, 0.5, "SSSSS....."),
        (0.3, 0.7, "...SSSS..."),
        (0.85, 1.0, ".........S"),
        (0.25, 0.35, "...S......"),
    ],
)
@pytest.mark.parametrize("kind", MODELS)
def test_runs_during_its_part(kind: type[Small], start: float, stop: float, active: str) -> None:
    """``start <= step / steps < stop``, and a stop of 1 includes the last step; one pass outside."""
    passes = []

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        passes.append(len(shifts))
        return sam(f, w, 0.2) if active[step] == "S" else f.gradient(w)[1]

    assert compare(kind, During(SAM(0.2), start, stop), twin, steps=10) < 1e-10
    assert passes == [2 if letter == "S" else 1 for letter in active]


def test_otherwise_and_first_pass() -> None:
    """Outside its part ``otherwise`` runs, and the first pass is again at the weights."""

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        assert bool(shifts[0].any()) == (step < 2)
        return rsam(f, w, shifts[0], 0.2, 2.0) if step < 2 else sam(f, w, 0.1)

    assert compare(Perceptron, During(RSAM(0.2, gamma=0.05), stop=0.5, otherwise=SAM(0.1)), twin) < 1e-10


def test_nests_with_every() -> None:
    """A part of training in which every second step is sharpness-aware."""

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        return sam(f, w, 0.2) if step in (4, 6) else f.gradient(w)[1]

    assert compare(Perceptron, During(Every(2, SAM(0.2)), start=0.5), twin, steps=8) < 1e-10


def test_several_parts() -> None:
    """Three parts one after the other, each with its own method."""
    method = During(SAM(0.2), stop=0.25, otherwise=During(SAM(0.1, p=3), stop=0.75, otherwise=SAM(0.05)))

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        rho, p = [(0.2, 2), (0.1, 3), (0.1, 3), (0.05, 2)][step]
        return sam(f, w, rho, p)

    assert compare(Perceptron, method, twin) < 1e-10
