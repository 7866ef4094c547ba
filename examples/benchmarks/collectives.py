"""The collectives of a step, and what each of them sends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroup, Work
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FEW = 4
"""What carries no more numbers than this carries no vector."""
_TURNS = {
    "allreduce_": 2,
    "allreduce_coalesced_": 2,
    "_allgather_base_": 1,
    "allgather_": 1,
    "allgather_into_tensor_coalesced_": 1,
    "_reduce_scatter_base_": 1,
    "reduce_scatter_": 1,
    "reduce_scatter_tensor_coalesced_": 1,
    "broadcast_": 1,
    "reduce_": 1,
}
"""How often the whole tensor goes round the ring: an all-reduce is a reduce-scatter and an all-gather."""


@dataclass(frozen=True)
class Call:
    """One collective.

    Attributes:
        name: PyTorch's.
        ranks: how many take part.
        entries, size: numbers and bytes of the tensor that these have in it together.
    """

    name: str
    ranks: int
    entries: int
    size: int


class Collectives(TorchDispatchMode):
    """Takes down every collective while it is entered, whoever asks for it: DDP's reducer, FSDP, DeepSpeed or a method.

    Attributes:
        calls: the collectives in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation, and take it down if it is a collective."""
        if _is_collective(func):
            tensors = max((_tensors(arg) for arg in args), key=_bytes)
            name, ranks = func._schema.name.split("::")[1], _group(func, args).size()
            self.calls.append(Call(name, ranks, sum(x.numel() for x in tensors), _bytes(tensors)))
        return func(*args, **(kwargs or {}))


class Aside(TorchDispatchMode):
    """Lets each collective run and end in another thread, on copies in memory that torch's allocator does not know.

    The profiler sees the releases of one thread only, and else gloo's threads would be the last to hold some of the tensors.
    What the transport itself allocates is left out thereby, on all sides.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(max_workers=1)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation; aside if it is a collective."""
        if not _is_collective(func):
            return func(*args, **(kwargs or {}))
        copies = tree_map_only(Tensor, _copied, args)
        out = self._thread.submit(_ended, func, copies, kwargs or {}).result()
        for x, copy in zip(_tensors(args), _tensors(copies), strict=True):
            x.data.copy_(copy)  # without a new version: to autograd nothing has happened
        return out


def _copied(x: Tensor) -> Tensor:
    copy = torch.frombuffer(bytearray(max(1, x.numel()) * x.element_size()), dtype=x.dtype)[: x.numel()].view(x.shape)
    return copy.copy_(x.data)


def _ended(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    out = func(*args, **kwargs)
    Work.unbox(out[-1] if isinstance(out, list | tuple) else out).wait()
    return out


def _group(func: Any, args: tuple) -> ProcessGroup:
    """The processes that take part."""
    names = [argument.name for argument in func._schema.arguments]
    return ProcessGroup.unbox(args[names.index("process_group")])


def _is_collective(func: Any) -> bool:
    return func.namespace == "c10d" and "barrier" not in func._schema.name


def sent(calls: Iterable[Call]) -> float:
    """The bytes that one rank sends in these collectives by the ring algorithms, averaged over the ranks.

    Of the bytes N of the whole tensor (all-gather: of the gathered one, reduce-scatter: of the one to be reduced) each of n
    ranks sends ``(n - 1) / n * N``, in an all-reduce twice that.

    Raises:
        ValueError: a collective is not of these kinds.
    """
    total = 0.0
    for call in calls:
        if call.name not in _TURNS:
            raise ValueError(f"The collectives must be {', '.join(_TURNS)}, got {call.name}. Say in _TURNS what it sends.")
        total += _TURNS[call.name] * (call.ranks - 1) / call.ranks * call.size
    return total


def numbers(calls: Iterable[Call]) -> list[Call]:
    """The collectives that carry a few numbers: losses, norms, products, flags."""
    return [call for call in calls if call.entries <= FEW]


def vectors(calls: Iterable[Call]) -> list[Call]:
    """The others."""
    return [call for call in calls if call.entries > FEW]


def _tensors(arg: Any) -> list[Tensor]:
    return [x for x in tree_leaves(arg) if isinstance(x, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(math.prod(x.shape) * x.element_size() for x in tensors)
