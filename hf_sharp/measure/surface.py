"""The loss of a model on a loader, as a function on weight space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from hf_sharp.backends import choose
from hf_sharp.clock import Clock
from hf_sharp.limits import check_scalar
from hf_sharp.measure import second_order
from hf_sharp.measure.batches import Batches, on
from hf_sharp.measure.differences import difference
from hf_sharp.measure.ranks import Ranks
from hf_sharp.measure.settings import How, LossOf
from hf_sharp.measure.sharding import check_exact, check_groups
from hf_sharp.measure.stillness import streams_kept
from hf_sharp.oracle import Backward, MicroBatch, Oracle
from hf_sharp.problem import AbstractOracle, Point
from hf_sharp.replay import Buffers, KeptInputs, Streams
from hf_sharp.telemetry import Telemetry
from hf_sharp.vector import Parts, Vector


class Surface(AbstractOracle):
    """``L(w)``: the mean loss of all samples as a function on weight space, asked like a training step's oracle.

    Made by `hf_sharp.measure.loss_surface`, which holds the model still. Any method's ``direction`` can be asked on it.

    Args:
        model: the module, in the mode in which it is measured.
        batches: this process's samples.
        loss_of: the loss of one batch.
        how: how the loss is taken.
        ranks: the processes that the samples are shared out over.

    Attributes:
        streams: where the random streams stand before each batch.
        draws: whether the loss takes random numbers from them, the same in every pass.
    """

    def __init__(self, model: nn.Module, batches: Batches, loss_of: LossOf, how: How, ranks: Ranks) -> None:
        self.model, self.how, self.ranks, self._loss_of = model, how, ranks, loss_of
        self.passes: Counter[str] = Counter()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.backend = choose(model, None, how.perturb)
        self.space = self.backend.space
        self.first, self.memory = None, {}
        self.clock = Clock(0, SGD(self.parameters[:1], lr=1.0), 1)
        self._shares = 1 if self.backend.whole else ranks.size  # the backend of sharded weights takes means, not sums
        self.batches = batches if self.backend.whole else batches.filled()
        self._weights_of_batches = [n / batches.total * self._shares for n in self.batches.counts]
        self._graph: second_order.Graph | None = None
        self._latest: tuple[Vector, Parts] | None = None
        self._checked = False
        self._oracle = Oracle(
            model=model,
            backend=self.backend,
            seed=how.seed,
            local=False,
            telemetry=Telemetry(),
            memory=self.memory,
            clock=self.clock,
            share=1.0,
            loss_scale=1.0,
            old=[None] * len(self.space.pieces),
        )
        self._oracle.begin(None)
        self._buffers, self.streams = Buffers(model), Streams.now(self.device)
        self.draws = False
        for batch, weight in zip(self.batches.held, self._weights_of_batches, strict=True):
            micro = MicroBatch(self._run(weight), KeptInputs(batch, set()), self.streams)
            self._oracle.micro_batches.append(micro)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.space.device

    @property
    def counted(self) -> list[int]:
        """The indices of the pieces that are perturbed; the others do not count."""
        return [i for i, piece in enumerate(self.space.pieces) if piece.factor > 0]

    @property
    def dimension(self) -> int:
        """How many numbers the perturbed weights are."""
        return sum(math.prod(self.space.pieces[i].shape) for i in self.counted)

    def on(self, batches: Batches) -> Surface:
        """The loss on other samples, which this process looks at alone."""
        return Surface(self.model, batches, self._loss_of, self.how, Ranks())

    def groups(self, m: int | None) -> Iterator[Surface]:
        """The losses on this process's m-sized groups of samples; None: on its batches."""
        check_groups(self.backend.whole)
        for batches in self.batches.groups(m):
            group = self.on(batches)
            group.passes = self.passes
            yield group

    def __call__(self, shift: Vector | None = None) -> Point:
        self.release()
        self.passes["gradient"] += 1
        with torch.no_grad(), streams_kept(self.device):
            if not self.batches.held:
                loss = torch.zeros((), dtype=torch.float64, device=self.device)
                return Point(*self._summed(loss, [None] * len(self.parameters)))
            point = self._oracle(shift)
            return Point(*self._summed(point.loss, list(point.grad.tensors()))) if self.backend.whole else point

    def loss(self, shift: Vector | None = None) -> float:
        """The loss at ``w + shift``, without a gradient: one forward pass."""
        self.release()
        self.passes["forward"] += 1
        losses = [torch.zeros((), dtype=torch.float64, device=self.device)]
        with torch.no_grad(), self._oracle.displaced(shift):
            losses += [loss.double() * weight for loss, weight in self.losses()]
        total = torch.stack(losses).sum()
        self.ranks.sum_([total])
        return float(total) / self._shares

    def hessian_vector(self, v: Vector, shift: Vector | None = None) -> Vector:
        v = v.perturbed()
        if self.how.hvp == "difference":
            return difference(self, v, self.how.step, shift)
        if not self._checked:
            self.check_products()
        self.passes["hessian"] += 1
        with nullcontext() if self._checked else self.ranks.together():
            if shift is not None or len(self.batches.held) > 1:
                self._graph = None
                total = self._product_over_batches(v, shift)
            else:
                total = self._product_of_one_batch(v)
        self._checked = True
        self._latest = (v, total)  # kept, since memory that goes back to the system between products is slow to come again
        with torch.no_grad():
            return self._summed(torch.zeros((), device=self.device), total)[1].perturbed()

    def check_products(self) -> None:
        """Raises ValueError where Hessian products cannot be exact and shall be, as far as that shows without a pass."""
        if self.how.hvp == "exact":
            check_exact(self.backend.whole)
            second_order.check_attention(self.model)

    def _product_over_batches(self, v: Vector, shift: Vector | None) -> Parts:
        total: Parts = [None] * len(self.parameters)
        displaced = self._oracle.displaced(shift)
        with torch.no_grad(), displaced, torch.enable_grad(), second_order.differentiable_attention():
            for inputs, weight in self._replayed():
                total = second_order.added(total, self._graph_of(inputs, weight, keep=False).times(v))
        return total

    def _product_of_one_batch(self, v: Vector) -> Parts:
        """The graph of the gradient is kept for the next product, until another pass is asked for."""
        if self._graph is None and self.batches.held:
            self._buffers.put_back()
            with torch.enable_grad(), streams_kept(self.device), second_order.differentiable_attention():
                self.streams.rewind(self.device)
                inputs = on(self.device, self._oracle.micro_batches[0].inputs.fresh())
                self._graph = self._graph_of(inputs, self._weights_of_batches[0], keep=True)
        with second_order.differentiable_attention():
            return [None] * len(self.parameters) if self._graph is None else self._graph.times(v)

    def _graph_of(self, inputs: Any, weight: float, *, keep: bool) -> second_order.Graph:
        graph = second_order.Graph(self._loss(inputs) * weight, self.parameters, keep)
        if not self._checked:
            graph.check()
        return graph

    @property
    def weights(self) -> Vector:
        return self._oracle.weights

    def noise(self, draw: int, sizes: Sequence[Tensor]) -> Vector:
        return self._oracle.noise(draw, sizes)

    def normal(self, draw: int) -> Vector:
        """Independent standard normal numbers for every perturbed weight; the same in every process."""
        with torch.no_grad():
            return self.noise(draw, [torch.ones((), dtype=w.dtype, device=w.device) for w in self.space.like])

    def unit_norms(self) -> list[Tensor]:
        return self._oracle.unit_norms()

    def count(self, name: str, happened: Tensor) -> None:
        self._oracle.count(name, happened)

    def losses(self) -> Generator[tuple[Tensor, float]]:
        """Each of this process's batches' losses and its weight, from the same buffers and random numbers."""
        for inputs, weight in self._replayed():
            yield self._loss(inputs), weight

    def release(self) -> None:
        """Let go of what exact Hessian products keep between them: a graph, and the latest product."""
        self._graph, self._latest = None, None

    def _run(self, weight: float) -> Callable[[Any, Backward | None], Tensor]:
        """The pass over one batch as the oracle wants it. Where weights are whole it does not use ``backward``,
        whose hooks belong to training.
        """

        def run(inputs: Any, backward: Backward | None) -> Tensor:
            loss = self._loss(on(self.device, inputs))
            if not self.backend.whole:
                (loss * weight).backward()
            elif loss.requires_grad:
                gradient = torch.autograd.grad(loss * weight, self.parameters, allow_unused=True)
                for p, g in zip(self.parameters, gradient, strict=True):
                    if g is not None:
                        p.grad = g if p.grad is None else p.grad.add_(g)
            return loss.detach().double() * weight

        return run

    def _loss(self, inputs: Any) -> Tensor:
        loss = self._loss_of(self.model, inputs)
        check_scalar(loss)
        return loss.reshape(())

    def _replayed(self) -> Generator[tuple[Any, float]]:
        """This process's batches and their weights, each met with the same buffers and random numbers."""
        self._buffers.put_back()
        try:
            with streams_kept(self.device):
                for micro, weight in zip(self._oracle.micro_batches, self._weights_of_batches, strict=True):
                    self.streams.rewind(self.device)
                    yield on(self.device, micro.inputs.fresh()), weight
        finally:
            self._buffers.put_back()

    def _summed(self, loss: Tensor, parts: Parts) -> tuple[Tensor, Vector]:
        """Loss and vector added up over the processes."""
        if self.ranks.size > 1:
            parts = [torch.zeros_like(w) if x is None else x for x, w in zip(parts, self.space.like, strict=True)]
            self.ranks.sum_([loss, *(x for x in parts if x is not None)])
        return loss, Vector(self.space, parts)
