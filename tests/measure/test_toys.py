"""What the papers say about their toy figures."""

from __future__ import annotations

import math

import pytest

from hf_sharp import ASAM, SAM
from hf_sharp.measure import toys
from hf_sharp.measure.toys import MANY_MINIMA, ONE_MINIMUM, REGION_POINTS, REGIONS, VALLEY_STARTS, Point2


def losses(path: list[Point2]) -> list[float]:
    return [abs(a * max(b, 0.0) - 0.04) for a, b in path]


@pytest.mark.parametrize("lr", [0.1, 0.01])
def test_where_sam_and_asam_go(lr: float) -> None:
    """From (0.3, 0.033) SAM with rho 0.05 does not reach the valley, ASAM does from both starts."""
    stuck = losses(toys.trajectory(VALLEY_STARTS[1], SAM(rho=0.05), lr=lr, steps=300))
    assert min(stuck) == stuck[0] == pytest.approx(0.0301)
    for start in VALLEY_STARTS:
        for rho in (0.5, 1.0):
            reached = losses(toys.trajectory(start, ASAM(rho=rho, eta=0.0), lr=lr, steps=300))
            assert max(reached[-100:]) < 0.25 * lr


def test_where_on_the_valley_they_end() -> None:
    """SAM heads for (0.2, 0.2), ASAM stays nearer to the start."""
    start = VALLEY_STARTS[0]
    sam = toys.trajectory(start, SAM(rho=0.05), lr=0.03, steps=1000)
    assert sam[-1] == pytest.approx((0.2, 0.2), abs=0.01)
    assert max(losses(sam)[-100:]) < 0.005
    asam = toys.trajectory(start, ASAM(rho=0.5, eta=0.0), lr=0.01, steps=1000)[-1]
    assert math.dist(asam, start) < 0.95 * math.dist(sam[-1], start)


@pytest.mark.parametrize("name", REGIONS)
def test_maximisation_regions(name: str) -> None:
    """The maximum in the sphere changes when the weights are rescaled; in the cuboid and the ellipsoid it does not."""
    here, there = (toys.maximum(REGIONS[name], at) for at in REGION_POINTS)
    same = here.loss == pytest.approx(there.loss, rel=1e-5)
    assert same == (name != "(a) sphere")
    closed = {
        "(a) sphere": (1 + 0.5 / math.sqrt(2)) ** 2,
        "(b) cuboid": 1.4**2,
        "(c) ellipsoid": (1 + 0.5 / math.sqrt(2)) ** 2,
    }
    assert here.loss == pytest.approx(closed[name], rel=1e-5)


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[float, float]]:
    return {hill.name: toys.flatness_of(hill) for hill in (*MANY_MINIMA, *ONE_MINIMUM)}


def test_the_flatness_of_the_hills_is_that_of_a_grid(found: dict[str, tuple[float, float]]) -> None:
    for hill in (*MANY_MINIMA, *ONE_MINIMUM):
        assert found[hill.name] == pytest.approx(toys.steepest_on_grid(hill), rel=2e-3)


def test_first_order_flatness_tells_what_zeroth_order_does_not(found: dict[str, tuple[float, float]]) -> None:
    """Figure 1a: equal R0, and R1 prefers the valley that does not waver. 1b: R0 prefers the one that rises late, R1 not."""
    (flat0, flat1), (wavy0, wavy1) = (found[hill.name] for hill in MANY_MINIMA)
    assert flat0 == pytest.approx(wavy0, rel=0.01)
    assert flat1 < 0.6 * wavy1
    (even0, even1), (late0, late1) = (found[hill.name] for hill in ONE_MINIMUM)
    assert late0 < even0
    assert even1 < late1
