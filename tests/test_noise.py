"""R-SAM's noise, taken from the weights that the first forward saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from transformers.pytorch_utils import Conv1D

from hf_sharp import LPF, RSAM, AbstractMethod, SharpnessAwareTrainer, SharpStep
from tests.problems import Perceptron, Watch, arguments, batch_for, generic
from tests.reference import Small, flat

GAMMA = 0.01
UNITS: dict[str, int | None] = {
    "linear.weight": 0,
    "other.weight": 0,
    "table.weight": 0,
    "conv.weight": 0,
    "up.weight": 1,
    "gpt.weight": 1,
    "norm.weight": None,
    "norm.bias": None,
    "position_embeddings": 2,
    "cls_token": None,
}
"""The axis of the output units, by hand; None where the whole parameter is one unit."""


class Wide(Small):
    """A model whose output units have thousands of entries each, and norms far from one another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(4096, 3, bias=False), nn.Linear(4096, 3, bias=False)
        self.table, self.norm, self.gpt = nn.Embedding(3, 4096), nn.LayerNorm(4096), Conv1D(3, 4096)
        self.conv, self.up = nn.Conv2d(512, 3, 3, bias=False), nn.ConvTranspose2d(512, 3, 3, bias=False)
        self.position_embeddings = nn.Parameter(torch.empty(1, 4096, 3))
        self.cls_token = nn.Parameter(torch.empty(1, 1, 4096))
        del self.gpt.bias
        generator = torch.Generator().manual_seed(0)
        for name, p in self.double().named_parameters():
            p.data.copy_(torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.5)
            axis = UNITS[name]
            if axis is not None:
                sizes = torch.tensor([1.0, 4.0, 16.0], dtype=p.dtype)
                p.data.mul_(sizes.view([-1 if i == axis else 1 for i in range(p.ndim)]))

    def forward(self) -> dict[str, Tensor]:
        return {"loss": torch.stack([p.square().mean() for p in self.parameters()]).sum()}


def visited(method: AbstractMethod, *, seed: int = 0, step: int = 0) -> list[dict[str, Tensor]]:
    """The shifts at which the forwards of one step ran, by parameter."""
    model = Wide()
    sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), method, seed=seed)
    sharp.load_state_dict(sharp.state_dict() | {"step": step})
    w = flat(model)
    with Watch(model) as watch:
        sharp(lambda _: model()["loss"], {})
    sizes = {name: p.shape for name, p in model.named_parameters()}
    split = [shift.split([size.numel() for size in sizes.values()]) for shift in watch.shifts(w)]
    return [{name: part.view(sizes[name]) for name, part in zip(sizes, parts, strict=True)} for parts in split]


@pytest.fixture(scope="module")
def noise() -> dict[str, Tensor]:
    """delta_0 of the first step."""
    return visited(RSAM(gamma=GAMMA))[0]


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's, of two tensors' entries in order; the longer one is cut."""
    n = min(x.numel(), y.numel())
    return float(torch.corrcoef(torch.stack([x.reshape(-1)[:n], y.reshape(-1)[:n]]))[0, 1])


@pytest.mark.parametrize("name", sorted(UNITS))
def test_deviation_is_gamma_times_the_norm_of_the_unit(noise: dict[str, Tensor], name: str) -> None:
    """Each unit's noise has its own norm times gamma as standard deviation within 5 %, mean 0, and a Gaussian's tails."""
    axis, w = UNITS[name], Wide().get_parameter(name).detach()
    pairs = [(noise[name], w)] if axis is None else list(zip(noise[name].unbind(axis), w.unbind(axis), strict=True))
    assert len(pairs) == (1 if axis is None else 3)
    for delta, unit in pairs:
        deviation = GAMMA * float(unit.norm())
        assert float(delta.std()) == pytest.approx(deviation, rel=0.05)
        assert abs(float(delta.mean())) < 0.05 * deviation
        assert float((delta / deviation).pow(4).mean()) == pytest.approx(3, rel=0.2)


def test_all_parameters_are_covered(noise: dict[str, Tensor]) -> None:
    """The table names every parameter of the model."""
    assert set(UNITS) == set(noise)


def test_parameters_have_independent_noise(noise: dict[str, Tensor]) -> None:
    """No two parameters share their noise, whether their shapes are equal or not."""
    names = sorted(noise)
    z = {name: noise[name] / noise[name].std() for name in names}
    for i, name in enumerate(names):
        for other in names[:i]:
            assert abs(correlation(z[name], z[other])) < 0.05


def test_same_seed_and_step_give_the_same_noise(noise: dict[str, Tensor]) -> None:
    """The noise depends on nothing but seed, step and draw: not on the process's random state, nor on what ran before."""
    torch.randn(17)
    for name, delta in visited(RSAM(rho=3.0, gamma=GAMMA))[0].items():
        assert torch.equal(delta, noise[name])
    later = visited(RSAM(gamma=GAMMA), step=5)[0]
    for name, delta in visited(LPF(gamma=GAMMA, draws=1), step=5)[0].items():
        assert torch.equal(delta, later[name])


@pytest.mark.parametrize(
    "other",
    [
        lambda: visited(RSAM(gamma=GAMMA), step=1)[0],
        lambda: visited(RSAM(gamma=GAMMA), seed=1)[0],
        lambda: visited(LPF(gamma=GAMMA, draws=2))[1],
        lambda: visited(LPF(gamma=GAMMA, draws=3))[2],
    ],
    ids=["step", "seed", "draw", "later draw"],
)
def test_another_step_seed_or_draw_gives_other_noise(
    noise: dict[str, Tensor], other: Callable[[], dict[str, Tensor]]
) -> None:
    """Steps, seeds and draws are independent of one another, parameter by parameter."""
    for name, delta in other().items():
        assert abs(correlation(delta / delta.std(), noise[name] / noise[name].std())) < 0.05


def test_trainer_takes_its_own_seed(tmp_path: Path) -> None:
    """In the Trainer the noise is that of the training arguments' seed and of the global step."""
    args = arguments(tmp_path, batch=4)
    args.seed = 7
    model = generic(Perceptron())
    batch = batch_for(model, size=8)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(8)]
    w = flat(model)
    with Watch(model) as watch:
        SharpnessAwareTrainer(model, args, train_dataset=rows, method=RSAM(gamma=GAMMA)).train()
    bare = generic(Perceptron())
    with Watch(bare) as wanted:
        SharpStep(bare, SGD(bare.parameters(), lr=0.1), RSAM(gamma=GAMMA), seed=7)(lambda b: bare(**b)["loss"], batch)
    assert torch.equal(watch.weights[0] - w, wanted.weights[0] - w)
    assert abs(correlation(watch.weights[2] - w, watch.weights[0] - w)) < 0.5
