"""What stands in for parts of a Trainer while a pass runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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


@dataclass(frozen=True)
class Prepared:
    """The inputs that a first pass prepared, and where that left the random streams."""

    inputs: KeptInputs
    streams: Streams


def prepared_once(trainer: Trainer, kept: list[Prepared]) -> AbstractContextManager[None]:
    """Let ``_prepare_inputs`` do its work in the first pass over a micro-batch, and hand the later ones what it made.

    Only where a subclass has one of its own: some generate the samples there.

    Args:
        trainer: whose method is meant.
        kept: of this micro-batch; empty in its first pass.
    """
    usual, device = trainer._prepare_inputs, trainer.accelerator.device
    if type(trainer)._prepare_inputs is Trainer._prepare_inputs:
        return nullcontext()

    def prepare(inputs: Any) -> Any:
        if kept:
            kept[0].streams.rewind(device)
            return kept[0].inputs.fresh()
        made = usual(inputs)
        kept.append(Prepared(KeptInputs(made, None), Streams.now(device)))
        return made

    return replaced(trainer, "_prepare_inputs", prepare)
