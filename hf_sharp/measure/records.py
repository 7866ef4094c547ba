"""Results in files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    put(path, lambda part: part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"))


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, and give it its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
