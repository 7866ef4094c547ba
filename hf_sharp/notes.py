"""What a Trainer notes down while it trains, and what of it the later passes must not change."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, Path, torch.dtype, torch.device, np.generic)
_LIBRARIES = ("accelerate", "builtins", "datasets", "deepspeed", "hf_sharp", "peft", "tokenizers", "torch", "transformers")
_DATA = ("train_dataset", "eval_dataset")
_LONG = 1000
_LARGE = 2**20
_DEPTH = 4


class Notes:
    """The numbers, tensors and containers in the attributes of a Trainer and its loss: metrics, token counts.

    ``compute_loss`` writes them, so that every later pass would count each sample once more. What the passes after the
    first one leave there is put back.

    Looked at are the Trainer's attributes; the dicts, lists, sets, deques, tensors and arrays in them; the attributes of
    modules other than the model (losses, metrics); and those of objects that hold nothing but such values (meters). Of lists
    and dicts with more than 1000 entries only the length is kept, and arrays above a megabyte are left alone. Data sets and
    objects of the libraries below the Trainer are not entered: a pass notes nothing there.

    Parameters of such modules that are not the model's keep the gradient of the first pass. Of tensors those are copied that
    were written into since the step before, by their version counter; writes through ``.data`` are not seen.

    Args:
        owner: the Trainer; must have the attributes ``model`` and ``model_wrapped``.
    """

    def __init__(self, owner: Any) -> None:
        self._held_by = ref(owner)  # a Trainer that is done goes at once, and its data loader with it
        self._versions = WeakTensorKeyDictionary()
        self._kept: list[tuple[Any, Any]] | None = None
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []
        self._seen: set[int] = set()
        self._met = False

    @property
    def _owner(self) -> Any:
        return self._held_by()

    def counters(self) -> dict[str, int | float]:
        """The numbers among the Trainer's own attributes, as a micro-batch meets them."""
        return {name: value for name, value in vars(self._owner).items() if type(value) in (int, float)}

    def forget(self) -> None:
        """Let go of what was kept: a first pass is about to write."""
        if not self._met:  # tensors that it leaves alone shall not be copied for the others
            self._take()
            self._met = True
        self._kept, self._gradients = None, []

    @contextmanager
    def replay(self, counters: Mapping[str, int | float]) -> Iterator[None]:
        """A later pass over a micro-batch: inside, the Trainer's own numbers are those that the first pass met, so that a
        loss which counts its calls is the same function in every pass; outside, all is as the first passes left it.
        """
        if self._kept is None:
            self._take()
        own = vars(self._owner)
        own.update({name: value for name, value in counters.items() if type(own.get(name)) in (int, float)})
        for p, _ in self._gradients:
            p.grad = None
        try:
            yield
        finally:
            for live, value in self._kept or ():
                _put_back(live, value)
            for p, gradient in self._gradients:
                p.grad = gradient

    def _take(self) -> None:
        own = vars(self._owner)
        self._kept, self._gradients = [(own, dict(own))], []
        self._seen = {id(own), id(self._owner), id(self._owner.model), id(self._owner.model_wrapped)}
        self._look_at_all(value for name, value in own.items() if name not in _DATA)
        self._seen = set()
        if self._gradients:  # a module may lead back into the model
            of_model = {id(p) for p in self._owner.model.parameters()}
            self._gradients = [(p, gradient) for p, gradient in self._gradients if id(p) not in of_model]

    def _look(self, x: Any) -> None:
        """Keep what x holds, and what its entries hold."""
        if isinstance(x, _PLAIN) or id(x) in self._seen or self._kept is None:
            return
        self._seen.add(id(x))
        if isinstance(x, Tensor):
            self._look_at_tensor(x, self._kept)
        elif isinstance(x, np.ndarray):
            if x.nbytes <= _LARGE:
                self._kept.append((x, x.copy()))
        elif isinstance(x, dict | list) and len(x) > _LONG:
            self._kept.append((x, len(x)))
        elif isinstance(x, dict | list | deque | set):
            self._kept.append((x, dict(x) if isinstance(x, dict) else set(x) if isinstance(x, set) else list(x)))
            self._look_at_all(x.values() if isinstance(x, dict) else x)
        elif isinstance(x, tuple):
            self._look_at_all(x)
        elif (isinstance(x, nn.Module) and not isinstance(x, PreTrainedModel)) or _is_meter(x, _DEPTH):
            self._look(vars(x))

    def _look_at_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._look(value)

    def _look_at_tensor(self, x: Tensor, kept: list[tuple[Any, Any]]) -> None:
        """Keep a copy where somebody wrote into it since the last look: what a first pass leaves alone, later ones do."""
        if isinstance(x, nn.Parameter) and x.requires_grad:
            self._gradients.append((x, x.grad))
        elif not x.requires_grad and not x.is_inference() and self._versions.get(x) != x._version:
            self._versions[x] = x._version
            if self._met:
                kept.append((x, (x._version, x.clone())))


def _is_meter(x: Any, depth: int) -> bool:
    """Whether an object holds nothing but notes."""
    if isinstance(x, type) or type(x).__module__.partition(".")[0] in _LIBRARIES:
        return False
    try:
        held = vars(x)
    except TypeError:
        return False
    return all(_is_note(value, depth) for value in held.values())


def _is_note(x: Any, depth: int) -> bool:
    """Whether a value is a number, text, a tensor, or a container or an object of such."""
    if isinstance(x, (*_PLAIN, Tensor, np.ndarray)):
        return True
    if depth == 0:
        return False
    if isinstance(x, dict | list | deque | set | tuple):
        return len(x) > _LONG or all(_is_note(value, depth - 1) for value in (x.values() if isinstance(x, dict) else x))
    return _is_meter(x, depth - 1)


def _put_back(live: Any, kept: Any) -> None:
    """Give a value its old content, where that changed."""
    if isinstance(live, Tensor):
        version, bits = kept
        if live._version != version:
            with torch.no_grad():
                live.copy_(bits)
    elif isinstance(live, np.ndarray):
        live[...] = kept
    elif isinstance(kept, int):
        while len(live) > kept:
            live.popitem() if isinstance(live, dict) else live.pop()
    elif isinstance(live, dict | set):
        same = _same(live.values(), kept.values()) and live.keys() == kept.keys() if isinstance(live, dict) else live == kept
        if not same:
            live.clear()
            live.update(kept)
    elif not _same(live, kept):
        live.clear()
        live.extend(kept)


def _same(these: Iterable[Any], those: Iterable[Any]) -> bool:
    """Whether two sequences hold the same objects, not equal ones."""
    return [id(x) for x in these] == [id(x) for x in those]
