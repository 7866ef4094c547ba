"""What every method keeps to, on models with dropout, BatchNorm, tied weights and awkward forwards."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig, Trainer

from hf_sharp import (
    ASAM,
    GSAM,
    METHODS,
    SAM,
    AbstractMethod,
    Decayed,
    SharpnessAwareTrainer,
    SharpStep,
)
from hf_sharp.methods import ascend, unit
from hf_sharp.parameters import describe
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector
from tests.models import (
    FEATURES,
    MODELS,
    Mixed,
    Restless,
    Row,
    all_methods,
    arguments,
    bart,
    collated,
    differences,
    llama,
    loss_of,
    mixed,
    neutral_methods,
    reseed,
    resnet,
    restless,
    rows,
    seeded,
    snapshot,
    streams,
    vit,
)

ALL = all_methods()
SEVERAL = {name: ALL[name] for name in ("sam", "rsam", "crsam", "gam", "lpf")}
STEPS = 10


def _engine(model: nn.Module, method: AbstractMethod, **changed: Any) -> SharpStep:
    return SharpStep(model, torch.optim.SGD(model.parameters(), lr=0.1), method, steps=STEPS, **changed)


def _gradient(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def _plain(model: nn.Module, batches: list[Row], seed: int) -> list[Tensor]:
    """A plain step's forwards and backwards; returns the losses."""
    reseed(seed)
    losses = []
    for batch in batches:
        loss = loss_of(model)(batch) / len(batches)
        loss.backward()
        losses.append(loss.detach())
    return losses


def _sharp(sharp: SharpStep, model: nn.Module, batches: list[Row], seed: int, **kwargs: Any) -> list[Tensor]:
    """The same with the engine."""
    reseed(seed)

    def share(batch: Row) -> Tensor:
        return loss_of(model)(batch) / len(batches)

    return [sharp(share, batch, last=i == len(batches) - 1, **kwargs) for i, batch in enumerate(batches)]


def _close(a: dict[str, Tensor | None], b: dict[str, Tensor | None], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        y = b[name]
        assert (x is None) == (y is None), name
        if x is not None and y is not None:
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


# One step --------------------------------------------------------------------------------------------------------------


def test_all_methods_are_all() -> None:
    """Whatever stands in METHODS is run through this file."""
    assert {type(method) for method in ALL.values()} == set(METHODS.values())


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", ALL)
def test_a_step_changes_only_the_gradient(name: str, model_name: str) -> None:
    """Over two steps of two micro-batches: weights keep their bits and their storage; losses, buffers and random streams
    are what a plain step leaves from the weights that the first forward saw, which are the unshifted ones unless the
    method names another place; the direction is finite and not the plain gradient; parameters that are frozen or have no
    gradient in any pass get none, and no weight decay; the optimizer is not touched."""
    model = MODELS[model_name]()
    frozen_name, frozen = list(model.named_parameters())[1]
    frozen.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    decay = 0.0 if name == "decayed" else 0.1  # which decays by itself
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=decay)
    sharp = SharpStep(model, optimizer, ALL[name], steps=STEPS)
    seen: list[dict[str, Tensor]] = []
    for step in range(2):
        batches = [collated(rows(model_name, 3, seed=10 * step + i)) for i in range(2)]
        before, storage = snapshot(model), {n: p.data_ptr() for n, p in model.named_parameters()}
        start, groups = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
        seen.clear()
        hook = model.register_forward_pre_hook(lambda module, args: seen.append(_weights(module)))
        losses = _sharp(sharp, model, batches, seed=step, observe=bool(step))
        hook.remove()
        after_streams = streams()

        weights = {n: before[n] for n in seen[0]}
        assert differences(weights, _weights(model)) == []
        assert storage == {n: p.data_ptr() for n, p in model.named_parameters()}
        assert differences(groups, optimizer.state_dict()) == []
        elsewhere = name in ("rsam", "rgsam", "lpf", "during") or (name == "every" and step == 1)
        assert (differences(weights, seen[0]) != []) == elsewhere

        twin = copy.deepcopy(start)
        twin.load_state_dict(seen[0], strict=False)
        assert differences(_plain(twin, batches, seed=step), losses) == []
        assert differences(_buffers(twin), _buffers(model)) == []
        assert differences(streams(), after_streams) == []

        _plain(start, batches, seed=step)
        plain, direction = _gradient(start), _gradient(model)
        assert {n for n, g in plain.items() if g is None} == {n for n, g in direction.items() if g is None}
        assert plain["unused"] is None
        assert plain[frozen_name] is None
        assert all(torch.isfinite(g).all() for g in direction.values() if g is not None)
        assert differences(plain, direction) != []

        optimizer.step()
        optimizer.zero_grad()
        assert differences(before["unused"], model.get_parameter("unused")) == []
        assert differences(before[frozen_name], frozen) == []
        assert differences(weights, _weights(model)) != []


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", neutral_methods())
def test_a_neutral_step_is_the_plain_one(name: str, model_name: str) -> None:
    """On the transformers models too, a neutral setting's direction is the plain gradient to the bit, and its buffers and
    streams are the plain ones."""
    model = MODELS[model_name]()
    twin = copy.deepcopy(model)
    batches = [collated(rows(model_name, 3, seed=i)) for i in range(2)]
    losses = _sharp(_engine(model, neutral_methods()[name]), model, batches, seed=1, observe=True)
    after_streams = streams()
    assert differences(_plain(twin, batches, seed=1), losses) == []
    assert differences(snapshot(twin), snapshot(model)) == []
    assert differences(_gradient(twin), _gradient(model)) == []
    assert differences(streams(), after_streams) == []


