"""The scripts of ``examples/`` as modules."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


@cache
def example(name: str) -> ModuleType:
    """A script, by its path in ``examples/`` without the suffix."""
    spec = importlib.util.spec_from_file_location(f"examples_{name.replace('/', '_')}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
