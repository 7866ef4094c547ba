"""One run of a training script with one recipe and one seed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_sharp import SharpnessArguments
from hf_sharp.comparison.passes import passes_per_step
from hf_sharp.comparison.recipes import flags, is_plain
from hf_sharp.comparison.results import FILE, save_json
from hf_sharp.methods import AbstractMethod

_SETTINGS, _LOG = "settings.json", "log.txt"


@dataclass(frozen=True)
class Cell:
    """A run: done where its folder has results that were made with these settings.

    Args:
        name: the recipe's name, with what a sweep changed in it.
        settings: all settings of the script but seed and folder.
        seed: of the run.
        folder: where its results go.
        script: the training script.
        launcher: what runs it, e.g. ``("accelerate", "launch")``; this Python where it is empty.
    """

    name: str
    settings: Mapping[str, Any]
    seed: int
    folder: Path
    script: Path
    launcher: tuple[str, ...] = ()

    def result(self) -> dict[str, Any] | None:
        """The results, where the run is done."""
        return _read(self.folder / FILE) if self._is_own() else None

    def run(self) -> dict[str, Any] | None:
        """Runs the script; None where it failed, which its log in the folder tells more about.

        A run that was cut off goes on from its newest checkpoint, if it has the same settings and saved any. A folder that
        holds anything else, e.g. a run with other settings, is moved aside: nothing is removed.
        """
        if not self._is_own():
            self._move_aside()
            save_json(self.folder / _SETTINGS, self._described())
        own = {"seed": self.seed, "output_dir": str(self.folder), "resume_from_checkpoint": True}
        command = [*(self.launcher or python()), str(self.script), *flags({**self.settings, **own})]
        with (self.folder / _LOG).open("w", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        return self.result() if done.returncode == 0 else None

    def error(self) -> str:
        """The last line that a failed run wrote."""
        log = self.folder / _LOG
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def _described(self) -> dict[str, Any]:
        described = {"settings": dict(self.settings), "seed": self.seed, "script": str(self.script.resolve())}
        return json.loads(json.dumps({**described, "launcher": list(self.launcher)}))

    def _is_own(self) -> bool:
        return _read(self.folder / _SETTINGS) == self._described()

    def _move_aside(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()):
            names = (self.folder.with_name(f"{self.folder.name}.before{i}") for i in count(1))
            self.folder.rename(next(path for path in names if not path.exists()))


def python() -> list[str]:
    """The launcher that runs a script in this Python."""
    return [sys.executable]


def _read(file: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None where there is none, or half of one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def method_of(settings: Mapping[str, Any]) -> AbstractMethod | None:
    """The method that a recipe's settings name, read as a script's command line is; None where ``plain`` is true.

    Raises:
        ValueError: as `SharpnessArguments`.
    """
    if is_plain(settings):
        return None
    known = {f.name for f in fields(SharpnessArguments)}
    line = flags({name: value for name, value in settings.items() if name in known})
    return HfArgumentParser(SharpnessArguments).parse_args_into_dataclasses(line)[0].method()  # type: ignore[arg-type]


def with_equal_passes(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recipes, each as long as gives it the passes of the one that makes most.

    Their length is ``max_steps`` (of batches of one size) where they have it, which the Trainer heeds before
    ``num_train_epochs``.

    Raises:
        ValueError: a recipe does not say its epochs, or only some of them have ``max_steps``.
    """
    stepped = [name for name, settings in recipes.items() if _number(settings, "max_steps", -1) > 0]
    if 0 < len(stepped) < len(recipes):
        other = next(name for name in recipes if name not in stepped)
        raise ValueError(
            f"To match passes all recipes or none must have max_steps, got it in {stepped[0]!r} and not in {other!r}. "
            "Set it in all."
        )
    length = "max_steps" if stepped else "num_train_epochs"
    passes = {name: passes_per_step(method_of(settings)) for name, settings in recipes.items()}
    for name, settings in recipes.items():
        if length not in settings:
            raise ValueError(f"To match passes each recipe needs num_train_epochs, got none in {name!r}. Set it there.")
    most = max(_number(settings, length) * passes[name] for name, settings in recipes.items())
    return {name: {**settings, length: max(1, round(most / passes[name]))} for name, settings in recipes.items()}


def _number(settings: Mapping[str, Any], field: str, default: float | None = None) -> float:
    given = settings.get(field, default)
    try:
        return float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field} must be a number, got {given!r}. Write e.g. {field}: 20.") from error
