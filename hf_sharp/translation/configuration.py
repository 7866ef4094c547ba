"""Settings in YAML files, with a folder's defaults below them and the command line above them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_sharp.descriptions import read_yaml


def flags(given: Sequence[str]) -> list[str]:
    """The command line for an HfArgumentParser: what files say first, so that what stands on the command line wins.

    Args:
        given: the command line: YAML files, then flags. ``defaults.yaml`` beside a file is read before it.

    Raises:
        ValueError: a file is missing or is not a mapping.
    """
    files = []
    for word in given:
        if not word.endswith((".yaml", ".yml")):
            break
        files.append(Path(word))
    values: dict[str, Any] = {}
    for file in files:
        values |= _read(file.with_name("defaults.yaml")) if file.with_name("defaults.yaml").is_file() else {}
        values |= _read(file)
    return [*(part for name, value in values.items() for part in _flag(name, value)), *given[len(files) :]]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"A config must be an existing YAML file, got {str(file)!r}. Use e.g. configs/numbers/asam.yaml.")
    values = read_yaml(file.read_text(encoding="utf-8"), "A config", "'sharpness: asam'", str(file)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"A config must hold a mapping, got {values!r} in {file}. Write e.g. 'sharpness: asam'.")
    return values


def _flag(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
