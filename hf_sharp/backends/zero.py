"""Where DeepSpeed's optimizers keep weights and gradients. DeepSpeed's private names are in this file only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.torch_autocast import autocast_if_enabled
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import safe_get_local_grad, safe_set_local_grad
from torch import Tensor

from hf_sharp.replacement import replaced
from hf_sharp.vector import Parts


def shape_of(p: Any) -> tuple[int, ...]:
    """The full shape of a parameter, also where ZeRO-3 left an empty tensor."""
    return tuple(p.ds_shape) if is_zero_param(p) else tuple(p.shape)


def loss_scale_of(engine: Any) -> float | None:
    """What the engine multiplies a loss with; None where nothing is scaled. Without ZeRO that is 1 in float16, though the
    optimizer there divides by its scale.
    """
    optimizer, is_zero = engine.optimizer, isinstance(engine.optimizer, ZeROOptimizer)
    scaler = optimizer.torch_autocast_gradscaler if is_zero else engine.torch_autocast_z0_gradscaler
    if scaler is not None:
        return float(scaler.get_scale())
    if not engine.fp16_enabled():
        return None
    return float(optimizer.loss_scale) if is_zero else 1.0


@contextmanager
def outside(engine: Any) -> Iterator[None]:
    """The engine's forward without its preparations of a backward, which would scale what it is given and reduce."""

    def forward(*inputs: Any, **more: Any) -> Any:
        with autocast_if_enabled(engine):
            return engine.module(*inputs, **more)

    with replaced(engine, "forward", forward):
        yield


@dataclass(frozen=True)
class Fragment:
    """The range of a flattened parameter that this rank keeps. ZeRO hangs names of its own on its parameters."""

    parameter: Any
    start: int
    stop: int


class AbstractStore(ABC):
    """Where a kind of DeepSpeed optimizer keeps weights and gradients; see `AbstractBackend` for the calls."""

    fragments: list[Fragment]
    holds_all = False

    @abstractmethod
    def weights(self) -> list[Tensor]: ...

    @abstractmethod
    def publish(self) -> None: ...

    @abstractmethod
    def take(self) -> Parts: ...

    @abstractmethod
    def put(self, parts: Parts) -> None: ...

    def reduce(self) -> None:  # noqa: B027 - the direction is reduced already, but for a local one
        """Average over the ranks what was put."""

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """The context of a backward."""
        yield


class _Whole(AbstractStore):
    """Weights and gradients whole on each rank, as ZeRO-0 has them. Masters are kept beside low-precision weights."""

    holds_all = True

    def __init__(self, engine: Any, masters: dict[int, Tensor]) -> None:
        self._parameters = [p for p in engine.module.parameters() if p.requires_grad]
        self._masters = [masters.get(id(p), p.detach()) for p in self._parameters]
        self.fragments = [Fragment(p, 0, p.numel()) for p in self._parameters]

    def weights(self) -> list[Tensor]:
        return self._masters

    def publish(self) -> None:
        for p, master in zip(self._parameters, self._masters, strict=True):
            p.detach().copy_(master)

    def take(self) -> Parts:
        parts: Parts = []
        for p, master in zip(self._parameters, self._masters, strict=True):
            parts.append(None if p.grad is None else p.grad.to(master.dtype))
            p.grad = None
        return parts

    def put(self, parts: Parts) -> None:
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = None if part is None else part.to(p.dtype)


class _Local(_Whole):
    """Whole weights, and each rank's own gradient, reduced once when the step is due; ZeRO-0, -1, -2.

    Where the engine accumulates gradients in another precision, each pass's are fetched from there, and the direction is
    brought there to be reduced. Under ZeRO-1 and -2 no rank has all masters, so the weights of the forward are shifted, and
    directions of micro-batches are added in their precision.
    """

    def __init__(self, engine: Any) -> None:
        super().__init__(engine, _masters(engine.optimizer))
        self._engine, self._optimizer = engine, engine.optimizer
        self._staged = isinstance(engine.optimizer, DeepSpeedZeroOptimizer)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        self._engine.inside_no_sync_ctxt = True
        if self._staged:
            self._optimizer._coalesce_grad_reduction = True
        try:
            yield
        finally:
            self._engine.inside_no_sync_ctxt = False
            if self._staged:
                self._optimizer._coalesce_grad_reduction = False

    def take(self) -> Parts:
        optimizer = self._optimizer
        if self._staged and optimizer.use_grad_accum_attribute:
            for p in self._parameters:
                if p.grad_accum is not None:
                    p.grad, p.grad_accum = p.grad_accum.to(p.dtype).view(p.shape), None
        elif isinstance(optimizer, BF16_Optimizer):
            for i, j, p in _places(optimizer):
                if optimizer.fp32_groups_has_gradients[i][j]:
                    p.grad = optimizer.fp32_groups_gradients[i][j].to(p.dtype).view(p.shape)
            optimizer.clear_hp_grads()
        return super().take()

    def reduce(self) -> None:
        optimizer = self._optimizer
        self._engine.set_gradient_accumulation_boundary(True)
        if self._staged:
            if optimizer.use_grad_accum_attribute:
                optimizer.fill_grad_accum_attribute()
            with self._engine.coalesce_grad_reduction():
                pass  # on leaving it, the engine reduces what is in the gradients
            return
        if isinstance(optimizer, BF16_Optimizer):
            for i, j, p in _places(optimizer):
                optimizer._update_hp_grad(p, i, j, clear_lp_grads=False)
            _count_all(optimizer)
        self._engine.allreduce_gradients()


