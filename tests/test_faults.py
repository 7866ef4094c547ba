"""What goes wrong in a pass leaves nothing behind that a plain step would not leave."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedConfig, Trainer, TrainerCallback

from hf_sharp import CRSAM, GAM, LPF, SAM, AbstractMethod, SharpnessAwareTrainer, SharpStep
from tests.models import (
    Mixed,
    Restless,
    Row,
    all_methods,
    arguments,
    collated,
    differences,
    loss_of,
    mixed,
    reseed,
    rows,
    seeded,
    snapshot,
    streams,
)
from tests.workers.train_and_die import METHODS as REMEMBERING

ALL = all_methods()
METHODS: dict[str, tuple[AbstractMethod, int]] = {
    "sam": (ALL["sam"], 2),
    "rsam": (ALL["rsam"], 2),
    "crsam": (ALL["crsam"], 3),
    "gam": (ALL["gam"], 4),
    "gam_exact": (GAM(rho=0.1, hvp="exact"), 4),
    "lpf": (ALL["lpf"], 3),
}
IGNORING: dict[str, tuple[AbstractMethod, int]] = {  # methods whose direction leaves some passes out
    "crsam_sam": (CRSAM(rho=0.1, alpha=0.0, beta=0.0), 3),
    "gam_plain": (GAM(rho=0.1, alpha=0.0), 4),
}


def _passes(methods: dict[str, tuple[AbstractMethod, int]]) -> list[Any]:
    """Each method with each of its passes."""
    return [pytest.param(name, k, id=f"{name}-pass{k + 1}") for name, (_, n) in methods.items() for k in range(n)]


EVERY_PASS = _passes(METHODS)
ERRORS: list[BaseException] = [
    ValueError("a fault in the model"),
    KeyboardInterrupt(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
]


class Fused(Restless):
    """A model with dropout, BatchNorm and draws from all streams that raises in one of its forwards, or in its backward."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.calls = 0
        self.error: BaseException | None = None
        self.blows_at = -1
        self.in_backward = False

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = super().forward(x, labels)
        if self.training:
            self.calls += 1
            if self.calls - 1 == self.blows_at and self.error is not None:
                if not self.in_backward:
                    raise self.error
                out["loss"].register_hook(self._blow)
        return out

    def _blow(self, gradient: Tensor) -> None:
        raise self.error or AssertionError

    def arm(self, error: BaseException, *, after: int, in_backward: bool) -> None:
        """Raise in the forward or backward that comes after so many others."""
        self.error, self.blows_at, self.in_backward = error, self.calls + after, in_backward


def fused() -> Fused:
    """A seeded `Fused`."""
    return seeded(lambda: Fused(PreTrainedConfig()))


def _batches(step: int) -> list[Row]:
    return [collated(rows("mixed", 4, seed=10 * step + i)) for i in range(2)]


def _run(sharp: SharpStep, model: nn.Module, step: int) -> None:
    reseed(step)
    for i, batch in enumerate(_batches(step)):
        sharp(lambda b: loss_of(model)(b) / 2, batch, last=i == 1)


