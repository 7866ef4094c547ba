"""Checkpoints: which folders of the Trainer are whole, what hf_sharp adds to them, and what is said where there is none."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

_FOLDER = re.compile(r"^checkpoint-(\d+)$")


def last_complete(output_dir: str | Path) -> tuple[Path | None, bool]:
    """The newest whole checkpoint, and whether a half-written one was passed over, with a warning.

    The Trainer writes its state last, so a folder in which that file is missing or cut off was left by a kill.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and _FOLDER.match(path.name)]
    newest_first = sorted(folders, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    passed_over = False
    for folder in newest_first:
        if _is_whole(folder):
            return folder, passed_over
        passed_over = True
        warnings.warn(
            f"Passing over the checkpoint {folder}: it is half-written, {TRAINER_STATE_NAME} is missing or cut off. "
            "You can delete it.",
            stacklevel=2,
        )
    return None, passed_over


@contextmanager
def found(checkpoint: str | Path) -> Iterator[None]:
    """Inside, transformers loads a checkpoint.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"A checkpoint must be a folder or a model of the Hub, got {str(checkpoint)!r}, which cannot be loaded. "
            "Check the path or the name."
        ) from error


def state_file(checkpoint: str | Path, rank: int) -> Path:
    """Where a rank keeps what its `SharpStep` must remember."""
    return Path(checkpoint) / f"sharpness_{rank}.pt"


def _is_whole(folder: Path) -> bool:
    try:
        return "global_step" in json.loads((folder / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
