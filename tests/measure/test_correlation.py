"""Rank correlations against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from hf_sharp.measure.correlation import Run, rank_correlation

AXES: dict[str, list[Any]] = {"batch": [16, 32], "lr": [0.1, 0.01, 0.001], "decay": [0.0, 0.1], "seed": [0, 1]}


def grid(measure: Callable[[dict[str, Any], float], float]) -> list[Run]:
    generator = random.Random(0)
    runs = []
    for values in itertools.product(*AXES.values()):
        settings = dict(zip(AXES, values, strict=True))
        gap = generator.random() + settings["decay"]
        runs.append(Run(settings, gap, {"sharp": measure(settings, gap)}))
    return runs


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def jiang_tau(runs: list[Run]) -> float:
    """Definition by pairs: the mean of sign(measure difference) * sign(gap difference)."""
    pairs = list(itertools.permutations(runs, 2))
    return sum(sign(a.measures["sharp"] - b.measures["sharp"]) * sign(a.gap - b.gap) for a, b in pairs) / len(pairs)


def jiang_psi(runs: list[Run], axis: str) -> float:
    """The mean of tau over all values of the other hyper-parameters."""
    others = [name for name in AXES if name != axis]
    taus = []
    for fixed in itertools.product(*(AXES[name] for name in others)):
        group = [r for r in runs if all(r.settings[n] == v for n, v in zip(others, fixed, strict=True))]
        taus.append(jiang_tau(group))
    return sum(taus) / len(taus)


def test_against_the_definition() -> None:
    noise = random.Random(1)
    runs = grid(lambda settings, gap: gap + noise.random())
    found = rank_correlation(runs, "sharp", ["batch", "lr", "decay"]).values
    assert found["tau"] == pytest.approx(jiang_tau(runs))
    psis = [jiang_psi(runs, axis) for axis in ("batch", "lr", "decay")]
    assert [found["psi_batch"], found["psi_lr"], found["psi_decay"]] == pytest.approx(psis)
    assert found["psi"] == pytest.approx(sum(psis) / 3)
    assert "psi_seed" not in found


def test_extremes() -> None:
    """A measure that is the gap, its opposite, and one that is blind to a hyper-parameter."""
    assert rank_correlation(grid(lambda s, gap: gap), "sharp").values["psi"] == pytest.approx(1)
    assert rank_correlation(grid(lambda s, gap: -gap), "sharp").values["tau"] == pytest.approx(-1)
    blind = rank_correlation(grid(lambda s, gap: s["lr"]), "sharp").values
    assert blind["psi_batch"] == blind["psi_decay"] == 0


def test_settings_may_be_lists() -> None:
    runs = [Run({"lr": lr, "shape": shape}, lr, {"a": lr}) for lr in (0.1, 0.2) for shape in ([1, 2], [3])]
    assert rank_correlation(runs, "a", ["lr"]).values["psi_lr"] == 1
