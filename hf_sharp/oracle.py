"""The gradient oracle: what answers a method over the micro-batches of one step."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_sharp.arithmetic import Scalar
from hf_sharp.backends.base import AbstractBackend
from hf_sharp.clock import Clock
from hf_sharp.problem import AbstractOracle, Point
from hf_sharp.replay import Buffers, KeptInputs, Streams
from hf_sharp.telemetry import Telemetry
from hf_sharp.vector import Parts, Piece, Vector

_ROOM = 2.0**8
"""The most that a loss is scaled for two backwards: the second one multiplies with what the first one made, and overflows
in float16 where a usual scale would only help the first."""

Backward: TypeAlias = Callable[[Tensor], None]
Run: TypeAlias = Callable[[Any, Backward | None], Tensor]
"""Forward and backward of one micro-batch: takes the inputs and a stand-in for the backward (None: the usual one), leaves
the gradient, and returns the loss that was differentiated, detached."""


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch as the first pass met it."""

    run: Run
    inputs: KeptInputs
    streams: Streams


@dataclass
class Oracle(AbstractOracle):
    """The oracle over the micro-batches of one optimizer step.

    Args:
        model: whose buffers and autograd graph are meant.
        backend: where weights and gradients live.
        seed: of the noise.
        local: whether each rank works on its own samples only.
        telemetry: takes the scalars.
        memory, clock: see `AbstractOracle`.
        share: what the loss of each micro-batch was multiplied with for the sum over an accumulation window that is longer
            than this oracle's; 1 where the oracle sees the whole window.
        loss_scale: what gradients are multiplied with against underflow; 1 without a scaler.
        old: buffers kept across steps, made when they are first needed; they take the weights that are shifted.
        first: see `AbstractOracle`.
        micro_batches: those of the step, in order.
        present: per piece whether any pass had a gradient for it.
        latest: the parts of the gradient of the latest pass.
        norms: the gradients' norms of all passes, where there is a loss scale that they decide about.
    """

    model: nn.Module
    backend: AbstractBackend
    seed: int
    local: bool
    telemetry: Telemetry
    memory: dict[str, Vector]
    clock: Clock
    share: float
    loss_scale: Scalar
    old: Parts
    first: Vector | None = None
    micro_batches: list[MicroBatch] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    latest: Parts = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    _own: Point | None = None
    _seen: Point | None = None
    _lent: weakref.ref | None = None
    _before: Buffers = field(init=False)
    _after: tuple[Buffers, Streams] | None = None

    @cached_property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.backend.space.device

    def begin(self, first: Vector | None) -> None:
        """Name the place of the first pass, and remember the buffers that every pass starts from."""
        self.first, self._before = first, Buffers(self.model)
        self._asked = None if first is None else weakref.ref(first)

    def complete(self, losses: list[Tensor]) -> None:
        """End the first pass: take its gradient as the answer at its place."""
        own = self._own = self._point(losses)
        self.telemetry.first(own.loss, own.grad)
        self._seen = own if self.telemetry.observe else None

    def __call__(self, shift: Vector | None = None) -> Point:
        own = self._recalled() if self._is_first(shift) else None
        if own is not None:
            return own
        seen = None if shift is None else self._seen
        with self.displaced(shift):
            point = self._point(self._replay(None, lambda last: self.backend.evaluation(last=last, local=self.local)))
            applied = None if seen is None or shift is None else self._applied(shift)
        self.telemetry.passes += 1
        if seen is not None and shift is not None and applied is not None:
            self.telemetry.later(point.loss, point.grad, seen.grad, shift, applied)
        return point

    def _is_first(self, shift: Vector | None) -> bool:
        return shift is None if self._asked is None else shift is not None and shift is self._asked()

    def _recalled(self) -> Point | None:
        """The answer of the first pass. Once it was lent, its gradient and its shift are kept alive by whoever uses them: a
        method that is done with them shall not pay for their memory in the next pass.
        """
        if self._own is not None:
            own, self._own, self.first = self._own, None, None
            self._lent = weakref.ref(own.grad.parts)
            self._loss, self._scale = own.loss, own.grad.scale
            return own
        parts = None if self._lent is None else self._lent()
        return None if parts is None else Point(self._loss, Vector(self.backend.space, parts, self._scale))

    def hessian_vector(self, v: Vector, shift: Vector | None = None) -> Vector:
        if not self.backend.whole:
            raise ValueError("Exact Hessian products need all weights on each device, got shards. Use gradient differences.")
        parameters = self.backend.parameters
        vectors = self.backend.gather(v)  # true sizes: a loss scale left in them would overflow in the second backward
        products: Parts = [None] * len(parameters)
        scale = self.loss_scale.clamp(max=_ROOM) if isinstance(self.loss_scale, Tensor) else self.loss_scale

        def twice(loss: Tensor) -> None:
            gradient = torch.autograd.grad(loss * scale, parameters, create_graph=True, allow_unused=True)
            pairs = [(g, x) for g, x in zip(gradient, vectors, strict=True) if g is not None and x is not None]
            dots = [(g * x).sum() for g, x in pairs if g.requires_grad]
            if dots:  # not by backward(), whose hooks would reduce
                second = torch.autograd.grad(torch.stack(dots).sum(), parameters, allow_unused=True)
                products[:] = [
                    part if more is None else _summed(part, more, like=x)
                    for part, more, x in zip(products, second, vectors, strict=True)
                ]

        # The fused attention kernels have no second derivative.
        with self.displaced(shift), sdpa_kernel(SDPBackend.MATH):
            self._replay(twice, lambda last: self.backend.differentiation())
            self.telemetry.passes += 1
            parts = products if self.local else self.backend.scatter(products)
            return Vector(self.backend.space, parts, 1.0 / scale) / self.share

    @property
    def weights(self) -> Vector:
        return Vector(self.backend.space, list(self.backend.weights()))

    def noise(self, draw: int, sizes: Sequence[Tensor]) -> Vector:
        generator = torch.Generator(self.device)
        source = (self.seed, self.backend.rank) if self.local else (self.seed,)

        def normal(piece: Piece, x: Tensor, size: Tensor) -> Tensor:
            generator.manual_seed(_stable_seed(*source, self.step, draw, piece.name, piece.shape))
            full = torch.randn(piece.shape, generator=generator, device=self.device, dtype=torch.float32)  # in any precision
            z = x.copy_(full.reshape(-1)[piece.start : piece.stop].reshape(x.shape)).mul_(size)
            return z if piece.factor == 1.0 else z.mul_(piece.factor)

        return self.weights.perturbed().map(normal, sizes)

    def unit_norms(self) -> list[Tensor]:
        return self.backend.unit_norms(self.weights)

    def count(self, name: str, happened: Tensor) -> None:
        self.telemetry.count(name, happened)

    @contextmanager
    def displaced(self, shift: Vector | None) -> Iterator[None]:
        """Let the weights be at ``w + shift`` inside, and have their old bits, in the same storage, outside."""
        if shift is None or shift.is_zero:
            yield
            return
        moved = [i for i, here in enumerate(shift.present) if here]
        weights = self._weights(moved)
        old = [self._kept(i, w) for i, w in zip(moved, weights, strict=True)]
        torch._foreach_copy_(old, weights)
        try:
            shift.add_to_(weights)
            self.backend.publish()
            yield
        finally:
            torch._foreach_copy_(self._weights(moved), old)  # asked again: FSDP moves them in its very first forward
            self.backend.publish()

    def _weights(self, indices: list[int]) -> list[Tensor]:
        weights = self.backend.weights()
        return [weights[i] for i in indices]

    def _kept(self, i: int, w: Tensor) -> Tensor:
        old = self.old[i]
        if old is None:
            old = self.old[i] = torch.empty_like(w)
        return old

    def _replay(self, backward: Backward | None, context: Callable[[bool], AbstractContextManager[None]]) -> list[Tensor]:
        """Forward and backward over all micro-batches, from the buffers and streams of the first pass."""
        last = len(self.micro_batches) - 1
        if self._after is None:
            self._after = Buffers(self.model), Streams.now(self.device)
        self.latest = [None] * len(self.backend.space.pieces)
        buffers_after, streams_after = self._after
        self._before.put_back()
        losses = []
        try:
            for i, micro in enumerate(self.micro_batches):
                micro.streams.rewind(self.device)
                with torch.enable_grad(), context(i == last):
                    losses.append(micro.run(micro.inputs.fresh(), backward))
        except BaseException:
            self.backend.take_gradient()
            raise
        finally:
            buffers_after.put_back()
            streams_after.rewind(self.device)
        return losses

    def _point(self, losses: list[Tensor]) -> Point:
        parts = self.latest = _Parts(self.backend.take_gradient())
        self.present = [a or b is not None for a, b in zip(self.present or [False] * len(parts), parts, strict=True)]
        grad = Vector(self.backend.space, parts, 1.0 / self.loss_scale) / self.share
        if isinstance(self.loss_scale, Tensor):
            self.norms.append(torch.as_tensor(grad.norm()))
        loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        loss = (loss if self.local else self.backend.mean(loss)) / self.share
        return Point(loss.to(self.backend.space.scalars()[0]), grad)

    def _applied(self, shift: Vector) -> Tensor:
        """The norm of the shift as the weights' precision let it happen; asked while the weights are shifted."""
        moved: Parts = [
            w - old if here and old is not None else None
            for here, w, old in zip(shift.present, self.backend.weights(), self.old, strict=True)
        ]
        return Vector(self.backend.space, moved).norm()


class _Parts(list):
    """Parts that a weak reference can point at."""


def _stable_seed(*key: object) -> int:
    """A seed that depends on the key alone: not on the process, the platform or the version of Python."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _summed(part: Tensor | None, more: Tensor, like: Tensor | None) -> Tensor:
    """A gradient added to a tensor of our own, in the precision of the vector: autograd's may be one number, expanded."""
    dtype = more.dtype if like is None else like.dtype
    return more.to(dtype, copy=True) if part is None else part.add_(more)
