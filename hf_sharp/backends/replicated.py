"""The backend of models whose weights each process holds whole: one process, or DDP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from hf_sharp.arithmetic import Scalar
from hf_sharp.backends.base import AbstractBackend, check_dense, scale_of
from hf_sharp.backends.units import unit_norms
from hf_sharp.parameters import Perturb, describe, same, trainable
from hf_sharp.vector import Parts, Space, Vector

_CHUNK_BYTES = 25 * 2**20


class Replicated(AbstractBackend):
    """All weights on every rank. Without DDP the communication is left out, and nothing else changes.

    Args:
        model: the module whose trainable parameters are trained, as the loop calls it.
        perturb: the user's name patterns, see `hf_sharp.parameters.describe`.
        scaler: the loop's.
        sync_each_batch: whether DDP reduces after every micro-batch, as the loop was told to.
        local: whether each rank has its own perturbation.
    """

    def __init__(
        self,
        model: nn.Module,
        perturb: Perturb = None,
        scaler: GradScaler | None = None,
        *,
        sync_each_batch: bool = False,
        local: bool = False,
    ) -> None:
        self._scaler, self._local = scaler, local
        self._ddp = next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)
        # A static graph learns in its first two reductions how often each weight is used between them.
        self._each = sync_each_batch or (self._ddp is not None and self._ddp.static_graph)
        self._model = model if self._ddp is None else self._ddp.module
        self._perturb = perturb
        self.parameters: list[nn.Parameter] = []
        self._look()

    def refresh(self) -> None:
        if not same(trainable(self._model).values(), self.parameters):
            self._look()
        if self._local and self._ddp is not None and self._ddp.will_sync_module_buffers():
            # Once per step, as in a plain one; left to the passes, each of them would do it again.
            self._ddp._sync_buffers()
            self._ddp.require_forward_param_sync = False

    def _look(self) -> None:
        pieces = describe(self._model, self._perturb)
        self.parameters = list(trainable(self._model).values())
        self.space = Space(pieces, self.weights(), self.total, self.parameters[0].device)

    def weights(self) -> list[Tensor]:
        return [p.detach() for p in self.parameters]

    def publish(self) -> None:
        """Nothing to do: the forward reads the weights themselves, once autocast forgets its casts of the old ones."""
        torch.clear_autocast_cache()

    def take_gradient(self) -> Parts:
        in_bucket = self._ddp is not None and self._ddp.gradient_as_bucket_view  # the next backward writes there
        gradient = [p.grad.clone() if in_bucket and p.grad is not None else p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        check_dense(self.space.pieces, gradient)
        return gradient

    def put_gradient(self, parts: Parts) -> None:
        for p, part in zip(self.parameters, parts, strict=True):
            p.grad = part

    def loss_scale(self) -> Scalar:
        return scale_of(self._scaler, self.space)

    def total(self, x: Tensor, op: str) -> Tensor:
        return x

    @property
    def rank(self) -> int:
        return 0 if self._ddp is None else dist.get_rank(self._ddp.process_group)

    def mean(self, loss: Tensor) -> Tensor:
        if self._ddp is None:
            return loss
        summed = loss.clone()
        dist.all_reduce(summed, group=self._ddp.process_group)
        return summed / dist.get_world_size(self._ddp.process_group)

    def average(self, parts: Parts) -> Parts:
        if self._ddp is None:
            return parts
        self._ddp.require_forward_param_sync = True  # of the next step's buffers
        group, ranks = self._ddp.process_group, dist.get_world_size(self._ddp.process_group)
        anywhere = [part is not None for part in parts]
        if self._ddp.find_unused_parameters:  # elsewhere all ranks have gradients for the same parameters
            found = torch.tensor(anywhere, dtype=torch.int32, device=self.space.device)
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
            anywhere = found.bool().tolist()
        averaged = [
            part if part is not None or not here else torch.zeros_like(w)
            for part, w, here in zip(parts, self.space.like, anywhere, strict=True)
        ]
        for chunk in _chunks([x for x in averaged if x is not None]):
            flat = torch.cat([x.reshape(-1) for x in chunk]).div_(ranks)
            dist.all_reduce(flat, group=group)
            for x, mean in zip(chunk, flat.split([x.numel() for x in chunk]), strict=True):
                x.copy_(mean.view(x.shape))
        return averaged

    def unit_norms(self, v: Vector) -> list[Tensor]:
        return unit_norms(self.space, v)

    @contextmanager
    def evaluation(self, *, last: bool, local: bool) -> Iterator[None]:
        if self._ddp is None:
            yield
            return
        before = self._ddp.require_backward_grad_sync
        self._ddp.require_backward_grad_sync = (last or self._each) and not local
        try:
            with nullcontext() if self._ddp.require_backward_grad_sync else _reducing_nothing(self._ddp):
                yield
        finally:
            self._ddp.require_backward_grad_sync = before


@contextmanager
def _reducing_nothing(ddp: DistributedDataParallel) -> Iterator[None]:
    """DDP with a static graph puts off its first reduction to the end of the backward, and fails where there is none."""
    if not ddp.static_graph:
        yield
        return
    before, ddp._static_graph_delay_allreduce_enqueued = ddp._static_graph_delay_allreduce_enqueued, True
    try:
        yield
    finally:
        ddp._static_graph_delay_allreduce_enqueued = before


def _chunks(parts: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one dtype with at most 25 MB together, or one larger tensor."""
    run: list[Tensor] = []
    for x in parts:
        size = sum(y.numel() * y.element_size() for y in run)
        if run and (run[0].dtype != x.dtype or size + x.numel() * x.element_size() > _CHUNK_BYTES):
            yield run
            run = []
        run.append(x)
    if run:
        yield run
