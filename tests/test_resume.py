"""A training that was killed and resumed is the training that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_sharp import AbstractMethod, SharpnessAwareTrainer, SharpStep
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector
from tests.models import arguments, collated, differences, loss_of, reseed, restless, rows, snapshot, streams
from tests.workers.train_and_die import JOBS, METHODS, Averaging, Job, trainer

_STATE = "trainer_state.json"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each job's process left when it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    root = Path(__file__).parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths[1:], paths[0]])}
    subprocess.run([sys.executable, "-m", "tests.workers.train_and_die", str(folder)], check=True, cwd=root, env=environment)
    ends = json.loads((folder / "ends.json").read_text())
    assert ends == dict.fromkeys(JOBS, -signal.SIGKILL)
    return folder


def _ending(some: SharpnessAwareTrainer) -> dict[str, Any]:
    """All that a training leaves behind but its logs."""
    return {
        "model": snapshot(some.model),
        "optimizer": some.optimizer.state_dict(),
        "scheduler": some.lr_scheduler.state_dict(),
        "streams": streams(),
        "step": some.state.global_step,
    }


def _logs(some: SharpnessAwareTrainer, after: int = 0) -> list[dict[str, float]]:
    """The entries of steps beyond one, without the summary at the end."""
    entries = [entry for entry in some.state.log_history if entry["step"] > after and "train_runtime" not in entry]
    return [dict(sorted(entry.items())) for entry in entries]  # a checkpoint's entries come back sorted


def _half_written(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if "half-written" in str(w.message)]


class _Begin(TrainerCallback):
    """Notes the step that training begins with."""

    step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step


def _resumed(folder: Path, job: Job) -> tuple[SharpnessAwareTrainer, int, list[str]]:
    """Resume from the last checkpoint; also the step it began with and the warnings about half-written folders."""
    begin = _Begin()
    some = trainer(folder, job, callbacks=[begin])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        some.train(resume_from_checkpoint=True)
    return some, begin.step, _half_written(caught)


def _uninterrupted(folder: Path, job: Job) -> tuple[dict[str, Any], SharpnessAwareTrainer]:
    some = trainer(folder, job)
    some.train()
    return _ending(some), some


@pytest.mark.parametrize("name", JOBS)
def test_killed_and_resumed_is_uninterrupted(name: str, killed: Path, tmp_path: Path) -> None:
    """SIGKILL after a step, or in the middle of writing a checkpoint, then resume_from_checkpoint=True: weights, buffers,
    optimizer, scheduler and random streams end with the bits of a training that was not interrupted, and so do the logs,
    telemetry and counters included; a half-written checkpoint is passed over with one warning."""
    job = JOBS[name]
    last = job.dies_at // job.saves * job.saves
    folder = shutil.copytree(killed / name, tmp_path / "killed")
    torn = folder / f"checkpoint-{job.dies_at}"
    assert torn.exists() == job.while_saving
    assert (torn / "optimizer.pt").exists() == job.while_saving
    assert not (torn / _STATE).exists()
    expected, whole = _uninterrupted(tmp_path / "whole", job)
    some, began, told = _resumed(folder, job)
    assert began == (last - job.saves if job.while_saving else last)
    assert len(told) == job.while_saving
    assert all(str(torn) in line for line in told)
    assert differences(expected, _ending(some)) == []
    if last % job.logs == 0:
        assert differences(_logs(whole), _logs(some)) == []
    else:  # the first log after the resume averages the loss over fewer steps, as the plain Trainer's does
        split = next(entry["step"] for entry in _logs(whole, after=last))
        assert differences(_logs(whole, after=split), _logs(some, after=split)) == []
        assert len(_logs(some, after=split)) >= 3
        telemetry = [
            {k: v for k, v in _logs(one, after=last)[0].items() if k not in ("loss", "grad_norm")} for one in (whole, some)
        ]
        assert differences(*telemetry) == []
    assert len(_logs(some)) == 12 // job.logs


def test_the_counter_of_the_guard_goes_on(killed: Path, tmp_path: Path) -> None:
    """The job above with log-form CR-SAM has a guard that had acted before the checkpoint, and acted again after it."""
    folder = shutil.copytree(killed / "crsam_guarded", tmp_path / "killed")
    some, _, _ = _resumed(folder, JOBS["crsam_guarded"])
    counts = [entry["sharpness/crsam_d2_guard"] for entry in _logs(some)]
    assert 0 < counts[3] < counts[-1]
    assert counts == sorted(counts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the checkpoints 4, 8 and 12 of a training, and how it ended."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, _uninterrupted(folder, JOBS["rsam"])[0]


@pytest.mark.parametrize("torn", ["missing", "empty", "cut off"])
def test_half_written_folders_are_passed_over(torn: str, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """With the trainer states of the two newest checkpoints missing, empty or cut off, training goes on from the third one
    and says so once per folder; it ends as if nothing had happened."""
    folder, expected = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], folder)
    for step in (8, 12):
        file = folder / f"checkpoint-{step}" / _STATE
        if torn == "missing":
            file.unlink()
        else:
            text = file.read_text()
            file.write_text("" if torn == "empty" else text[: len(text) // 2])
    some, began, told = _resumed(folder, JOBS["rsam"])
    assert began == 4
    assert len(told) == 2
    assert "checkpoint-12" in told[0]
    assert "checkpoint-8" in told[1]
    assert differences(expected, _ending(some)) == []


def test_only_half_written_folders(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Where every checkpoint is half-written, training starts from step 0, with a warning for each."""
    folder, expected = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], folder)
    for file in folder.glob(f"checkpoint-*/{_STATE}"):
        file.write_text("{")
    some, began, told = _resumed(folder, JOBS["rsam"])
    assert began == 0
    assert len(told) == 3
    assert differences(expected, _ending(some)) == []


