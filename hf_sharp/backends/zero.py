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


def loss_scale_of(engine: Any) -> float:
    """What the engine multiplies a loss with: 1 without ZeRO, though the optimizer there divides by its scale."""
    return float(engine.optimizer.loss_scale) if isinstance(engine.optimizer, ZeROOptimizer) else 1.0


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
    """Whole low-precision weights, and each rank's own gradient, reduced once when the step is due; ZeRO-0, -1, -2."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine, {})
        self._engine = engine

    @contextmanager
    def held_back(self) -> Iterator[None]:
        engine, staged = self._engine, isinstance(self._engine.optimizer, DeepSpeedZeroOptimizer)
        engine.inside_no_sync_ctxt = True
        if staged:
            engine.optimizer._coalesce_grad_reduction = True
        try:
            yield
        finally:
            engine.inside_no_sync_ctxt = False
            if staged:
                engine.optimizer._coalesce_grad_reduction = False

    def reduce(self) -> None:
        self._engine.set_gradient_accumulation_boundary(True)
        if isinstance(self._engine.optimizer, DeepSpeedZeroOptimizer):
            with self._engine.coalesce_grad_reduction():
                pass  # on leaving it, the engine reduces what is in the gradients
        else:
            self._engine.allreduce_gradients()


class _Flat(AbstractStore):
    """Each rank keeps a range of the flattened weights (ZeRO-1, -2), with or without CPU offload."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer) -> None:
        self._optimizer = optimizer
        self._lists: dict[int, list[Tensor]] = {}
        self._held = [p for group in optimizer.params_in_partition for p in group if p._hp_mapping is not None]
        self.fragments = [_flat_fragment(p) for p in self._held]

    @contextmanager
    def held_back(self) -> Iterator[None]:
        self._lists = {}  # the pass before may be forgotten by now
        yield

    def weights(self) -> list[Tensor]:
        return [p._hp_mapping.hp_fragment.detach() for p in self._held]

    def publish(self) -> None:
        self._optimizer.update_lp_params()

    def take(self) -> Parts:
        optimizer = self._optimizer
        parts: Parts = [self._gradient(p) for p in self._held]
        for i, group in enumerate(optimizer.bit16_groups):
            if optimizer.cpu_offload:
                optimizer.single_partition_of_fp32_groups[i].grad.zero_()
            elif optimizer.averaged_gradients.get(i) is not None:
                self._lists[i] = optimizer.averaged_gradients[i]
            optimizer.averaged_gradients[i] = optimizer.all_grad_tensors[i] = None
            for p in group:
                p.grad = p.grad_accum = None
        optimizer.micro_step_id = -1
        return parts

    def _gradient(self, p: Any) -> Tensor | None:
        there = p._hp_mapping
        if self._optimizer.cpu_offload:
            self._optimizer._wait_for_offload_copies()
            return there.get_lp_grad_fragment(p._index_in_param_group).clone()
        if self._optimizer.averaged_gradients.get(there.param_group_index) is None:
            return None
        return there.get_lp_grad_fragment(p._index_in_param_group).reshape(-1).to(there.hp_fragment.dtype)

    def put(self, parts: Parts) -> None:
        optimizer = self._optimizer
        if not optimizer.cpu_offload:
            optimizer.averaged_gradients.update(self._lists)
        for p, part in zip(self._held, parts, strict=True):
            slot = p._hp_mapping.get_lp_grad_fragment(p._index_in_param_group)
            value = torch.zeros_like(slot).reshape(-1) if part is None else part
            if slot.data_ptr() != value.data_ptr():
                slot.copy_(value.view(slot.shape))
            if optimizer.cpu_offload:
                optimizer.norm_for_param_grads[optimizer.get_param_id(p)] = torch.linalg.vector_norm(value)
                optimizer.update_offload_overflow_tracker(value)


class _FlatWithWholeGradients(AbstractStore):
    """Each rank keeps a range of the flattened weights, and all gradients in float32 (ZeRO-1 in bf16)."""

    def __init__(self, optimizer: BF16_Optimizer) -> None:
        self._optimizer = optimizer
        self._seen: list[list[bool]] = [[False] * len(group) for group in optimizer.bf16_groups]
        places = [(i, j, p) for i, group in enumerate(optimizer.bf16_groups) for j, p in enumerate(group)]
        self._places = [(i, j, p) for i, j, p in places if p._hp_mapping is not None]
        self.fragments = [_flat_fragment(p) for _, _, p in self._places]

    def weights(self) -> list[Tensor]:
        return [p._hp_mapping.hp_fragment.detach() for _, _, p in self._places]

    def publish(self) -> None:
        self._optimizer.update_lp_params()

    def take(self) -> Parts:
        optimizer = self._optimizer
        parts: Parts = [
            slot.to(torch.float32, copy=True) if optimizer.fp32_groups_has_gradients[i][j] else None
            for (i, j, _), slot in zip(self._places, self._slots(), strict=True)
        ]
        self._seen = [list(group) for group in optimizer.fp32_groups_has_gradients]
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
        optimizer.fp32_groups_has_gradients = self._seen
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


def _flat_fragment(p: Any) -> Fragment:
    at = p._hp_mapping.lp_fragment_address
    return Fragment(p, at.start, at.start + at.numel)


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
