"""Schedules: their values, and that they reach the methods however deep they lie."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from hf_sharp import (
    ASAM,
    GAM,
    SAM,
    AbstractMethod,
    AbstractSchedule,
    Constant,
    Cosine,
    Decayed,
    During,
    Every,
    FollowLR,
    InverseSqrt,
    Linear,
    SharpStep,
    WarmUp,
)
from hf_sharp.clock import Clock
from tests.problems import Perceptron, batches_for, follow, generic
from tests.reference import Problem, sam


def moment(step: int, total: int | None = 101, lr: float = 0.1) -> Clock:
    """A moment of a training without scheduler."""
    return Clock(step, SGD([torch.zeros(1)], lr=lr), total)


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [
        (Constant(0.3), 0.3, 0.3, 0.3),
        (Linear(0.1, 0.5), 0.1, 0.3, 0.5),
        (Linear(0.5, 0.1), 0.5, 0.3, 0.1),
        (Cosine(0.0005, 0.0025), 0.0005, 0.0015, 0.0025),
        (InverseSqrt(2.0), 2.0, 2.0 / math.sqrt(51), 2.0 / math.sqrt(101)),
        (WarmUp(0.4, 100), 0.0, 0.2, 0.4),
        (WarmUp(0.4, 10), 0.0, 0.4, 0.4),
        (WarmUp(Linear(0.1, 0.5), 100), 0.0, 0.15, 0.5),
        (WarmUp(WarmUp(1.0, 100), 100), 0.0, 0.25, 1.0),
    ],
)
def test_values(schedule: AbstractSchedule, first: float, middle: float, last: float) -> None:
    """The values at the first, the middle and the last of 101 steps."""
    assert [schedule.at(moment(step)) for step in (0, 50, 100)] == pytest.approx([first, middle, last], rel=1e-14, abs=1e-16)


def test_a_quarter_on_the_way() -> None:
    """Half a cosine is flat at its ends: a quarter of the way it has gone (1 - cos(pi/4)) / 2; a line has gone a quarter."""
    assert Cosine(1.0, 2.0).at(moment(25)) == pytest.approx(1 + (1 - math.cos(math.pi / 4)) / 2)
    assert Linear(1.0, 2.0).at(moment(25)) == pytest.approx(1.25)


def test_one_step_and_steps_beyond_the_end() -> None:
    """A training of one step starts at the start; past the end the last value stays."""
    assert Linear(0.1, 0.5).at(moment(0, total=1)) == 0.1
    assert Cosine(0.1, 0.5).at(moment(150)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("schedule", "lr", "value"),
    [
        (FollowLR(0.4, 0.1, lr_max=0.2), 0.2, 0.4),
        (FollowLR(0.4, 0.1, lr_max=0.2), 0.1, 0.25),
        (FollowLR(0.4, 0.1, lr_max=0.2), 0.0, 0.1),
        (FollowLR(0.4, 0.1, lr_max=0.2, lr_min=0.1), 0.15, 0.25),
        (FollowLR(0.4, 0.1, lr_max=0.2, lr_min=0.1), 0.05, 0.1),
        (FollowLR(0.4, 0.1, lr_max=0.2, lr_min=0.2), 0.05, 0.4),
        (FollowLR(0.4), 0.05, 0.4),
    ],
)
def test_follow_lr(schedule: FollowLR, lr: float, value: float) -> None:
    """Between low and high as the learning rate between its ends, never below low; high where the ends are the same."""
    assert schedule.at(moment(0, None, lr)) == pytest.approx(value)


def test_follow_lr_finds_the_peak() -> None:
    """The peak is the scheduler's, also where it lies above or after the first learning rate."""
    optimizer = SGD([torch.zeros(1)], lr=0.2)
    LambdaLR(optimizer, lambda step: 0.25)
    assert FollowLR(0.4, 0.1).at(Clock(0, optimizer)) == pytest.approx(0.175)
    optimizer = SGD([torch.zeros(1)], lr=0.2)
    OneCycleLR(optimizer, max_lr=0.5, total_steps=10, div_factor=5)
    assert FollowLR(0.4, 0.1).at(Clock(0, optimizer)) == pytest.approx(0.16)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda method: method,
        lambda method: Every(1, method),
        lambda method: Every(7, SAM(0.9), offset=6, otherwise=method),
        lambda method: During(method, stop=1.0),
        lambda method: Decayed(Every(1, During(method)), 0.0),
        lambda method: GAM(rho=0.0, alpha=0.0, base=method),
    ],
)
@pytest.mark.parametrize("rho", [Linear(0.1, 0.4), WarmUp(Cosine(0.4, 0.1), 2), FollowLR(0.4, 0.1)])
def test_nested_schedules_are_resolved(rho: AbstractSchedule, wrap: Callable[[AbstractMethod], AbstractMethod]) -> None:
    """The method deep inside runs at each step with the radius of that step."""
    model = generic(Perceptron())
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    method = wrap(SAM(rho))
    sharp = SharpStep(model, optimizer, method, steps=4)

    def twin(f: Problem, w: Tensor, shifts: list[Tensor], step: int) -> Tensor:
        values = {
            Linear: [0.1, 0.2, 0.3, 0.4],
            WarmUp: [0.0, 0.325 / 2, 0.175, 0.1],
            FollowLR: [0.1 + 0.3 / (1 + i) for i in range(4)],
        }
        return sam(f, w, values[type(rho)][step])

    assert max(follow(sharp, model, optimizer, batches_for(model), twin, after=scheduler.step)) < 1e-10
    assert sharp.method == method


def test_schedules_of_a_name_and_of_several_fields() -> None:
    """Schedules written as mappings work, and each field of a method has its own."""
    schedule = {"schedule": "warmup", "value": {"schedule": "linear", "start": 0.1, "stop": 0.4}, "warmup_steps": 1}
    model = generic(Perceptron())
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, {"name": "sam", "rho": schedule}, steps=4)
    errors = follow(
        sharp, model, optimizer, batches_for(model), lambda f, w, shifts, step: sam(f, w, [0.0, 0.2, 0.3, 0.4][step])
    )
    assert max(errors) < 1e-10


def test_progress_needs_the_number_of_steps() -> None:
    """A schedule over the training, also one inside others, is refused where nobody said how long it is."""
    model = generic(Perceptron())
    optimizer = SGD(model.parameters(), lr=0.1)
    for method in (SAM(Linear(0.1, 0.2)), Every(2, ASAM(WarmUp(Cosine(0.1, 0.2), 3)))):
        with pytest.raises(ValueError, match="needs the number of training steps"):
            SharpStep(model, optimizer, method)
    SharpStep(model, optimizer, SAM(WarmUp(InverseSqrt(0.1), 3)))
