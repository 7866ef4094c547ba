"""What a later pass must find as the first one found it: inputs, random streams, buffers."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONTAINERS = (Tensor, Mapping, list, tuple)


@dataclass(frozen=True)
class Streams:
    """Where the random streams that a model can draw from stand: torch on CPU and on the device, numpy, python."""

    cpu: Tensor
    device: Tensor | None
    numpy: tuple | dict
    python: tuple

    @classmethod
    def now(cls, device: torch.device) -> Streams:
        """The streams as they stand, for models on ``device``."""
        on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), on_device, np.random.get_state(), random.getstate())

    def rewind(self, device: torch.device) -> None:
        """Put the streams back to where they stood."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(device).set_rng_state(self.device, device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


class Buffers:
    """The bits of a model's buffers at one moment, and which tensors held them.

    All are copied, since a module may write through ``.data``, which no version counter sees.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [(module._buffers, dict(module._buffers)) for module in model.modules()]
        self._buffers = [b for _, held in self._held for b in held.values() if b is not None]
        self._bits = [_distinct(buffer).clone() for buffer in self._buffers]

    @torch.no_grad()
    def put_back(self) -> None:
        """Write the bits back into the tensors that held them, and those tensors back into their modules."""
        for live, held in self._held:
            if live.keys() != held.keys() or any(live[name] is not buffer for name, buffer in held.items()):
                live.clear()
                live.update(held)
        for buffer, bits in zip(self._buffers, self._bits, strict=True):
            _distinct(buffer).copy_(bits)


def _distinct(x: Tensor) -> Tensor:
    """A view with each element of x in it once; an expanded tensor has elements that share their memory."""
    return x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())] if x.ndim else x


class KeptInputs:
    """The inputs of one micro-batch, to be handed out once per pass.

    ``compute_loss`` takes entries out of its inputs, so each pass gets fresh containers around the same tensors. A tensor
    that the model writes into would feed the later passes something else, so each of them gets a clone of it.
    """

    def __init__(self, inputs: Any, cloned: set[str] | None) -> None:
        self._given: dict[str, tuple[Tensor, int]] = {}
        self._cloned = cloned
        self._kept = _rebuilt("inputs", inputs, self._keep)

    def _keep(self, path: str, x: Tensor) -> Tensor:
        self._given[path] = (x, _version(x))
        return x.clone() if self._cloned is None or path in self._cloned else x

    def fresh(self) -> Any:
        """The inputs for one later pass."""
        moved = self.moved()
        return _rebuilt("inputs", self._kept, lambda path, x: x.clone() if path in moved else x)

    def moved(self) -> set[str]:
        """The paths of the tensors that were written into since they were kept."""
        return {path for path, (x, version) in self._given.items() if _version(x) != version}


class InputMemory:
    """Which input tensors this model writes into, learnt from the first micro-batch on."""

    def __init__(self) -> None:
        self._written: set[str] | None = None

    def keep(self, inputs: Any) -> KeptInputs:
        """Keep one micro-batch before the model sees it."""
        return KeptInputs(inputs, self._written)

    def learn(self, kept: KeptInputs) -> None:
        """Look what the pass wrote into; called after the first pass over a micro-batch."""
        first, moved = self._written is None, kept.moved()
        new = moved - (self._written or set())
        self._written = (self._written or set()) | new
        if new:
            late = "" if first else " In this step the later passes see what the model wrote."
            warnings.warn(
                f"The model writes into its inputs: {', '.join(sorted(new))}. They are cloned for every pass from now on, "
                f"which costs memory and time.{late} Let the model or the collator make a copy to avoid it.",
                stacklevel=2,
            )


def _version(x: Tensor) -> int:
    """How often a tensor was written into; tensors made in inference mode cannot be."""
    return 0 if x.is_inference() else x._version


def _rebuilt(path: str, x: Any, function: Callable[[str, Tensor], Tensor]) -> Any:
    """``x`` with new containers and ``function(path, tensor)`` in place of its tensors; anything else as it is."""
    if isinstance(x, Tensor):
        return function(path, x)
    if isinstance(x, Mapping):
        out: Any = copy.copy(x)
        for key, value in x.items():
            if isinstance(value, _CONTAINERS):
                out[key] = _rebuilt(f"{path}[{key!r}]", value, function)
        return out
    if isinstance(x, list) or (isinstance(x, tuple) and any(isinstance(value, _CONTAINERS) for value in x)):
        values = [_rebuilt(f"{path}[{i}]", value, function) for i, value in enumerate(x)]
        kind: Any = type(x)
        return kind._make(values) if isinstance(x, tuple) and kind is not tuple else kind(values)
    return x
