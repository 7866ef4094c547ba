"""The backend of DeepSpeed's engine, ZeRO stages 0 to 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from hf_sharp.arithmetic import Scalar
from hf_sharp.backends.base import AbstractBackend
from hf_sharp.backends.units import sharded_unit_norms, unit_norms
from hf_sharp.backends.zero import loss_scale_of, outside, shape_of, store_of
from hf_sharp.parameters import Perturb, describe, trainable
from hf_sharp.vector import Parts, Space, Vector

_REFUSED = {
    "zero_optimization.zero_hpz_partition_size": (1, "secondary shards (hpZ) are not written back"),
    "zero_optimization.zero_quantized_weights": (False, "quantised gathers (qwZ) would round the shift away"),
    "zero_optimization.zero_quantized_gradients": (False, "quantised reductions (qgZ) would round the passes' differences"),
    "zero_optimization.zenflow": (None, "it updates weights between the passes"),
    "zero_optimization.offload_optimizer.ratio": (1.0, "the weights would be on two devices"),
    "compile.deepcompile": (False, "it reduces gradients where they cannot be held back"),
}


def check_config(accelerator: Accelerator) -> int:
    """The ZeRO stage.

    Raises:
        ValueError: the configuration has something that cannot hold a shift.
    """
    config = accelerator.state.deepspeed_plugin.hf_ds_config
    for device in ("offload_optimizer", "offload_param"):
        if config.get_value(f"zero_optimization.{device}.device") == "nvme":
            raise ValueError(f"Weights must be in memory, got {device} to NVMe. Offload to the CPU: device: cpu.")
    for name, (plain, reason) in _REFUSED.items():
        got = config.get_value(name, plain)
        if got != plain:
            raise ValueError(f"{name} must be {plain}, got {got!r}: {reason}. Leave it out of the DeepSpeed config.")
    if str(config.get_value("optimizer.type", "")).lower() == "muon":
        raise ValueError(
            "The optimizer must take gradients as the backward leaves them, got Muon in the DeepSpeed config, whose update "
            "takes their place at once. Use another one, such as AdamW."
        )
    return int(config.get_value("zero_optimization.stage", 0))


class DeepSpeed(AbstractBackend):
    """A model in DeepSpeed's engine. The shift is made in the weights that the optimizer keeps, and published as the engine
    publishes a step.

    Args:
        accelerator: the loop's, with the engine prepared.
        perturb: the user's name patterns, see `hf_sharp.parameters.describe`.
        local: whether each rank shall have its own perturbation; not under ZeRO-3.

    Raises:
        ValueError: the configuration has something that cannot hold a shift, or ranks that share their samples shall have
            perturbations of their own.
    """

    def __init__(self, accelerator: Accelerator, perturb: Perturb = None, *, local: bool = False) -> None:
        self.whole = check_config(accelerator) < 3
        self._accelerator = accelerator
        self._engine = engine = accelerator.deepspeed_engine_wrapped.engine
        self._everything = describe(engine.module, perturb, shape_of)
        self._group = engine.seq_data_parallel_group  # over which ZeRO cuts
        if local and engine.sequence_parallel_size > 1:
            raise ValueError(
                "perturb_over='device' needs whole samples on each device, got sequence parallelism over "
                f"{engine.sequence_parallel_size} ranks. Use perturb_over='batch' or 'micro_batch'."
            )
        self._store = store_of(engine, local=local)
        by_name = trainable(engine.module)
        self.parameters = list(by_name.values())
        whole = {id(by_name[piece.name]): piece for piece in self._everything}
        pieces = [
            replace(whole[id(fragment.parameter)], start=fragment.start, stop=fragment.stop)
            for fragment in self._store.fragments
        ]
        self.space = Space(tuple(pieces), self.weights(), self.total, torch.device(engine.device))
        self._filled = self._stale = False

    def refresh(self) -> None:
        """Settle what an exception left. The engine keeps the parameters that it was made with."""
        self.settle()

    def weights(self) -> list[Tensor]:
        return self._store.weights()

    def publish(self) -> None:
        """Only noted: it is done together by all ranks, when the next pass or the loop needs it."""
        self._stale = True

    def settle(self) -> None:
        if self._stale:
            self._store.publish()
            self._stale = False
            torch.clear_autocast_cache()

    def take_gradient(self) -> Parts:
        parts: Parts = self._store.take() if self._filled else [None] * len(self.space.pieces)
        self._filled = False
        return parts

    def put_gradient(self, parts: Parts) -> None:
        self._store.put(parts)
        self._filled = True

    def commit(self) -> None:
        self._store.reduce()
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        self._filled = False
        if self._engine.was_step_applied():
            self._stale = False  # the engine published the weights after its step
        self.settle()

    def loss_scale(self) -> Scalar:
        scale = loss_scale_of(self._engine)
        return 1.0 if scale is None else torch.full((), scale, device=self.space.scalars()[0])

    def total(self, x: Tensor, op: str) -> Tensor:
        if self._store.holds_all:
            return x
        summed = x.to(self.space.device, copy=True)
        dist.all_reduce(summed, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=self._group)
        return summed.to(x.device)

    @property
    def rank(self) -> int:
        return dist.get_rank(self._group)

    def mean(self, loss: Tensor) -> Tensor:
        summed = loss.clone()
        dist.all_reduce(summed, group=self._group)
        return summed / dist.get_world_size(self._group)

    def average(self, parts: Parts) -> Parts:
        """The parts as they are: the engine's own reduction comes before its step."""
        return parts

    def gather(self, v: Vector) -> Parts:
        if self._store.holds_all:
            return list(v.tensors())
        flat, places = self._flat()
        for at, x in zip(self._store.fragments, v.tensors(), strict=True):
            if x is not None:
                places[id(at.parameter)].view(-1)[at.start : at.stop].copy_(x.reshape(-1))
        dist.all_reduce(flat, group=self._group)
        return list(places.values())

    def scatter(self, whole: Parts) -> Parts:
        flat, places = self._flat()
        for place, x in zip(places.values(), whole, strict=True):
            if x is not None:
                place.copy_(x)
        dist.all_reduce(flat, group=self._group)
        # as the engine's reduction: the sum over the ranks of one sample
        flat.div_(dist.get_world_size(self._group) / self._engine.sequence_parallel_size)
        return [
            places[id(at.parameter)].view(-1)[at.start : at.stop].view(like.shape).to(like, copy=True)
            for at, like in zip(self._store.fragments, self.space.like, strict=True)
        ]

    def _flat(self) -> tuple[Tensor, dict[int, Tensor]]:
        """Zeros for the whole trainable weights in one piece, as precise as the masters, and each parameter's place."""
        sizes = [p.numel() for p in self.parameters]
        flat = torch.zeros(sum(sizes), dtype=torch.float32, device=self.space.device)
        places = zip(self.parameters, flat.split(sizes), strict=True)
        return flat, {id(p): place.view(p.shape) for p, place in places}

    def unit_norms(self, v: Vector) -> list[Tensor]:
        whole = self._store.holds_all
        return unit_norms(self.space, v) if whole else sharded_unit_norms(self._everything, self.space, v)

    @contextmanager
    def evaluation(self, *, last: bool, local: bool) -> Iterator[None]:
        self.settle()
        usual = self._accelerator.deepspeed_engine_wrapped
        self._accelerator.deepspeed_engine_wrapped = _Backward(self._engine, boundary=last)
        self._filled = True
        try:
            with self._store.held_back():
                yield
        finally:
            self._accelerator.deepspeed_engine_wrapped = usual

    def differentiation(self) -> AbstractContextManager[None]:
        self.settle()
        return outside(self._engine)


@dataclass(frozen=True)
class _Backward:
    """Stands in for accelerate's wrapper of the engine, whose backward would also step."""

    engine: Any
    boundary: bool

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        self.engine.set_gradient_accumulation_boundary(self.boundary)
        self.engine.backward(loss, **kwargs)