@pytest.mark.parametrize("build", [llama, bart])
def test_a_tied_parameter_counts_once(build: Callable[[], nn.Module]) -> None:
    """There is one piece per parameter, and SAM moves the tied table by rho g / |g| with the norm taken over each
    parameter once."""
    model = build().double()
    batch = collated(rows(build.__name__, 3))
    assert len(describe(model)) == len(list(model.parameters()))
    assert len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))
    twin = copy.deepcopy(model)
    _plain(twin, [batch], seed=0)
    norm = torch.stack([p.grad.square().sum() for p in twin.parameters() if p.grad is not None]).sum().sqrt()
    seen: list[dict[str, Tensor]] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(_weights(module)))
    sharp = _engine(model, SAM(rho=0.05))
    _sharp(sharp, model, [batch], seed=0, observe=True)
    assert sharp.scalars()["sharpness/shift_norm_applied"] == pytest.approx(0.05, rel=1e-9)
    for name, p in twin.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else 0.05 * p.grad / norm
        torch.testing.assert_close(seen[1][name] - seen[0][name], expected, rtol=1e-9, atol=1e-12)


class Quadratic(nn.Module):
    """A quadratic with condition number 10 and its minimum away from the origin."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 4), 6.0))
        self.bias = nn.Parameter(torch.full((3,), -5.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        curvature = torch.linspace(0.1, 1.0, 12).reshape(3, 4)
        return {"loss": (0.5 * curvature * (self.weight - 1) ** 2).sum() + 0.5 * ((self.bias - 1) ** 2).sum() + 0 * x.sum()}


@pytest.mark.parametrize("name", ALL)
def test_it_descends_a_quadratic(name: str) -> None:
    """Gradient descent along the direction takes a quadratic to near its minimum."""
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    sharp = SharpStep(model, optimizer, ALL[name], steps=60)
    batch = {"x": torch.zeros(1)}
    first = loss_of(model)(batch).item()
    for _ in range(60):
        sharp(loss_of(model), batch)
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(model)(batch).item() < 0.05 * first


class Fickle(nn.Module):
    """Uses its side weight in some of its forwards only, counted from 0."""

    def __init__(self, uses: Callable[[int], bool]) -> None:
        super().__init__()
        self.main = nn.Linear(FEATURES, 3)
        self.side = nn.Parameter(torch.linspace(0.5, 1.5, 3))
        self.uses, self.calls = uses, 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.main(x)
        if self.uses(self.calls):
            logits = logits * self.side
        self.calls += 1
        return {"loss": nn.functional.cross_entropy(logits, labels)}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_a_gradient_that_comes_and_goes(name: str, first: bool) -> None:
    """A parameter with a gradient in the first pass only, or in later passes only, is restored to the bit in its storage,
    and gets a finite gradient, in which a missing one counts as zero."""
    model = seeded(lambda: Fickle(lambda call: (call == 0) == first))
    before, storage = snapshot(model), model.side.data_ptr()
    _sharp(_engine(model, ALL[name]), model, [collated(rows("mixed", 6))], seed=0)
    assert model.calls > 1
    assert differences(before, snapshot(model)) == []
    assert model.side.data_ptr() == storage
    assert model.side.grad is not None
    assert torch.isfinite(model.side.grad).all()


def test_a_missing_gradient_is_zero_in_the_result() -> None:
    """For SAM a parameter without gradient in the second pass gets zeros; for GSAM, d = g' - alpha (g - <g,g'>/<g',g'> g')
    leaves -alpha g there."""
    batch = collated(rows("mixed", 6))
    plain = seeded(lambda: Fickle(lambda call: True))
    _plain(plain, [batch], seed=0)
    sam = seeded(lambda: Fickle(lambda call: call == 0))
    _sharp(_engine(sam, SAM(rho=0.05)), sam, [batch], seed=0)
    assert differences(torch.zeros(3), sam.side.grad) == []
    gsam = seeded(lambda: Fickle(lambda call: call == 0))
    _sharp(_engine(gsam, GSAM(rho=0.05, alpha=0.4)), gsam, [batch], seed=0)
    torch.testing.assert_close(gsam.side.grad, -0.4 * plain.side.grad)


@pytest.mark.parametrize("name", [*ALL, "decayed_cubic", "asam_cubic"])
def test_a_factor_of_one_changes_nothing(name: str) -> None:
    """The arithmetic with factors per parameter is the same as that without: factors of 1 + 2^-52 give the directions of
    perturb=None."""
    more = {"decayed_cubic": Decayed(SAM(rho=0.05, p=3.0), 0.01), "asam_cubic": ASAM(rho=0.5, p=3.0)}
    method = {**ALL, **more}[name]
    batch = collated(rows("resnet", 3))
    batch["pixel_values"] = batch["pixel_values"].double()
    found = []
    for perturb in (None, {"*": 1.0 + 2**-52}):
        model = resnet().double()
        sharp = _engine(model, method, perturb=perturb)
        _sharp(sharp, model, [batch], seed=0, observe=True)
        found.append((_gradient(model), sharp.scalars()))
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-6)
    _close(found[0][0], found[1][0], 1e-7)


@dataclass(frozen=True)
class Remembering(AbstractMethod):
    """Keeps the unit vector of its last gradient for the next step."""

    def direction(self, f: AbstractOracle) -> Vector:
        g = f().grad
        gp = f(ascend(g, 0.05)).grad
        kept = f.memory.get("u")
        f.memory["u"] = unit(gp)
        return gp if kept is None else gp - 0.5 * kept


@pytest.mark.parametrize("perturb", [None, ["first.*", "last.*"], {"*": 2.0}], ids=["all", "some", "factors"])
def test_what_a_method_remembers_is_not_overwritten(perturb: Any) -> None:
    """A vector kept in f.memory has the bits it had inside `direction` after the step, and after clipping and the
    optimizer wrote into the gradients."""
    model = mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept: list[list[Tensor | None]] = []

    class Watching(Remembering):
        def direction(self, f: AbstractOracle) -> Vector:
            d = super().direction(f)
            kept.append([None if part is None else part.clone() for part in f.memory["u"].tensors()])
            return d

    sharp = SharpStep(model, optimizer, Watching(), perturb=perturb)
    for step in range(3):
        _sharp(sharp, model, [collated(rows("mixed", 6, seed=step))], seed=step)
        assert differences(kept[-1], list(sharp.memory["u"].tensors())) == []
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
        assert differences(kept[-1], list(sharp.memory["u"].tensors())) == []


# Buffers ---------------------------------------------------------------------------------------------------------------


class Buffered(nn.Module):
    """Feeds a buffer into its forward and moves it in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.main = nn.Linear(FEATURES, 3)
        start = {"expanded": torch.zeros(1).expand(FEATURES), "new": None}.get(how, torch.zeros(FEATURES))
        self.register_buffer("mean", start)
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.seen.append(None if self.mean is None else self.mean.clone())
        now = self.main.weight.detach().mean(0) + x.mean(0)
        if self.how == "new" and self.mean is None:
            self.mean = now
        elif self.how == "data":
            self.mean.data.mul_(0.5).add_(0.5 * now)
        elif self.how in ("reassigned", "new"):
            self.mean = 0.5 * self.mean + 0.5 * now
        elif self.how == "swapped":  # what an old `p.data = ...` does
            self.mean.data = 0.5 * self.mean + 0.5 * now
        elif self.how == "in place":
            self.mean.mul_(0.5).add_(now, alpha=0.5)
        return {"loss": nn.functional.cross_entropy(self.main(x - self.mean), labels)}