def _gradient(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# Exceptions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("name", "k"), EVERY_PASS)
def test_an_error_in_any_pass_of_a_bare_loop(name: str, k: int, in_backward: bool, error: BaseException) -> None:
    """An error in pass k, in a forward of the second or a backward of the first micro-batch, after a step that went well:
    the weights have the bits and the storage they had, the optimizer steps are not counted, buffers and streams are where
    the plain step leaves them (interrupted at the same place where it was the first pass, finished where it was a later
    one), and the same engine's next step is that of an engine that never failed."""
    method, _ = METHODS[name]
    model = fused()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sharp = SharpStep(model, optimizer, method, steps=10)
    _run(sharp, model, 0)
    optimizer.step()
    optimizer.zero_grad()
    start, before = copy.deepcopy(model), snapshot(model)
    storage = [p.data_ptr() for p in model.parameters()]
    seen: list[dict[str, Tensor]] = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(_weights(module)))
    micro = 0 if in_backward else 1
    model.arm(error, after=2 * k + micro, in_backward=in_backward)
    with pytest.raises(type(error)):
        _run(sharp, model, 1)
    hook.remove()
    after = streams()
    assert differences({n: before[n] for n in seen[0]}, _weights(model)) == []
    assert storage == [p.data_ptr() for p in model.parameters()]
    assert sharp.step == 1
    assert k == 0 or all(p.grad is None for p in model.parameters())

    twin = copy.deepcopy(start)
    twin.load_state_dict(seen[0], strict=False)
    if k == 0:
        twin.arm(error, after=micro, in_backward=in_backward)
    reseed(1)
    try:
        for batch in _batches(1):
            (loss_of(twin)(batch) / 2).backward()
    except type(error):
        assert k == 0
    assert differences(dict(twin.named_buffers()), dict(model.named_buffers())) == []
    assert differences(streams(), after) == []

    model.zero_grad()
    model.error = None
    fresh_model = copy.deepcopy(model)
    fresh = SharpStep(fresh_model, optimizer, method, steps=10)
    fresh.step = 1
    _run(sharp, model, 2)
    _run(fresh, fresh_model, 2)
    assert differences(_gradient(fresh_model), _gradient(model)) == []
    assert differences(snapshot(fresh_model), snapshot(model)) == []
    assert sharp.step == 2


class _AtStepBegin(TrainerCallback):
    """Keeps the weights as each step finds them."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights = _weights(kwargs["model"])


def _is_original(accelerator: Accelerator) -> bool:
    return "backward" not in vars(accelerator) and accelerator.backward.__func__ is Accelerator.backward  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(("name", "k"), EVERY_PASS)
def test_an_error_in_any_pass_of_the_trainer(name: str, k: int, error: BaseException, tmp_path: Path) -> None:
    """The Trainer's `train` raises what the model raised; the weights have the bits that the step began with,
    `accelerator.backward` is the original again, and the Trainer's next training_step leaves the direction that a fresh
    engine gives."""
    method, passes = METHODS[name]
    model, watch = fused(), _AtStepBegin()
    args = arguments(tmp_path, per_device_train_batch_size=4)
    trainer = SharpnessAwareTrainer(model, args, train_dataset=rows("mixed", 16), method=method, callbacks=[watch])
    model.arm(error, after=passes + k, in_backward=bool(k % 2))
    with pytest.raises(type(error)):
        trainer.train()
    assert trainer.state.global_step == 1
    assert differences(watch.weights, _weights(model)) == []
    assert _is_original(trainer.accelerator)

    model.zero_grad()
    model.error = None
    twin, batch = copy.deepcopy(model), collated(rows("mixed", 4, seed=5))
    reseed(3)
    loss = trainer.training_step(trainer.model_wrapped, dict(batch))
    fresh = SharpStep(twin, trainer.optimizer, method, steps=4, seed=args.seed)
    fresh.step = 1
    reseed(3)
    assert fresh(loss_of(twin), batch).item() == loss.item()
    assert differences(_gradient(twin), _gradient(model)) == []
    assert _is_original(trainer.accelerator)


@pytest.mark.parametrize("perturb_over", ["micro_batch", "device"])
@pytest.mark.parametrize("k", [0, 1])
def test_an_error_where_each_micro_batch_has_its_own_shift(perturb_over: str, k: int) -> None:
    """The same where each micro-batch has its own perturbation: weights restored, the engine goes on with a new window."""
    model = fused()
    sharp = SharpStep(model, torch.optim.SGD(model.parameters(), lr=0.1), SAM(rho=0.1), perturb_over=perturb_over, steps=10)
    before = _weights(model)
    model.arm(ValueError("a fault"), after=2 + k, in_backward=False)  # micro-batch 1: calls 0 and 1; micro-batch 2: 2 and 3

    def window(engine: SharpStep, m: nn.Module, step: int) -> None:
        reseed(step)
        for i, batch in enumerate(_batches(step)):
            engine(loss_of(m), batch, last=i == 1, micro_batches=2)

    with pytest.raises(ValueError, match="a fault"):
        window(sharp, model, 0)
    assert differences(before, _weights(model)) == []
    model.zero_grad()
    model.error = None
    twin = copy.deepcopy(model)
    fresh = SharpStep(twin, torch.optim.SGD(twin.parameters(), lr=0.1), SAM(rho=0.1), perturb_over=perturb_over, steps=10)
    window(sharp, model, 1)
    window(fresh, twin, 1)
    assert differences(_gradient(twin), _gradient(model)) == []


class Hungry(Mixed):
    """Runs out of memory in each second forward whose batch has more than 4 samples."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.calls = 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        if len(x) > 4 and self.calls % 2 == 0:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x, labels)


