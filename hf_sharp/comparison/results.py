"""Results of a run in a JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

import hf_sharp

FILE = "results.json"


def provenance() -> dict[str, Any]:
    """What a result depends on beside its settings: versions, the commit of the code, the machine's kind."""
    return {
        "versions": {
            "hf_sharp": hf_sharp.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads",
    }


def save_results(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the results into the folder; the file appears whole or not at all."""
    return save_json(folder / FILE, results)


def save_json(file: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file, and its folder where there is none; it appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
    return file


def _commit() -> str | None:
    """The commit of the checkout that this package is imported from; None outside a checkout."""
    where = Path(hf_sharp.__file__).parent
    command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
