"""A training on two ranks in which the second one fails in the middle of a step's second pass.

    torchrun --nproc-per-node 2 -m tests.workers.faults KIND PLACE FOLDER

KIND is one of the bare loops (ddp, fsdp2, zero1 to zero3), or trainer_ and one of these: the Trainer with a checkpoint after
each step. PLACE is forward or backward. Before it raises, the rank leaves the time in FOLDER/fault; each rank that meets an
exception leaves in FOLDER/restored-RANK whether its weights have the bits with which the step began.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_sharp import SAM, SharpStep
from tests.models import bits
from tests.problems import Perceptron
from tests.workers.loops import as_the_model, in_float32, loss_of, piece, setup
from tests.workers.trainers import train, trainer_for

RANK = int(os.environ.get("RANK", "0"))
METHOD = SAM(rho=0.5)
MICRO_BATCHES, PASSES, GOOD_STEPS = 2, 2, 2


@dataclass
class Fault:
    """Raises in one of the forwards of a network, after its first layer, or in the backward that belongs to it."""

    core: Perceptron
    place: str
    after: int
    folder: Path
    forwards: int = 0

    def arm(self) -> None:
        self.core.inner.register_forward_hook(self._passed)

    def _passed(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.forwards += 1
        if self.forwards == self.after + 1:
            if self.place == "forward":
                self._raise()
            output.register_hook(lambda gradient: self._raise())

    def _raise(self) -> None:
        (self.folder / "fault").write_text(str(time.time()))
        raise RuntimeError(f"a fault on rank {RANK} in the {self.place}")


def armed(core: Perceptron, place: str, folder: Path, micro_batches: int) -> None:
    """Let rank 1 fail at the first micro-batch of the second pass, after some good steps."""
    if RANK == 1:
        Fault(core, place, micro_batches * (PASSES * GOOD_STEPS + 1), folder).arm()


def loop(kind: str, place: str, folder: Path) -> None:
    """A bare loop that fails."""
    run = setup(kind, MICRO_BATCHES, None)
    core = next(module for module in run.model.modules() if isinstance(module, Perceptron))
    armed(core, place, folder, MICRO_BATCHES)
    sharp = SharpStep(run.model, run.optimizer, METHOD, accelerator=run.accelerator, steps=10)
    share = 1 if run.accelerator is not None else MICRO_BATCHES
    for step in range(GOOD_STEPS + 1):
        before = held(sharp)
        try:
            for i in range(MICRO_BATCHES):
                if run.accelerator is not None:
                    run.accelerator.gradient_state._set_sync_gradients(i == MICRO_BATCHES - 1)
                batch = as_the_model(kind, piece(step, i, RANK))
                last = i == MICRO_BATCHES - 1
                sharp(partial(loss_of, run.model, share), batch, last=last, micro_batches=MICRO_BATCHES)
        except BaseException:
            (folder / f"restored-{RANK}").write_text(str(held(sharp) == before))
            raise
        run.close(None)


def held(sharp: SharpStep) -> list[bytes]:
    """The bits of the weights that this rank keeps."""
    return [bits(w) for w in sharp._backend.weights()]


def training(kind: str, place: str, folder: Path) -> None:
    """A Trainer that saves after each step and fails."""
    each = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True, "logging_strategy": "no"}
    out = {"output_dir": str(folder / "out"), "lr_scheduler_type": "constant"}
    trainer: Any = trainer_for(kind, folder, METHOD, 1, None, **each, **out)
    armed(trainer.model.core, place, folder, 1)
    train(kind, trainer)


def main() -> None:
    """Train until the fault."""
    name, place, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    kind = name.removeprefix("trainer_")
    torch.set_default_dtype(torch.float32 if in_float32(kind) else torch.float64)
    if name == kind or kind == "fsdp2":
        dist.init_process_group("gloo")
    if name == kind:
        loop(kind, place, folder)
    else:
        training(kind, place, folder)
    raise SystemExit("there was no fault")


if __name__ == "__main__":
    main()