class _AtTrainBegin(TrainerCallback):
    """Keeps weights, buffers and streams of every begin; or puts streams in place."""

    def __init__(self, put: dict[str, Any] | None = None) -> None:
        self.begins: list[tuple[dict[str, Tensor], dict[str, Any]]] = []
        self.put = put

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.put is not None:
            torch.set_rng_state(self.put["torch"])
        self.begins.append((snapshot(kwargs["model"]), streams()))


def test_auto_find_batch_size(tmp_path: Path) -> None:
    """Out of memory in the second pass with auto_find_batch_size: training starts over, from the same weights to the bit,
    with smaller batches until one fits, and ends like a training that had that size from the start."""
    model, watch = seeded(lambda: Hungry(PreTrainedConfig())), _AtTrainBegin()
    changed = {"max_steps": 5, "per_device_train_batch_size": 8}
    data = rows("mixed", 24)
    args = arguments(tmp_path, auto_find_batch_size=True, **changed)
    trainer = SharpnessAwareTrainer(model, args, train_dataset=data, method=SAM(rho=0.1), callbacks=[watch])
    initial = _weights(model)
    trainer.train()
    assert trainer.state.global_step == 5
    assert trainer.state.train_batch_size == 4
    assert len(watch.begins) > 1
    for begin, _ in watch.begins:
        assert differences(initial, {name: begin[name] for name in initial}) == []

    begin, begin_streams = watch.begins[-1]
    twin = mixed()
    twin.load_state_dict(begin)
    args = arguments(tmp_path, **{**changed, "per_device_train_batch_size": 4})
    again = _AtTrainBegin(put=begin_streams)
    SharpnessAwareTrainer(twin, args, train_dataset=data, method=SAM(rho=0.1), callbacks=[again]).train()
    assert differences(snapshot(twin), snapshot(model)) == []


# Numbers that are not finite -------------------------------------------------------------------------------------------


