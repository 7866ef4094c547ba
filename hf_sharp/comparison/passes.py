"""How many forward-backward passes a method makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_sharp.methods import AbstractMethod
from hf_sharp.step import SharpStep

_STEPS = 200


def passes_per_step(method: AbstractMethod | None) -> float:
    """Forward-backward passes per optimizer step, on average over a training, counted on a model of two weights.

    >>> from hf_sharp import Every, GAM, SAM
    >>> passes_per_step(None), passes_per_step(SAM()), passes_per_step(Every(10, GAM(), otherwise=SAM()))
    (1.0, 2.0, 2.2)
    """
    if method is None:
        return 1.0
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = SharpStep(model, optimizer, method, steps=_STEPS)
    passes = 0

    def loss(batch: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return (model(batch) - 1).square().mean()

    with torch.random.fork_rng(devices=[]):
        for _ in range(_STEPS):
            step(loss, torch.ones(2, 1))
            optimizer.step()
            optimizer.zero_grad()
    return passes / _STEPS