@pytest.mark.parametrize("how", ["in place", "data", "reassigned", "swapped", "new", "expanded"])
@pytest.mark.parametrize("name", SEVERAL)
def test_every_pass_starts_from_the_same_buffers(name: str, how: str) -> None:
    """However a module moves its buffer (in place, through `.data`, by putting another tensor in its place, from None on)
    or shares its memory (expanded): all passes find what the first one found, and the step leaves what the first one
    left."""
    model = seeded(lambda: Buffered(how))
    batches = [collated(rows("mixed", 4, seed=i)) for i in range(2)]
    sharp = _engine(model, SEVERAL[name])
    for _ in range(2):
        model.seen.clear()
        left: list[Tensor] = []

        def watched(batch: Row, left: list[Tensor] = left) -> Tensor:
            loss = loss_of(model)(batch) / 2
            left.append(model.mean.clone())
            return loss

        for i, batch in enumerate(batches):
            sharp(watched, batch, last=i == 1)
        starts = model.seen[::2]
        assert len(starts) > 1
        assert all(differences(starts[0], other) == [] for other in starts[1:])
        assert differences(left[1], model.mean) == []
        model.zero_grad()


class Spectral(nn.Module):
    """A classifier with spectral norm, whose power iteration moves buffers in each forward, and dropout."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.main = nn.Sequential(norm(nn.Linear(FEATURES, 8)), nn.Dropout(0.2), norm(nn.Linear(8, 3)))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.main(x), labels)}


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["parametrization", "hook"]
)
def test_spectral_norm(norm: Callable[..., nn.Module]) -> None:
    """With rho = 0, three steps on a model with spectral norm leave the plain bits, u and v included; with rho > 0 the
    gradient differs, and u and v after a step are still the plain ones."""
    model = seeded(lambda: Spectral(norm))
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, twin)]
    sharp = SharpStep(model, optimizers[0], SAM(rho=0.0))
    for step in range(3):
        batch = collated(rows("mixed", 4, seed=step))
        _sharp(sharp, model, [batch], seed=step)
        _plain(twin, [batch], seed=step)
        assert differences(_gradient(twin), _gradient(model)) == []
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert differences(snapshot(twin), snapshot(model)) == []
    _sharp(SharpStep(model, optimizers[0], SAM(rho=0.1)), model, [batch], seed=0)
    _plain(twin, [batch], seed=0)
    assert differences(_buffers(twin), _buffers(model)) == []
    assert differences(_gradient(twin), _gradient(model)) != []


# Inputs ----------------------------------------------------------------------------------------------------------------


class Greedy(Mixed):
    """Takes its labels out of the batch, and afterwards writes over those that are -100, as FSMT does."""

    def __init__(self, config: PreTrainedConfig, writes_from: int) -> None:
        super().__init__(config)
        self.writes_from, self.calls = writes_from, 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = super().forward(x, labels.clone())
        if self.calls >= self.writes_from:
            labels.masked_fill_(labels == -100, 0)
        self.calls += 1
        return out


def _holey(count: int, seed: int) -> Row:
    batch = collated(rows("mixed", count, seed))
    batch["labels"][::2] = -100
    return batch


def _told(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if "writes into its inputs" in str(w.message)]


@pytest.mark.parametrize("name", SEVERAL)
def test_inputs_that_the_model_spoils(name: str) -> None:
    """A loss that takes entries out of the batch and writes over labels in place gets the right batch in every pass: the
    direction is that of a model that leaves its inputs alone, and one warning names the tensor."""
    spoiling = seeded(lambda: Greedy(PreTrainedConfig(), writes_from=0))
    clean = copy.deepcopy(spoiling)
    clean.writes_from = 10**9
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in (spoiling, clean):
            sharp = _engine(model, SEVERAL[name])
            for step in range(3):
                reseed(step)
                model.zero_grad()
                for i in range(2):
                    batch = _holey(6, seed=10 * step + i)
                    sharp(lambda b, m=model: m(b.pop("x"), b.pop("labels"))["loss"] / 2, batch, last=i == 1)
            found.append(_gradient(model))
    assert differences(found[1], found[0]) == []
    assert len(_told(caught)) == 1
    assert "['labels']" in _told(caught)[0]


def test_inputs_that_the_model_spoils_late() -> None:
    """A model that starts writing after the first micro-batch is told of: that step cannot be saved, the next are right."""
    model = seeded(lambda: Greedy(PreTrainedConfig(), writes_from=2))
    clean = copy.deepcopy(model)
    clean.writes_from = 10**9
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sharp, reference = _engine(model, SAM(rho=0.1)), _engine(clean, SAM(rho=0.1))
        same = []
        for step in range(3):
            for engine, m in ((sharp, model), (reference, clean)):
                m.zero_grad()
                _sharp(engine, m, [_holey(6, seed=step)], seed=step)
            same.append(differences(_gradient(clean), _gradient(model)) == [])
    assert same == [True, False, True]
    assert len(_told(caught)) == 1
    assert "In this step the later passes see what the model wrote" in _told(caught)[0]


def test_the_trainer_survives_spoiled_inputs(tmp_path: Path) -> None:
    """The same through the Trainer, with accumulation and a compute_loss that pops: the weights are those of a model that
    leaves its inputs alone; one warning."""
    ends = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for writes_from in (0, 10**9):
            model = seeded(lambda w=writes_from: Greedy(PreTrainedConfig(), writes_from=w))
            data = rows("mixed", 16)
            for row in data[::2]:
                row["labels"].fill_(-100)

            class Popping(SharpnessAwareTrainer):
                def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **kwargs: Any) -> Any:
                    return model(inputs.pop("x"), inputs.pop("labels"))["loss"]

            args = arguments(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
            Popping(model, args, train_dataset=data, method=SAM(rho=0.1)).train()
            ends.append(snapshot(model))
    assert differences(ends[1], ends[0]) == []
    assert len(_told(caught)) == 1


class _Pair(NamedTuple):
    x: Tensor
    labels: Tensor


_SHAPES: dict[str, tuple[Callable[[Row], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dict": (dict, lambda b: (b.pop("x"), b.pop("labels"))),
    "BatchEncoding": (BatchEncoding, lambda b: (b.pop("x"), b.pop("labels"))),
    "nested": (lambda b: {"in": {"x": b["x"]}, "out": [b["labels"]]}, lambda b: (b["in"].pop("x"), b["out"].pop())),
    "list": (lambda b: [b["x"], b["labels"]], lambda b: (b.pop(0), b.pop())),
    "tuple": (lambda b: (b["x"], b["labels"]), lambda b: b),
    "namedtuple": (lambda b: _Pair(**b), lambda b: (b.x, b.labels)),
    "with a size": (lambda b: {**b, "size": b["x"].shape}, lambda b: (b["x"].reshape(b.pop("size")), b["labels"])),
    "with strings": (lambda b: {**b, "ids": ["a", "b"]}, lambda b: (b["x"], (b["ids"].pop(), b["labels"])[1])),
}


@pytest.mark.parametrize("shape", _SHAPES)
def test_batches_of_any_shape(shape: str) -> None:
    """Dicts, lists, tuples, named tuples, Hugging Face's batches, and what lies beside tensors in them: each pass gets its
    own copy of the containers, of the same kind."""
    pack, unpack = _SHAPES[shape]
    model = mixed()
    twin = copy.deepcopy(model)
    batch = collated(rows("mixed", 6))
    _sharp(_engine(twin, SAM(rho=0.1)), twin, [batch], seed=0)
    reseed(0)
    kinds: list[type] = []

    def loss(b: Any) -> Tensor:
        kinds.append(type(b))
        return model(*unpack(b))["loss"]

    given = pack(batch)
    _engine(model, SAM(rho=0.1))(loss, given)
    assert differences(_gradient(twin), _gradient(model)) == []
    assert kinds == [type(given)] * 2


def test_inputs_made_in_inference_mode() -> None:
    """A mask that was computed under torch.inference_mode(), which has no version counter, can be in the batch."""
    with torch.inference_mode():
        mask = torch.tensor([True, False, True, True])
    model = mixed()
    batch = {**collated(rows("mixed", 4)), "mask": mask}
    _engine(model, SAM(rho=0.1))(lambda b: model(b["x"], b["labels"])["loss"] * float(b["mask"].sum()), batch)
    assert model.first.weight.grad is not None


# Randomness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_all_passes_draw_the_same_numbers(name: str) -> None:
    """A model that draws from numpy's and Python's streams sees the same numbers in every pass, other ones in each
    micro-batch, and the streams end where a plain step leaves them."""
    model, twin = restless(), restless()
    batches = [collated(rows("mixed", 4, seed=i)) for i in range(2)]
    _sharp(_engine(model, ALL[name]), model, batches, seed=3)
    after = streams()
    _plain(twin, batches, seed=3)
    assert differences(streams(), after) == []
    assert len(model.drawn) >= 4
    assert model.drawn == twin.drawn * (len(model.drawn) // 2)
    assert twin.drawn[0] != twin.drawn[1]


class Undecided(Restless):
    """Draws more numbers in its second forward than in its first, and fewer in its third."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if len(self.drawn) == 1:
            torch.rand(3), np.random.rand(3), random.random()
        if len(self.drawn) == 2:
            self.eval()
        return super().forward(x, labels)


