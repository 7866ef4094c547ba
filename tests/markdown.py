"""The Markdown files of the repository, and their code blocks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("examples", "configs", "docs", "tests", "hf_sharp")
FILES = sorted([*ROOT.glob("*.md"), *(file for name in FOLDERS for file in (ROOT / name).rglob("*.md"))])

_RECORD = r"""
command_not_found_handle() { printf '%s\037' "$@"; printf '\036'; }
"""


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        file: where it stands.
        line: where it opens, from 1.
        mark: what is written behind the backticks that open it.
        text: what is in it.
    """

    file: Path
    line: int
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> list[Block]:
    """The code blocks of a file, in order."""
    found, start, mark = [], 0, ""
    lines = file.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("```"):
            continue
        if start:
            found.append(Block(file, start, mark, "\n".join(lines[start : i - 1]) + "\n"))
            start = 0
        else:
            start, mark = i, line.strip().strip("`")
    assert not start, f"{file}: the block of line {start} has no end"
    return found


def prose(file: Path) -> list[str]:
    """The lines of a file, those of its code blocks empty."""
    text = file.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE).split("\n")


def spans(file: Path) -> Iterator[Block]:
    """The commands that stand inside lines, in tables mostly."""
    for i, line in enumerate(prose(file), start=1):
        for words in re.findall(r"`((?:python [^`\s]+\.py|python -m [^`\s]+ |accelerate launch |pip install )[^`]*)`", line):
            yield Block(file, i, "bash check", words + "\n")


def anchors(file: Path) -> set[str]:
    """What links to the headings of a file are called."""
    heads = [line.lstrip("#").strip() for line in prose(file) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(text: str, folder: Path) -> list[list[str]]:
    """The words of each command of a block, as bash makes them; nothing runs, since the PATH leads nowhere."""
    bash = ["/bin/bash", "-euo", "pipefail", "-c", _RECORD + text]
    environment = {"PATH": "/nowhere", "HOME": "/home/reader"}
    done = subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [record.split("\037")[:-1] for record in done.stdout.split("\036")[:-1]]
