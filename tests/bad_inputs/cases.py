"""What a row of the table of bad inputs is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Cases: TypeAlias = list[tuple[Callable[[Path], object], str]]
"""What is done, given a folder for what it reads, and what is said; ``{f}`` stands for that folder. Outputs go to the
current folder, which must be as it was afterwards.
"""


def written(file: Path, content: str | bytes = b"") -> Path:
    """The file with this content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file