class _Flat(AbstractStore):
    """Each rank keeps a range of the flattened weights (ZeRO-1, -2), with or without CPU offload.

    Where a weight's fragment is in that range is asked of the optimizer's own books. DeepSpeed's links from weights to
    masters do not know of ``round_robin_gradients``.
    """

    def __init__(self, optimizer: DeepSpeedZeroOptimizer) -> None:
        self._optimizer = optimizer
        self._lists: dict[int, list[Tensor]] = {}
        self._places: list[tuple[int, int]] = []
        self.fragments = []
        for i, held in enumerate(optimizer.params_in_partition):
            rank = dist.get_rank(optimizer.real_dp_process_group[i])
            for p in (p for p in held if p.numel()):
                key = optimizer.get_param_id(p)
                start = int(optimizer.grad_start_offset[i][rank][key])
                place = int(optimizer.grad_partition_insertion_offset[i][rank][key])
                stop = min(p.numel(), start + int(optimizer.partition_size[i]) - place)
                self.fragments.append(Fragment(p, start, stop))
                self._places.append((i, place))

    @contextmanager
    def held_back(self) -> Iterator[None]:
        self._lists = {}  # the pass before may be forgotten by now
        yield

    def weights(self) -> list[Tensor]:
        return self._narrowed([flat.detach() for flat in self._optimizer.single_partition_of_fp32_groups])

    def _narrowed(self, flat: list[Tensor]) -> list[Tensor]:
        """The fragments in the ranges of all groups."""
        places = zip(self._places, self.fragments, strict=True)
        return [flat[i].narrow(0, place, at.stop - at.start) for (i, place), at in places]

    def publish(self) -> None:
        self._optimizer.update_lp_params()

    def take(self) -> Parts:
        optimizer, masters = self._optimizer, self._optimizer.single_partition_of_fp32_groups
        parts: Parts = []
        for (i, _), slot in zip(self._places, self._slots(), strict=True):
            parts.append(None if slot is None else slot.reshape(-1).to(masters[i].dtype, copy=optimizer.cpu_offload))
        for i, group in enumerate(optimizer.bit16_groups):
            if optimizer.cpu_offload:
                masters[i].grad.zero_()
            elif optimizer.averaged_gradients.get(i) is not None:
                self._lists[i] = optimizer.averaged_gradients[i]
            optimizer.averaged_gradients[i] = optimizer.all_grad_tensors[i] = None
            for p in group:
                p.grad = p.grad_accum = None
        optimizer.micro_step_id = -1
        return parts

    def _slots(self) -> Parts:
        """Where the optimizer has the gradients of the fragments: in tensors that follow each other, or in the masters'."""
        optimizer = self._optimizer
        if optimizer.cpu_offload:
            optimizer._wait_for_offload_copies()
            return [*self._narrowed([flat.grad for flat in optimizer.single_partition_of_fp32_groups])]
        by_place: dict[tuple[int, int], Tensor] = {}
        for i, tensors in optimizer.averaged_gradients.items():
            place = 0
            for x in tensors or []:
                by_place[i, place] = x
                place += x.numel()
        return [by_place.get(place) for place in self._places]

    def put(self, parts: Parts) -> None:
        optimizer = self._optimizer
        if not optimizer.cpu_offload:
            optimizer.averaged_gradients.update(self._lists)
        for at, slot, part in zip(self.fragments, self._slots(), parts, strict=True):
            assert slot is not None
            value = torch.zeros_like(slot).reshape(-1) if part is None else part
            if slot.data_ptr() != value.data_ptr():
                slot.copy_(value.view(slot.shape))
            if optimizer.cpu_offload:
                optimizer.norm_for_param_grads[optimizer.get_param_id(at.parameter)] = torch.linalg.vector_norm(value)
                optimizer.update_offload_overflow_tracker(value)