@pytest.mark.parametrize("name", SEVERAL)
def test_passes_that_draw_more_or_less_leave_the_plain_streams(name: str) -> None:
    """Where later passes draw other amounts than the first, the streams still end where the first pass left them."""
    model = seeded(lambda: Undecided(PreTrainedConfig()))
    twin = copy.deepcopy(model)
    batch = collated(rows("mixed", 4))
    _sharp(_engine(model, SEVERAL[name]), model, [batch], seed=3)
    after = streams()
    _plain(twin, [batch], seed=3)
    assert differences(streams(), after) == []


# What surrounds the forward --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("build", [llama, bart, vit])
def test_gradient_checkpointing(build: Callable[[], nn.Module], name: str, reentrant: bool) -> None:
    """With gradient checkpointing of either kind the direction, the buffers and the streams are those without it, dropout
    on."""
    model = build().double()
    twin = copy.deepcopy(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    batches = [_doubled(collated(rows(build.__name__, 3, seed=i))) for i in range(2)]
    before = snapshot(model)
    _sharp(_engine(twin, SEVERAL[name]), twin, batches, seed=5)
    after = streams()
    _sharp(_engine(model, SEVERAL[name]), model, batches, seed=5)
    assert differences(after, streams()) == []
    assert differences(before, snapshot(model)) == []
    _close(_gradient(twin), _gradient(model), 1e-10)


def _doubled(batch: Row) -> Row:
    return {key: x.double() if x.is_floating_point() else x for key, x in batch.items()}


@pytest.mark.parametrize("name", [*SEVERAL, "gam_exact"])
@pytest.mark.parametrize("build", [llama, vit])
def test_sdpa_attention(build: Callable[..., nn.Module], name: str) -> None:
    """With fused attention the direction is that of the written-out one, also where a method needs a second derivative."""
    found = []
    for attention in ("sdpa", "eager"):
        model = build(attention=attention, dropout=0.0).double()
        assert model.config._attn_implementation == attention
        _sharp(_engine(model, ALL[name]), model, [_doubled(collated(rows(build.__name__, 3)))], seed=0)
        found.append(_gradient(model))
    _close(found[1], found[0], 1e-5)  # Llama's softmax is in float32


def test_sdpa_attention_replays_its_dropout() -> None:
    """The masks inside fused attention are the same in every pass: a second pass at the same place is the plain gradient to
    the bit."""
    model, twin = llama(), llama()
    assert model.config._attn_implementation == "sdpa"
    batch = collated(rows("llama", 4))
    _sharp(_engine(model, SAM(rho=0.0)), model, [batch], seed=1)
    _plain(twin, [batch], seed=1)
    assert differences(_gradient(twin), _gradient(model)) == []
    twin.zero_grad()
    _plain(twin, [batch], seed=2)
    assert differences(_gradient(twin), _gradient(model)) != [], "the model must have dropout"


@pytest.mark.parametrize("name", SEVERAL)
def test_an_outer_autocast_does_not_hide_the_shift(name: str) -> None:
    """Autocast keeps casts of the weights until its end. One that is open around all passes gives the direction that it
    gives where each forward begins by throwing those casts away, and not the plain gradient."""
    batch = collated(rows("vit", 4))
    found = []
    for forgets in (True, False):
        model = vit()

        def loss(b: Row, model: nn.Module = model, forgets: bool = forgets) -> Tensor:
            if forgets:
                torch.clear_autocast_cache()
            return model(**b)["loss"]

        reseed(0)
        with torch.autocast("cpu", torch.bfloat16):
            _engine(model, SEVERAL[name])(loss, batch)
        found.append(_gradient(model))
    plain = vit()
    with torch.autocast("cpu", torch.bfloat16):
        _plain(plain, [batch], seed=0)
    assert differences(found[0], found[1]) == []
    assert differences(_gradient(plain), found[1]) != []


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile(backend: str, tmp_path: Path) -> None:
    """Through the Trainer with torch_compile, dropout and BatchNorm on: SAM(rho=0) is the compiled plain Trainer to the bit,
    SAM(rho=0.1) is not, and without dropout it is the uncompiled SAM."""

    def trained(method: AbstractMethod | None, compiled: bool, dropout: float) -> dict[str, Tensor]:
        torch.compiler.reset()
        model = mixed()
        model.dropout.p = dropout
        changed = {"torch_compile": True, "torch_compile_backend": backend} if compiled else {}
        args = arguments(tmp_path, gradient_accumulation_steps=2, optim="sgd", learning_rate=0.1, **changed)
        data = rows("mixed", 12)
        if method is None:
            trainer = Trainer(model, args, train_dataset=data)
        else:
            trainer = SharpnessAwareTrainer(model, args, train_dataset=data, method=method)
        trainer.train()
        assert (trainer.model_wrapped is not trainer.model) == compiled
        return snapshot(model)

    plain = trained(None, True, 0.2)
    assert differences(plain, trained(SAM(rho=0.0), True, 0.2)) == []
    assert differences(plain, trained(SAM(rho=0.1), True, 0.2)) != []
    _close(trained(SAM(rho=0.1), False, 0.0), trained(SAM(rho=0.1), True, 0.0), 1e-4)