def _marks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.isfinite(x) for name, x in state.items()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clipping", [0.0, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_a_loss_that_is_not_finite(name: str, clipping: float, value: float, tmp_path: Path) -> None:
    """One sample that is not finite, met in the third of four steps: exactly those weights, buffers and moments are not
    finite at the end that the plain Trainer has so, and the logged losses are finite where the plain ones are."""
    data = rows("mixed", 16)
    data[10]["x"][2] = value
    ends = []
    for method in (None, ALL[name]):
        model = mixed()
        args = arguments(tmp_path, per_device_train_batch_size=4, max_grad_norm=clipping)
        given: dict[str, Any] = {"train_dataset": data}
        trainer = (
            Unshuffled(model, args, **given) if method is None else SharpUnshuffled(model, args, method=method, **given)
        )
        trainer.train()
        moments = {f"{i}.{k}": x for i, s in trainer.optimizer.state_dict()["state"].items() for k, x in s.items()}
        losses = [math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        ends.append((_marks(snapshot(model)), _marks(moments), losses))
    assert differences(ends[0], ends[1]) == []
    assert not all(bool(mark.all()) for mark in ends[0][0].values()), "the plain weights must have gone bad"


class Unshuffled(Trainer):
    """The Trainer with its data in order."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class SharpUnshuffled(SharpnessAwareTrainer):
    """The sharpness-aware Trainer with its data in order."""

    _get_train_sampler = Unshuffled._get_train_sampler


class Overflowing(Mixed):
    """Multiplies its loss with infinity in one of its forwards."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.calls, self.overflows_at = 0, -1

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = super().forward(x, labels)
        if self.calls == self.overflows_at:
            out["loss"] = out["loss"] * math.inf
        self.calls += 1
        return out


def _differentiable(model: Mixed, name: str) -> Mixed:
    """The model, without BatchNorm where the method needs its second derivative, which float16 does not hold."""
    if name == "gam_exact":
        model.norm = nn.Identity()
    return model


def _half(model: nn.Module) -> Callable[[Row], Tensor]:
    def loss(batch: Row) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return model(**batch)["loss"] / 2

    return loss


@pytest.mark.parametrize("micro", [0, 1])
@pytest.mark.parametrize(("name", "k"), [*EVERY_PASS, *_passes(IGNORING)])
def test_an_overflow_in_any_pass_skips_the_step(name: str, k: int, micro: int) -> None:
    """Under a loss scale, an infinite loss in one micro-batch of any one pass, also of one that the direction leaves out,
    makes the scaler skip the step and halve the scale, as a plain overflow does: weights keep their bits, the optimizer's
    state does not move, and the next step is taken."""
    method, _ = {**METHODS, **IGNORING}[name]
    model = _differentiable(seeded(lambda: Overflowing(PreTrainedConfig())), name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**3)
    sharp = SharpStep(model, optimizer, method, scaler=scaler, steps=10)

    def step(number: int) -> None:
        reseed(number)
        for i, batch in enumerate(_batches(number)):
            sharp(_half(model), batch, last=i == 1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step(0)
    before, state = _weights(model), copy.deepcopy(optimizer.state_dict())
    model.overflows_at = model.calls + 2 * k + micro
    step(1)
    assert scaler.get_scale() == 2.0**2
    assert differences(before, _weights(model)) == []
    assert differences(state, optimizer.state_dict()) == []
    step(2)
    assert scaler.get_scale() == 2.0**2
    assert differences(before, _weights(model)) != []
    assert all(bool(torch.isfinite(w).all()) for w in _weights(model).values())


@pytest.mark.parametrize("name", ALL)
def test_a_scaled_step_is_the_unscaled_one(name: str) -> None:
    """Under float16 autocast the direction with a loss scale, once unscaled, is the one without, as far as float16 goes; a
    disabled scaler changes no bit."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=2.0**8)):
        model = _differentiable(mixed(), name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharp = SharpStep(model, optimizer, ALL[name], scaler=scaler, steps=10)
        reseed(0)
        for i, batch in enumerate(_batches(0)):
            sharp(_half(model), batch, last=i == 1)
        if scaler is not None and scaler.is_enabled():
            scaler.unscale_(optimizer)
        found.append(torch.cat([g.reshape(-1) for g in _gradient(model).values() if g is not None]))
    assert bool(torch.isfinite(found[0]).all())
    assert differences(found[0], found[1]) == []
    assert float((found[2] - found[0]).norm() / found[0].norm()) < 0.02


@pytest.mark.parametrize("exponent", [0, 8, 16])
def test_a_second_derivative_does_not_grow_with_the_loss_scale(exponent: int) -> None:
    """With hvp="exact" the Hessian meets unit vectors whatever the loss scale is: at GradScaler's initial scale too it is
    finite in float16 and gives the direction without a scale."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**exponent)):
        model = mixed()
        model.norm = nn.LayerNorm(8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reseed(0)
        SharpStep(model, optimizer, GAM(rho=0.1, hvp="exact"), scaler=scaler)(_half(model), collated(rows("mixed", 8)))
        if scaler is not None:
            scaler.unscale_(optimizer)
        found.append(torch.cat([g.reshape(-1) for g in _gradient(model).values() if g is not None]))
    assert bool(torch.isfinite(found[0]).all())
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.02


# Neighbours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("rsam", "gam"), ("averaging", "remembering"), ("averaging", "averaging")])
def test_two_engines_side_by_side(first: str, second: str) -> None:
    """Two bare loops in one process, whose micro-batches take turns, end as each does alone; methods with memory too."""

    def steps(name: str, lr: float) -> Iterator[nn.Module]:
        model = mixed()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        sharp = SharpStep(model, optimizer, REMEMBERING[name], steps=10, seed=7)
        for step in range(4):
            for i, batch in enumerate(_batches(step)):
                reseed(10 * step + i)
                sharp(loss_of(model), batch, last=i == 1)
                yield model
            optimizer.step()
            optimizer.zero_grad()
        yield model

    alone = [[snapshot(model) for model in steps(*given)][-1] for given in ((first, 0.01), (second, 0.02))]
    one, other = steps(first, 0.01), steps(second, 0.02)
    ends = [[snapshot(a), snapshot(b)] for a, b in zip(one, other, strict=True)][-1]
    assert differences(alone, ends) == []


def test_two_trainers_one_after_the_other(tmp_path: Path) -> None:
    """Two Trainers that live at the same time: training the second leaves the first one's weights, optimizer and next
    training alone, and ends as it does without the first."""

    def trainer(method: AbstractMethod | None) -> Trainer:
        args = arguments(tmp_path, gradient_accumulation_steps=2)
        if method is None:
            return Trainer(mixed(), args, train_dataset=rows("mixed", 8))
        return SharpnessAwareTrainer(mixed(), args, train_dataset=rows("mixed", 8), method=method)

    def ended(some: Trainer) -> list[Any]:
        return [snapshot(some.model), copy.deepcopy(some.optimizer.state_dict())]

    alone = {}
    for name, method in {"sam": SAM(rho=0.1), "lpf": LPF(gamma=0.1), "plain": None}.items():
        one = trainer(method)
        one.train()
        alone[name] = ended(one)
    first, second, third = trainer(SAM(rho=0.1)), trainer(LPF(gamma=0.1)), trainer(None)
    reseed(42)
    first.train()
    between = ended(first)
    reseed(42)
    second.train()
    reseed(42)
    third.train()
    assert differences(between, ended(first)) == []
    assert differences(alone, {"sam": ended(first), "lpf": ended(second), "plain": ended(third)}) == []
    assert all(_is_original(some.accelerator) for some in (first, second, third))


class _Evaluated(TrainerCallback):
    """Compares each evaluation with a forward of its own at that moment."""

    def __init__(self, data: Row) -> None:
        self.data, self.gaps, self.originals = data, [], []
        self.trainer: Trainer | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"].eval()
        with torch.no_grad():
            self.gaps.append(abs(loss_of(model)(self.data).item() - kwargs["metrics"]["eval_loss"]))
        assert self.trainer is not None
        self.originals.append(_is_original(self.trainer.accelerator))


def test_evaluation_inside_training(tmp_path: Path) -> None:
    """An evaluation after each second step sees the unshifted weights, in one pass per batch, with the original
    `accelerator.backward` in place; and the training ends as one without evaluations (no dropout, whose stream the
    evaluation's data loader moves)."""
    ends = []
    held_out = rows("mixed", 8, seed=1)
    for strategy in ("steps", "no"):
        model, watch = mixed(), _Evaluated(collated(held_out))
        model.dropout.p = 0.0
        forwards: list[bool] = []
        model.register_forward_pre_hook(lambda module, args, forwards=forwards: forwards.append(module.training))
        args = arguments(tmp_path, eval_strategy=strategy, eval_steps=2)
        trainer = SharpnessAwareTrainer(
            model, args, train_dataset=rows("mixed", 12), eval_dataset=held_out, method=SAM(rho=0.1), callbacks=[watch]
        )
        watch.trainer = trainer
        trainer.train()
        ends.append(snapshot(model))
        assert forwards.count(True) == 12
        if strategy == "steps":
            assert forwards.count(False) == 3 * 2  # the Trainer's own and this test's
            assert max(watch.gaps) < 1e-6
            assert all(watch.originals)
    assert differences(ends[0], ends[1]) == []
