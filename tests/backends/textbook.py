"""Trainings with the slow twins of the methods, from the batches of each step to the weights after the last one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from hf_sharp.oracle import _stable_seed
from tests.problems import Perceptron, generic
from tests.reference import (
    Batch,
    Problem,
    accelerated_gam,
    asam,
    crsam,
    flat,
    gam,
    gsam,
    lpf,
    rgsam,
    rsam,
    sam,
)

STEPS = 10
Noise: TypeAlias = Callable[[int], Tensor]
Direction: TypeAlias = Callable[[Problem, Tensor, int, Noise], Tensor]
"""Takes the problem, the weights, the step, and what draws the step's shifts; returns a direction."""

TWINS: dict[str, Direction] = {
    "accelerated_gam": lambda f, w, step, draw: accelerated_gam(f, w, 0.2, 0.05, 0.6, 0.5, 0.03),
    "asam": lambda f, w, step, draw: asam(f, w, 0.3, 0.01),
    "crsam": lambda f, w, step, draw: crsam(f, w, 0.2, 0.3, 0.1, log=True),
    "decayed": lambda f, w, step, draw: sam(f, w, 0.1),
    "during": lambda f, w, step, draw: f.gradient(w)[1] if step < 4 else gsam(f, w, 0.1, 0.4),
    "every": lambda f, w, step, draw: asam(f, w, 0.3, 0.01, 3.0) if step % 2 else sam(f, w, 0.1),
    "gam": lambda f, w, step, draw: gam(f, w, 0.2, 0.5, 0.05, lambda f, w: sam(f, w, 0.1)),
    "gam_exact": lambda f, w, step, draw: gam(f, w, 0.2, 0.5),
    "gsam": lambda f, w, step, draw: gsam(f, w, 0.1, 0.4),
    "lpf": lambda f, w, step, draw: lpf(f, w, [draw(i) for i in range(3)]),
    "rgsam": lambda f, w, step, draw: rgsam(f, w, draw(0), 0.1, 2.0, 0.3),
    "rsam": lambda f, w, step, draw: rsam(f, w, draw(0), 0.1, 2.0),
    "sam": lambda f, w, step, draw: sam(f, w, 0.1),
}
"""The settings of `tests.problems.EXAMPLES` and the exact GAM of the workers, by hand."""
DECAY = {"decayed": 0.1}


def shift(f: Problem, w: Tensor, step: int, draw: int) -> Tensor:
    """``gamma z |w_j|`` with a gamma of 0.02: a row of a matrix is a unit, and a vector is one."""
    parts = []
    for name, x in f.pieces(w).items():
        generator = torch.Generator().manual_seed(_stable_seed(0, step, draw, name, tuple(x.shape)))
        z = torch.randn(x.shape, generator=generator, dtype=torch.float32).double()
        parts.append((0.02 * z * (x.norm(dim=1, keepdim=True) if x.ndim == 2 else x.norm())).reshape(-1))
    return torch.cat(parts)


def trained(
    name: str, batches: Sequence[Batch], clip: float | None, momentum: float, rates: Sequence[float] = (0.1,) * STEPS
) -> Tensor:
    """The flat weights after a step of SGD on each batch, the direction clipped to a norm."""
    model = generic(Perceptron())
    w = flat(model)
    velocity = torch.zeros_like(w)
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        f = Problem(model, batch, decay=DECAY.get(name, 0.0))
        d = TWINS[name](f, w, step, partial(shift, f, w, step))
        if clip is not None:
            d = d * min(1.0, clip / (float(d.norm()) + 1e-6))  # as clip_grad_norm_
        velocity = momentum * velocity + d
        w = w - rate * velocity
    return w