def test_what_a_half_written_folder_held_is_gone_when_it_is_written_anew(tmp_path: Path) -> None:
    """A run that starts over in a folder with half-written checkpoints, with another method, and is resumed from one that
    it wrote in the place of an old one, knows nothing of the old method's memory and counters."""
    trainer(tmp_path, JOBS["crsam_guarded"]).train()
    for file in tmp_path.glob(f"checkpoint-*/{_STATE}"):
        file.unlink()
    trainer(tmp_path, JOBS["sam"]).train()
    some = trainer(tmp_path, JOBS["sam"])
    some.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert [key for entry in _logs(some) for key in entry if "crsam" in key] == []


def test_a_checkpoint_counts_as_whole_after_all_ranks_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for each other when their own files are there, and the file that says so is not."""
    seen = []

    def wait() -> None:
        folder = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
        seen.append({file.name for file in folder.iterdir()})

    monkeypatch.setattr("hf_sharp.trainer._wait_for_all_ranks", wait)
    trainer(tmp_path, JOBS["averaging"]).train()
    assert seen
    for names in seen:
        assert {"rng_state.pth", "optimizer.pt", "sharpness_0.pt"} <= names
        assert _STATE not in names


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    """Without any checkpoint the Trainer's own error is raised, and nothing is trained."""
    some = trainer(tmp_path, JOBS["sam"])
    before = snapshot(some.model)
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        some.train(resume_from_checkpoint=True)
    assert differences(before, snapshot(some.model)) == []


def test_a_named_checkpoint(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A path is resumed from as it is, without a look at the other folders."""
    begin = _Begin()
    some = trainer(tmp_path, JOBS["rsam"], callbacks=[begin])
    some.train(resume_from_checkpoint=str(finished[0] / "checkpoint-8"))
    assert begin.step == 8
    assert differences(finished[1], _ending(some)) == []


@dataclass(frozen=True)
class Watching(AbstractMethod):
    """`Averaging`, which notes on each step whether it remembered anything."""

    seen: list[bool]

    def direction(self, f: AbstractOracle) -> Vector:
        self.seen.append("mean" in f.memory)
        return Averaging().direction(f)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_does_not_resume_again(resume: bool, tmp_path: Path) -> None:
    """`train()` after a training on the same Trainer begins without memory, also where the first one was resumed."""
    seen: list[bool] = []
    args = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    some = SharpnessAwareTrainer(restless(), args, train_dataset=rows("mixed", 8), method=Watching(seen))
    some.train()
    assert seen == [False, True, True, True]
    if resume:
        some.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert seen[4:] == [True, True]
    some.train()
    assert seen[-4:] == [False, True, True, True]


@pytest.mark.parametrize("name", METHODS)
def test_a_bare_loop_resumes_from_its_state_dict(name: str, tmp_path: Path) -> None:
    """An engine that loads another one's state_dict from a file goes on with the same bits, whatever the method keeps."""
    file = tmp_path / "sharp.pt"

    def train(model: torch.nn.Module, sharp: SharpStep, steps: range, save_at: int = -1) -> list[dict[str, float]]:
        scalars = []
        for step in steps:
            if step == save_at:
                torch.save([sharp.state_dict(), model.state_dict()], file)
            reseed(step)
            sharp(loss_of(model), collated(rows("mixed", 6, seed=step)), observe=True)
            scalars.append(sharp.scalars())
            optimizers[id(model)].step()
            model.zero_grad()
        return scalars

    models = [restless(), restless()]
    optimizers = {id(model): torch.optim.SGD(model.parameters(), lr=0.1) for model in models}
    engines = [SharpStep(m, optimizers[id(m)], METHODS[name], steps=8, seed=3) for m in models]
    expected = train(models[0], engines[0], range(8), save_at=4)
    state, weights = torch.load(file, weights_only=True)
    models[1].load_state_dict(weights)
    engines[1].load_state_dict(state)
    assert engines[1].step == 4
    assert differences(expected[4:], train(models[1], engines[1], range(4, 8))) == []
    assert differences(snapshot(models[0]), snapshot(models[1])) == []
