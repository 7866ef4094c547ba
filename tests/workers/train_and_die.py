"""A worker that trains one small model per job, each in a process of its own that kills itself in the middle."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_sharp import CRSAM, AbstractMethod, SharpnessAwareTrainer
from hf_sharp.methods import ascend, unit
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector
from tests.models import all_methods, arguments, restless, rows


@dataclass(frozen=True)
class Averaging(AbstractMethod):
    """SAM along the running mean of the gradients, which it keeps between steps."""

    def direction(self, f: AbstractOracle) -> Vector:
        g = f().grad
        mean = 0.9 * f.memory["mean"] + 0.1 * g if "mean" in f.memory else g
        f.memory["mean"] = mean
        return f(ascend(mean, 0.05)).grad


@dataclass(frozen=True)
class Remembering(AbstractMethod):
    """Subtracts the unit vector of the step before, which it keeps as a multiple of a gradient."""

    def direction(self, f: AbstractOracle) -> Vector:
        g = f(ascend(f().grad, 0.05)).grad
        d = g - 0.3 * f.memory["unit"] if "unit" in f.memory else g
        f.memory["unit"] = unit(g)
        return d


METHODS: dict[str, AbstractMethod] = {
    **all_methods(),
    "crsam_guarded": CRSAM(rho=1e-4, alpha=1e-9, beta=1e-9, log=True),  # so small that the guard acts on some steps
    "averaging": Averaging(),
    "remembering": Remembering(),
}


@dataclass(frozen=True)
class Job:
    """One training: 11 micro-batches in windows of 2, hence 6 steps in each of two epochs.

    Attributes:
        method: its name in `METHODS`.
        saves: the number of steps between checkpoints.
        logs: the number of steps between logs.
        dies_at: the step after which the process is killed.
        while_saving: whether it is killed in the middle of writing that step's checkpoint.
    """

    method: str
    saves: int = 4
    logs: int = 1
    dies_at: int = 7
    while_saving: bool = False


JOBS: dict[str, Job] = {
    **{name: Job(name) for name in METHODS},
    "end of epoch": Job("rsam", saves=6, dies_at=10),
    "between logs": Job("rsam", saves=3, logs=2, dies_at=5),
    "half-written": Job("rsam", dies_at=8, while_saving=True),
    "half-written memory": Job("averaging", dies_at=8, while_saving=True),
    "only half-written": Job("sam", dies_at=4, while_saving=True),
}


class DyingTrainer(SharpnessAwareTrainer):
    """Is killed when a checkpoint has its weights and its optimizer, but no random state and no trainer state."""

    dies_at = 0

    def _save_rng_state(self, output_dir: str) -> None:
        if self.state.global_step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


class Killer(TrainerCallback):
    """Kills the process after a step."""

    def __init__(self, dies_at: int) -> None:
        self.dies_at = dies_at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer(
    folder: Path,
    job: Job,
    kind: type[SharpnessAwareTrainer] = SharpnessAwareTrainer,
    callbacks: Sequence[TrainerCallback] = (),
) -> SharpnessAwareTrainer:
    """The Trainer of a job, on a model with dropout, BatchNorm and draws from all streams."""
    args = arguments(
        folder,
        num_train_epochs=2,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=job.saves,
        logging_steps=job.logs,
    )
    data = rows("mixed", 22)
    return kind(restless(), args, train_dataset=data, method=METHODS[job.method], callbacks=list(callbacks))


def _die(folder: Path, job: Job) -> None:
    if job.while_saving:
        DyingTrainer.dies_at = job.dies_at
        trainer(folder, job, DyingTrainer).train()
    else:
        trainer(folder, job, callbacks=[Killer(job.dies_at)]).train()


def main(folder: Path) -> None:
    """Run all jobs below a folder, one after the other, and write which signal ended each of them."""
    torch.set_num_threads(1)
    ends = {}
    for name, job in JOBS.items():
        child = os.fork()
        if child == 0:
            try:
                _die(folder / name, job)
            finally:
                os._exit(0)
        ends[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
