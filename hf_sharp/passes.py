"""What stands in for parts of a Trainer while a pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import Trainer

from hf_sharp.limits import check_scalar
from hf_sharp.oracle import Backward
from hf_sharp.replacement import replaced
from hf_sharp.replay import KeptInputs, Streams


def backward_through(accelerator: Accelerator, stand_in: Backward | None) -> AbstractContextManager[None]:
    """Let ``accelerator.backward`` be the stand-in where there is one, and refuse losses that are not one number."""
    usual = accelerator.backward

    def backward(loss: Tensor, **kwargs: Any) -> None:
        check_scalar(loss)
        if stand_in is None:
            usual(loss, **kwargs)
        else:
            stand_in(loss)

    return replaced(accelerator, "backward", backward)


_MAKING = {
    "GKDTrainer": ("generate_on_policy_outputs",),
    "OnlineDPOTrainer": ("_generate", "_generate_vllm", "_calculate_rewards_from_functions"),
}
"""With what Trainers of TRL generate and judge the samples of a step inside their ``training_step``."""


@dataclass(frozen=True)
class Made:
    """What a function made in a first pass, and where that left the random streams."""

    result: KeptInputs
    streams: Streams


@contextmanager
def made_once(trainer: Trainer, kept: dict[str, Made]) -> Iterator[None]:
    """Let the functions that make what a Trainer trains on do their work in the first pass over a micro-batch, and hand the
    later ones what they made.

    These are a ``_prepare_inputs`` of a subclass's own, and those with which Trainers of TRL generate and judge samples.

    Args:
        trainer: whose functions are meant.
        kept: of this micro-batch, by the function's name; empty in its first pass.
    """
    with ExitStack() as stack:
        for name in _making(type(trainer)):
            stack.enter_context(replaced(trainer, name, _once(trainer, name, kept)))
        yield


def _making(kind: type[Trainer]) -> list[str]:
    """The names of these functions."""
    prepares = [] if kind._prepare_inputs is Trainer._prepare_inputs else ["_prepare_inputs"]
    parents = [parent.__name__ for parent in kind.__mro__ if parent.__module__.partition(".")[0] == "trl"]
    return prepares + [name for parent in parents for name in _MAKING.get(parent, ())]


def _once(trainer: Trainer, name: str, kept: dict[str, Made]) -> Callable[..., Any]:
    """The Trainer's function of that name, which works in the first pass only."""
    usual, device = getattr(trainer, name), trainer.accelerator.device

    def make(*args: Any, **kwargs: Any) -> Any:
        if name in kept:
            kept[name].streams.rewind(device)
            return kept[name].result.fresh()
        result = usual(*args, **kwargs)
        kept[name] = Made(KeptInputs(result, None), Streams.now(device))
        return result

    return make
