"""fairseq's checkpoints, read without running what is in them."""

from __future__ import annotations

import argparse
import codecs
import collections
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sharp.translation.files import replaced

# The functions that make arrays and scalars.
_READING: list[Any] = [kept.__reduce__()[0] for kept in (np.empty(0), np.float64(0))]
_NUMBERS = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
# What fairseq's own checkpoints hold beside tensors and plain values; its meters of BLEU are arrays of numpy.
_ALLOWED: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    collections.defaultdict,
    dict,
    np.ndarray,
    np.dtype,
    *_NUMBERS,
    (codecs.encode, "_codecs.encode"),
    *((made, f"numpy.{core}.multiarray.{made.__name__}") for made in _READING for core in ("core", "_core")),
]
# What a damaged file makes the unpickler raise: it takes whatever bytes there are for its orders.
_DAMAGE: tuple[type[Exception], ...] = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError)
_DAMAGE += (AssertionError, ArithmeticError, MemoryError, ImportError, struct.error, zlib.error)
_ENDINGS = ("pickle data was truncated", "Ran out of input", "unpickling stack underflow", "not enough data")


def load_checkpoint(file: str | Path) -> dict[str, Any]:
    """A fairseq checkpoint: ``model``, ``cfg`` or ``args``, and more.

    Checkpoints are pickles, which can run code when they are loaded. This one is read by PyTorch's restricted unpickler,
    which makes tensors, plain containers and `argparse.Namespace`, and refuses everything else before it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no fairseq checkpoint, or asks for anything that is not allowed.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"A fairseq checkpoint must be an existing file, got {str(file)!r}. Check the path.")
    with file.open("rb") as opened:
        packed = opened.read(2) in (b"", b"P", b"PK")
    if packed and not zipfile.is_zipfile(file):  # PyTorch would take it for a file of before 1.6
        raise _damaged(file, EOFError("it ends too early"))
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(ending in str(error) for ending in _ENDINGS):
            raise _damaged(file, error) from error
        reason = str(error).split("Unsupported", 1)[-1].splitlines()[0] if "Unsupported" in str(error) else str(error)
        raise ValueError(
            f"A checkpoint must hold tensors and plain values only, got something else in {file}: {reason} "
            "Do not load it unless you trust who made it; if you do, save its 'model' and 'cfg' anew."
        ) from error
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), Mapping):
        raise ValueError(
            f"A fairseq checkpoint must be a dict with 'model', got {type(state).__name__} in {file}. "
            "Use a checkpoint_*.pt that fairseq-train wrote."
        )
    return state


def _damaged(file: Path, error: Exception) -> ValueError:
    said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return ValueError(f"A checkpoint must be whole, got one that cannot be read in {file}: {said}. Copy it anew.")


def model_settings(state: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture's settings, from ``cfg`` (since 0.10) or ``args`` (before)."""
    cfg, args = state.get("cfg"), state.get("args")
    settings = cfg["model"] if isinstance(cfg, Mapping) and cfg.get("model") is not None else args
    if isinstance(settings, argparse.Namespace):
        return vars(settings)
    return dict(settings) if isinstance(settings, Mapping) else {}


def save_checkpoint(file: str | Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write a checkpoint that fairseq's ``translation`` task loads.

    Args:
        file: the new file, usually ``.pt``.
        weights: by fairseq's names.
        settings: of the architecture and the task, as fairseq's arguments.
    """
    arguments = argparse.Namespace(**settings)
    state: dict[str, Any] = {
        "args": arguments,
        "cfg": None,
        "model": collections.OrderedDict(weights),
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "extra_state": {},
        "last_optimizer_state": None,
        "task_state": {},
    }
    with replaced(file) as new:
        torch.save(state, new)