class _FlatWithWholeGradients(AbstractStore):
    """Each rank keeps a range of the flattened weights, and all gradients in float32 (ZeRO-1 in bf16)."""

    def __init__(self, optimizer: BF16_Optimizer) -> None:
        self._optimizer = optimizer
        self._places = [(i, j, p) for i, j, p in _places(optimizer) if p._hp_mapping is not None]
        addresses = [p._hp_mapping.lp_fragment_address for _, _, p in self._places]
        self.fragments = [
            Fragment(p, at.start, at.start + at.numel) for (_, _, p), at in zip(self._places, addresses, strict=True)
        ]

    def weights(self) -> list[Tensor]:
        return [p._hp_mapping.hp_fragment.detach() for _, _, p in self._places]

    def publish(self) -> None:
        self._optimizer.update_lp_params()

    def take(self) -> Parts:
        optimizer = self._optimizer
        parts: Parts = [slot.to(torch.float32, copy=True) for slot in self._slots()]
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()
        return parts

    def _slots(self) -> list[Tensor]:
        places = zip(self._places, self.fragments, strict=True)
        return [
            self._optimizer.fp32_groups_gradients[i][j].view(-1).narrow(0, at.start, at.stop - at.start)
            for (i, j, _), at in places
        ]

    def put(self, parts: Parts) -> None:
        optimizer = self._optimizer
        for slot, part in zip(self._slots(), parts, strict=True):
            slot.zero_() if part is None else slot.copy_(part)
        _count_all(optimizer)
        # the engine clips by the norm of the whole gradient, which it expects on each rank
        for i, flat in enumerate(optimizer.fp32_groups_gradients_flat):
            mine = optimizer.fp32_groups_gradient_flat_partition[i].clone()
            dist.all_gather_into_tensor(flat, mine, group=optimizer.real_dp_process_group[i])


class _Gathered(AbstractStore):
    """Each rank keeps a range of every weight, gathered for the forward (ZeRO-3), with or without CPU offload."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
        self._optimizer = optimizer
        self._padded: list[Tensor] = []
        self.fragments = []
        for p in (p for group in optimizer.fp16_groups for p in group if p.requires_grad):
            size = p.partition_numel()
            start = optimizer._get_param_partition_rank(p) * size
            self.fragments.append(Fragment(p, min(start, p.ds_numel), min(start + size, p.ds_numel)))

    def weights(self) -> list[Tensor]:
        optimizer, out = self._optimizer, []
        for at in self.fragments:
            group, offset, _ = optimizer.grad_position[optimizer.get_param_id(at.parameter)]
            out.append(optimizer.fp32_partitioned_groups_flat[group].detach().narrow(0, offset, at.stop - at.start))
        return out

    def publish(self) -> None:
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for i in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(i)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()

    def take(self) -> Parts:
        # clones, since the engine reduces the next pass into the same buffers
        self._padded = [safe_get_local_grad(at.parameter).clone() for at in self.fragments]
        for at, gradient in zip(self.fragments, self._padded, strict=True):
            safe_set_local_grad(
                at.parameter, torch.zeros_like(gradient)
            )  # a parameter unused in the next pass keeps its own
        self._optimizer.zero_grad()
        return [x.narrow(0, 0, at.stop - at.start) for at, x in zip(self.fragments, self._padded, strict=True)]

    def put(self, parts: Parts) -> None:
        for at, padded, part in zip(self.fragments, self._padded, parts, strict=True):
            value = padded.narrow(0, 0, at.stop - at.start)
            if part is None:
                value.zero_()
            elif value.data_ptr() != part.data_ptr():
                value.copy_(part)
            safe_set_local_grad(at.parameter, padded)
        self._padded = []


def _count_all(optimizer: BF16_Optimizer) -> None:
    """Let clipping count all gradients; DeepSpeed counts those that this rank had before it reduced them."""
    optimizer.fp32_groups_has_gradients = [[True] * len(group) for group in optimizer.bf16_groups]


def _places(optimizer: BF16_Optimizer) -> list[tuple[int, int, Any]]:
    """Each weight with the number of its group and its own number there."""
    return [(i, j, p) for i, group in enumerate(optimizer.bf16_groups) for j, p in enumerate(group)]


def store_of(engine: Any, *, local: bool) -> AbstractStore:
    """The store of an engine's optimizer; ``local`` where each rank shall keep a gradient of its own."""
    optimizer = engine.optimizer
    if local:
        return _Local(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _Gathered(optimizer)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return _Flat(optimizer)
    if isinstance(optimizer, BF16_Optimizer):
        return _FlatWithWholeGradients(optimizer)
    return _Whole(engine, _masters(optimizer))


def _masters(optimizer: Any) -> dict[int, Tensor]:
    """The float32 weights that an optimizer keeps beside a parameter of low precision, by the parameter's id."""
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        pairs = [
            pair
            for i, group in enumerate(optimizer.fp16_groups)
            for pair in zip(group, optimizer.fp32_groups[i], strict=True)
        ]
        return {id(p): master.detach() for p, master in pairs}
    if isinstance(optimizer, FP16_Optimizer):
        return {
            id(p): master.view(p.shape)
            for flat, group in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups, strict=True)
            for p, master in zip(group, flat.detach().split([p.numel() for p in group]), strict=True)
        }
    return {}
