"""The backend of models whose weights are sharded by FSDP2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DeviceMesh, DTensor, Shard

from hf_sharp.arithmetic import Scalar
from hf_sharp.backends.base import AbstractBackend, check_dense, scale_of
from hf_sharp.backends.units import sharded_unit_norms
from hf_sharp.parameters import Perturb, describe, same, trainable
from hf_sharp.vector import Parts, Piece, Space, Vector


class FullySharded(AbstractBackend):
    """Each rank holds rows of every weight (FSDP2), on a mesh that may also have replicas (HSDP).

    Trainable parameters that are not sharded, such as adapters beside a sharded base, are on every rank, and count once in
    norms and products.

    Args:
        model: the module as the loop calls it.
        perturb: the user's name patterns, see `hf_sharp.parameters.describe`.
        scaler: the loop's.
        sync_each_batch: whether gradients are reduced after every micro-batch, as the loop was told to.

    Raises:
        ValueError: weights are sharded otherwise than by rows on one mesh.
    """

    whole = False

    def __init__(
        self,
        model: nn.Module,
        perturb: Perturb = None,
        scaler: GradScaler | None = None,
        *,
        sync_each_batch: bool = False,
    ) -> None:
        self._model, self._perturb, self._scaler, self._each = model, perturb, scaler, sync_each_batch
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        reshard(self._sharded)
        self._look()

    def refresh(self) -> None:
        reshard(self._sharded)
        if not same(trainable(self._model).values(), self._parameters):
            self._look()

    def _look(self) -> None:
        self._everything = describe(self._model, self._perturb)
        self._parameters = list(trainable(self._model).values())
        some = next(p for p in self._model.parameters() if isinstance(p, DTensor))
        _check_cuts(self._everything, self._parameters, some)
        self._mesh: DeviceMesh = some.device_mesh
        self._groups = [self._mesh.get_group(i) for i, placed in enumerate(some.placements) if isinstance(placed, Shard)]
        first = all(dist.get_rank(group) == 0 for group in self._groups)
        self.space = Space(
            tuple(_held(piece, p) for piece, p in zip(self._everything, self._parameters, strict=True)),
            self.weights(),
            self.total,
            device=torch.empty(0, device=self._mesh.device_type).device,
            counted=[first or isinstance(p, DTensor) for p in self._parameters],
        )

    def weights(self) -> list[Tensor]:
        return [_local(p.detach()) for p in self._parameters]

    def publish(self) -> None:
        """Drop gathered copies of the old weights, where the user has FSDP keep them; autocast forgets its casts."""
        reshard(self._sharded)
        torch.clear_autocast_cache()

    def take_gradient(self) -> Parts:
        gradient = [None if p.grad is None else _local(p.grad) for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        check_dense(self.space.pieces, gradient)
        return gradient

    def put_gradient(self, parts: Parts) -> None:
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = (
                DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
                if isinstance(p, DTensor) and part is not None
                else part
            )

    def loss_scale(self) -> Scalar:
        return scale_of(self._scaler, self.space)

    def total(self, x: Tensor, op: str) -> Tensor:
        summed = x.to(self.space.device, copy=True)
        for group in self._groups:
            dist.all_reduce(summed, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=group)
        return summed.to(x.device)

    @property
    def rank(self) -> int:
        return dist.get_rank()

    def mean(self, loss: Tensor) -> Tensor:
        summed = loss.clone()
        for axis in range(self._mesh.ndim):
            dist.all_reduce(summed, group=self._mesh.get_group(axis))
        return summed / self._mesh.size()

    def average(self, parts: Parts) -> Parts:
        raise NotImplementedError("All ranks of sharded weights stand at the same point.")

    def unit_norms(self, v: Vector) -> list[Tensor]:
        return sharded_unit_norms(self._everything, self.space, v)

    @contextmanager
    def evaluation(self, *, last: bool, local: bool) -> Iterator[None]:
        for module in self._sharded:
            module.set_requires_gradient_sync(last or self._each, recurse=False)
        try:
            yield
        finally:
            for module in self._sharded:
                module.set_requires_gradient_sync(True, recurse=False)


def reshard(modules: Iterable[object]) -> None:
    """Let the parameters of modules that FSDP2 holds be this rank's rows; after an evaluation the root has whole ones."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _check_cuts(pieces: tuple[Piece, ...], parameters: list[nn.Parameter], some: DTensor) -> None:
    """Raises ValueError where weights are on several meshes, or cut along another axis than their first."""
    for piece, p in zip(pieces, parameters, strict=True):
        cuts = [placed for placed in p.placements if not placed.is_replicate()] if isinstance(p, DTensor) else []
        if isinstance(p, DTensor) and (p.device_mesh != some.device_mesh or len(cuts) > 1 or cuts != [Shard(0)] * len(cuts)):
            raise ValueError(
                f"FSDP2 must cut all trainable weights by rows on one mesh, got {p.placements} on {p.device_mesh} for "
                f"{piece.name!r}. Leave out shard_placement_fn, tensor and expert parallelism."
            )


def _held(piece: Piece, p: nn.Parameter) -> Piece:
    """What this rank holds of a parameter: whole rows, as ``torch.chunk`` shares them out."""
    cut = None
    if isinstance(p, DTensor):
        cut = next((i for i, placed in enumerate(p.placements) if isinstance(placed, Shard)), None)
    if not isinstance(p, DTensor) or cut is None:
        return piece
    rows, row = piece.shape[0], p.numel() // max(1, piece.shape[0])
    most = -(-rows // p.device_mesh.size(cut))
    start = min(rows, most * p.device_mesh.get_local_rank(cut))
    return replace(piece, start=start * row, stop=min(rows, start + most) * row)
