"""Whether a loss can be measured: finite, the same at each look, and with or without random numbers in it."""

from __future__ import annotations

import math
import pickle
import warnings

import torch

from hf_sharp.measure.result import UndefinedError
from hf_sharp.measure.stillness import same
from hf_sharp.measure.surface import Surface
from hf_sharp.replay import Streams


def look(f: Surface) -> None:
    """Look at the loss once: one forward pass, in which all processes take part.

    Sets ``f.draws``, with a warning where the loss draws random numbers though the model is in eval mode.

    Raises:
        UndefinedError: the loss at the weights is not finite.
    """
    found = torch.zeros(2, dtype=torch.float64, device=f.device)
    with torch.no_grad(), f.ranks.together():
        for loss, weight in f.losses():
            found[0] += loss.double() * weight
            found[1] += _moved(f.streams, Streams.now(f.device))
    f.ranks.sum_([found])
    if not math.isfinite(float(found[0])):
        raise UndefinedError(
            f"The loss must be finite at the weights, got {float(found[0])}: the model has diverged, or a batch is broken. "
            "Measure a checkpoint from before."
        )
    f.draws = bool(found[1] > 0)
    if f.draws:
        warnings.warn(
            "The loss draws random numbers in eval mode (dropout by a function with training=True, say). They are frozen: "
            "what is measured is the loss under one mask. Take them out of the model to measure it without.",
            stacklevel=4,
        )


def look_again(f: Surface) -> None:
    """Look at the first batch twice.

    Raises:
        ValueError: the loss at one place is not one number.
    """
    with f.ranks.together():
        once, again = (_first(f) for _ in range(2)) if f.batches.held else (0.0, 0.0)
        if not same(once, again):
            raise ValueError(
                f"The loss must be a function of the weights, got {once!r} and then {again!r} for the same batch and "
                "the same random numbers. Take out of the model what changes from call to call."
            )


def _first(f: Surface) -> float:
    with torch.no_grad():
        losses = f.losses()
        loss = float(next(losses)[0])
        losses.close()
    return loss


def _moved(before: Streams, now: Streams) -> bool:
    """Whether some stream has been drawn from."""
    on_device = before.device is not None and now.device is not None and not torch.equal(before.device, now.device)
    drawn = on_device or not torch.equal(before.cpu, now.cpu) or before.python != now.python
    return drawn or pickle.dumps(before.numpy) != pickle.dumps(now.numpy)
