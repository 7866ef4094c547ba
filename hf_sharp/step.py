"""One sharpness-aware training step, whatever loop it runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from hf_sharp.backends import check, choose
from hf_sharp.clock import Clock
from hf_sharp.limits import check_decay, check_optimizer, check_scalar, has_second_derivative, warn_of_rounding
from hf_sharp.methods import AbstractMethod
from hf_sharp.methods.checks import function, one_of
from hf_sharp.oracle import Backward, MicroBatch, Oracle, Run
from hf_sharp.parameters import Perturb
from hf_sharp.parsing import parse_method
from hf_sharp.replay import InputMemory, Streams
from hf_sharp.telemetry import Telemetry
from hf_sharp.vector import Parts, Vector

PERTURB_OVER = ("batch", "micro_batch", "device")


@dataclass
class _Window:
    """The micro-batches of one optimizer step so far."""

    oracle: Oracle
    method: AbstractMethod
    losses: list[Tensor]
    carried: Parts


class SharpStep:
    """Forward, backward and the method, for the micro-batches of one optimizer step after the other.

    It leaves the method's direction where the plain step leaves the gradient; clipping, ``optimizer.step()``, the scheduler
    and ``zero_grad()`` stay the loop's. Call it in place of forward and backward::

        sharp = SharpStep(model, optimizer, SAM(rho=0.05))
        for batch in loader:
            loss = sharp(lambda batch: loss_function(model(batch["x"]), batch["y"]), batch)
            optimizer.step()
            optimizer.zero_grad()

    Args:
        model: the module to train, as the loop calls it.
        optimizer: the loop's; only its learning rate is read.
        method: a method, its name, a dict or a YAML fragment, see `hf_sharp.parse_method`.
        accelerator: the loop's, for its ``backward`` and its loss scale.
        scaler: the loop's GradScaler, in a loop without Accelerate.
        steps: the optimizer steps of the whole training; needed by schedules over training and by `During`.
        seed: of the methods' noise.
        perturb_over: which samples share one perturbation. ``"batch"``: all micro-batches of the step, on all ranks.
            ``"micro_batch"``: the ranks' current micro-batches. ``"device"``: this rank's current micro-batch; the
            directions are averaged once per optimizer step. In the last two the method sees each
            micro-batch's loss times the number of micro-batches: its own mean, where the loss is a mean over samples.
        perturb: which parameters are perturbed, see `hf_sharp.parameters.describe`.

    Raises:
        ValueError: an argument breaks its rule; the message names the rule, the value and the fix.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: AbstractMethod | str | Mapping[str, Any],
        *,
        accelerator: Accelerator | None = None,
        scaler: GradScaler | None = None,
        steps: int | None = None,
        seed: int = 0,
        perturb_over: str = "batch",
        perturb: Perturb = None,
    ) -> None:
        one_of(PERTURB_OVER, "perturb_over", perturb_over)
        self.method = parse_method(method)
        self.method.check(steps)
        self.step, self.steps, self.seed = 0, steps, seed
        self.telemetry = Telemetry()
        self.memory: dict[str, Vector] = {}
        self._remembered: dict[str, Vector] = {}
        self._model, self._optimizer, self._accelerator = model, optimizer, accelerator
        self._scaler = accelerator.scaler if accelerator is not None else scaler
        self._whole, self._local = perturb_over == "batch", perturb_over == "device"
        inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        check_optimizer([type(inner)])
        check_decay(self.method, [group.get("weight_decay", 0.0) for group in inner.param_groups], "in the optimizer")
        check(model, accelerator, perturb, local=self._local, exact=has_second_derivative(self.method))
        self._backend = choose(model, accelerator, perturb, self._scaler, local=self._local)
        self._space = self._backend.space
        warn_of_rounding(self._backend.weights())
        self._old: Parts = [None] * len(self._space.pieces)
        self._inputs = InputMemory()
        self._window: _Window | None = None

    def __call__(
        self,
        loss_of: Callable[[Any], Tensor],
        batch: Any,
        *,
        last: bool | None = None,
        micro_batches: int | None = None,
        observe: bool = False,
    ) -> Tensor:
        """One micro-batch: run it, and after the last one leave the direction in the gradients.

        Args:
            loss_of: takes the batch and returns the loss, a tensor without dimensions. It is called once per pass. Without
                Accelerate it divides by the number of micro-batches itself, as any accumulating loop does.
            batch: whatever ``loss_of`` takes; tensors, or containers of them.
            last: whether the optimizer steps after it; by default always, or as ``accelerator.accumulate`` says.
            micro_batches: how many micro-batches the step has; read only where each has its own perturbation. By default
                1, or the accelerator's ``gradient_accumulation_steps``.
            observe: whether `scalars` shall have more to say than the number of passes; costs a few looks at the vectors.
                Read at the first micro-batch of a step.

        Returns:
            What ``loss_of`` returned in the first pass, detached.
        """
        function("loss_of", loss_of, example="lambda batch: model(**batch).loss")
        accumulation = 1 if self._accelerator is None else self._accelerator.gradient_accumulation_steps
        if last is None:
            last = True if self._accelerator is None else self._accelerator.sync_gradients
        seen: list[Tensor] = []

        def run(inputs: Any, backward: Backward | None) -> Tensor:
            loss = loss_of(inputs)
            check_scalar(loss)
            seen.append(loss.detach())
            if backward is None:
                self._backward(loss)
            else:
                backward(loss / accumulation)
            return loss.detach() / accumulation

        self.micro_step(run, batch, last=last, micro_batches=micro_batches or accumulation, observe=observe)
        return seen[0]

    def micro_step(self, run: Run, batch: Any, *, last: bool, micro_batches: int = 1, observe: bool = False) -> Tensor:
        """The same for loops that bring their own forward-backward.

        Args:
            run: forward and backward of one micro-batch, see `hf_sharp.oracle.Run`.
            batch: what ``run`` takes.
            last: whether the optimizer steps after it.
            micro_batches: how many micro-batches the step has.
            observe: whether to take the scalars that cost a look at the vectors.

        Returns:
            What ``run`` returned in the first pass.
        """
        try:
            window = self._window = self._window or self._open(1.0 if self._whole else 1.0 / micro_batches, observe)
            loss = self._first_pass(window, run, batch, last=last)
            if last or not self._whole:
                self._finish(window, last=last)
                self._window = None
                self.step += last
        except BaseException:
            self._window = None
            raise
        del window  # the vectors of the step are not needed in what comes
        if last:
            self._backend.commit()
        self._backend.settle()
        return loss

    def settle(self) -> None:
        """Let the model have its own weights again where an exception left those of a pass (DeepSpeed): call it on all ranks
        before an evaluation or a save that comes after an exception that met them all. The next step does so itself.
        """
        self._backend.settle()

    def scalars(self) -> dict[str, float]:
        """The scalars of the latest step, as ``sharpness/...``; reading them waits for the device."""
        return {f"sharpness/{name}": value for name, value in self.telemetry.scalars().items()}

    def state_dict(self) -> dict[str, Any]:
        """What must outlive a restart: the step, the vectors that the method keeps, the counters."""
        return {
            "step": self.step,
            "memory": {name: [x if x is None else x.clone() for x in v.tensors()] for name, v in self.memory.items()},
            "counts": {name: int(count) for name, count in self.telemetry.counts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        like, device = self._space.like, self._space.scalars()[0]
        self.step = state["step"]
        self.telemetry.counts = {name: torch.tensor(n, device=device) for name, n in state["counts"].items()}
        self.memory = {
            name: Vector(self._space, [x if x is None else x.to(w) for x, w in zip(parts, like, strict=True)])
            for name, parts in state["memory"].items()
        }

    def _open(self, share: float, observe: bool) -> _Window:
        self._backend.refresh()
        if self._space is not self._backend.space:  # other parameters are trainable now
            self._space = self._backend.space
            self._old = [None] * len(self._space.pieces)
            self.memory.clear()
        self.telemetry.begin(observe)
        oracle = Oracle(
            model=self._model,
            backend=self._backend,
            seed=self.seed,
            local=self._local,
            telemetry=self.telemetry,
            memory=self.memory,
            clock=Clock(self.step, self._optimizer, self.steps),
            share=share,
            loss_scale=self._backend.loss_scale(),
            old=self._old,
        )
        carried = [] if self._whole else self._backend.take_gradient()
        with torch.no_grad():
            method = self.method.at(oracle.clock)
            oracle.begin(method.first(oracle))
        return _Window(oracle, method, [], carried)

    def _first_pass(self, window: _Window, run: Run, batch: Any, *, last: bool) -> Tensor:
        """The loop's own pass over one micro-batch, at the place that the method named."""
        oracle = window.oracle
        kept = self._inputs.keep(batch)
        oracle.micro_batches.append(MicroBatch(run, kept, Streams.now(oracle.device)))
        context = self._backend.evaluation(last=last or not self._whole, local=oracle.local)
        with torch.no_grad(), oracle.displaced(oracle.first), torch.enable_grad(), context:
            loss = run(batch, None)
        self._inputs.learn(kept)
        window.losses.append(loss.detach())
        return loss

    @torch.no_grad()
    def _finish(self, window: _Window, *, last: bool) -> None:
        """Ask the method, and leave its answer in the gradients."""
        oracle = window.oracle
        oracle.complete(window.losses)
        direction = window.method.direction(oracle) * oracle.share * oracle.loss_scale
        self._remember()
        parts = [*self._owned(direction, oracle)]
        present = [part for part in parts if part is not None]
        if oracle.norms and present:
            # One non-finite value in any pass makes the scaler skip the step, as if it had been in the gradient.
            present[0].add_(0.0 * torch.stack(oracle.norms).sum().to(present[0].dtype))
        if window.carried:
            parts = [_added(part, before) for part, before in zip(parts, window.carried, strict=True)]
        self._backend.put_gradient(self._backend.average(parts) if self._local and last else parts)

    def _remember(self) -> None:
        """Give the vectors that the method keeps tensors of their own, before the optimizer writes into the gradients."""
        for name, v in self.memory.items():
            if v is not self._remembered.get(name):
                self.memory[name] = Vector(self._space, [x if x is None else x.clone() for x in v.tensors()])
        self._remembered = dict(self.memory)

    def _owned(self, direction: Vector, oracle: Oracle) -> Iterator[Tensor | None]:
        """The direction's parts, in tensors that the optimizer may write into: those of the last gradient."""
        like = self._space.like
        into = [torch.empty_like(w) if x is None else x for x, w in zip(oracle.latest, like, strict=True)]
        for part, target, seen in zip(direction.written(into), into, oracle.present, strict=True):
            yield None if not seen else target.zero_() if part is None else part

    def _backward(self, loss: Tensor) -> None:
        if self._accelerator is not None:
            self._accelerator.backward(loss)
        elif self._scaler is not None:
            self._scaler.scale(loss).backward()
        else:
            loss.backward()


def _added(part: Tensor | None, before: Tensor | None) -> Tensor | None:
    """The sum in the first one's storage; None counts as zero."""
    return before if part is None else part if before is None else part.add_(before)
