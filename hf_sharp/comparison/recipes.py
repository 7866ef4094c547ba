"""Settings of a training script in YAML files."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.hf_argparser import string_to_bool

from hf_sharp.descriptions import read_yaml

DEFAULTS = "defaults.yaml"


def read_recipe(file: Path) -> dict[str, Any]:
    """The settings of a file, over those of the ``defaults.yaml`` beside it.

    Raises:
        ValueError: the file is missing, or holds something else than settings.
    """
    common = file.parent / DEFAULTS
    return (_settings(common) if common.is_file() else {}) | (_settings(file) if file.name != DEFAULTS else {})


def flags(settings: Mapping[str, Any]) -> list[str]:
    """The settings as a command line has them; later flags on the same line win.

    >>> flags({"rho": 0.05, "augmentation": ["basic", "cutout"], "plain": True, "seed": None})
    ['--rho', '0.05', '--augmentation', 'basic', 'cutout', '--plain', 'true']
    """
    line: list[str] = []
    for name, value in settings.items():
        if value is None:
            continue
        line.append(f"--{name}")
        if isinstance(value, list | tuple):
            line += [str(x) for x in value]
        elif isinstance(value, Mapping):
            line.append(json.dumps(value))
        else:
            line.append(str(value).lower() if isinstance(value, bool) else str(value))
    return line


def overrides(line: Sequence[str]) -> dict[str, Any]:
    """The inverse of `flags`, but for the types: values stay text, several values become a list, none is True.

    Raises:
        ValueError: the line does not begin with a flag.

    >>> overrides(["--rho", "0.05", "--augmentation", "basic", "cutout", "--plain"])
    {'rho': '0.05', 'augmentation': ['basic', 'cutout'], 'plain': True}
    """
    values: dict[str, list[str]] = {}
    name = None
    for word in line:
        if word.startswith("--"):
            name, *given = word.removeprefix("--").split("=", 1)
            values[name] = given
        elif name is None:
            raise ValueError(f"Overrides must begin with a flag, got {word!r}. Write e.g. --num_train_epochs 10.")
        else:
            values[name].append(word)
    return {name: True if not given else given[0] if len(given) == 1 else given for name, given in values.items()}


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether a recipe trains without a method, its ``plain`` read as a script's command line is.

    Raises:
        ValueError: it is neither true nor false.

    >>> is_plain({"plain": True}), is_plain({"plain": "false"}), is_plain({})
    (True, False, False)
    """
    given = settings.get("plain")
    try:
        return given is not None and string_to_bool(str(given))
    except ArgumentTypeError as error:
        raise ValueError(f"plain must be true or false, got {given!r}. Write e.g. --plain true.") from error


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        near = ", ".join(sorted(path.name for path in file.parent.glob("*.yaml"))) or "none"
        raise ValueError(f"A recipe must be an existing YAML file, got {str(file)!r}. Beside it there are: {near}.")
    read = read_yaml(file.read_text(encoding="utf-8"), "A recipe", "'rho: 0.05'", str(file))
    if read is None:
        return {}
    if not isinstance(read, Mapping):
        raise ValueError(f"A recipe must hold settings, got {read!r} in {str(file)!r}. Write e.g. 'rho: 0.05'.")
    return dict(read)
