"""ASAM against its twin, and what it takes for a bias."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from transformers.pytorch_utils import Conv1D

from hf_sharp import ASAM, SharpStep
from tests.problems import MODELS, Filters, Watch, compare
from tests.reference import Small, asam, flat_gradient

NORMS = (1, 1.0001, 1.3, 2, 3, 50, math.inf)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_twin(kind: type[Small], p: float) -> None:
    """The direction is the gradient at the ascent step in the scaled p-norm, T being 1 on additive biases alone."""
    assert compare(kind, ASAM(0.3, p=p), lambda f, w, shifts, step: asam(f, w, 0.3, 0.01, p)) < 1e-10


@pytest.mark.parametrize("eta", [0.0, 0.2])
@pytest.mark.parametrize("scale_biases", [False, True])
@pytest.mark.parametrize("scale", ["element", "filter"])
@pytest.mark.parametrize("p", [1.3, 2, math.inf])
def test_options_equal_the_twin(p: float, scale: str, scale_biases: bool, eta: float) -> None:
    """Filter-wise T, eta and scaled biases do what eq. 5 and section 5.2 of the paper say."""
    method = ASAM(0.3, eta=eta, p=p, scale=scale, scale_biases=scale_biases)
    assert compare(Filters, method, lambda f, w, shifts, step: asam(f, w, 0.3, eta, p, scale, scale_biases)) < 1e-10


def test_filter_wise_scaling_matters_for_convolutions_only() -> None:
    """Weights with fewer than four axes are scaled by the element in both settings."""
    for kind in MODELS:
        wrong = compare(kind, ASAM(0.3, scale="filter"), lambda f, w, shifts, step: asam(f, w, 0.3, 0.01))
        assert (wrong > 1e-6) == (kind is Filters)


class Holder(Small):
    """A loss that is linear in all parameters, which are set to 0.5."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.double()
        for p in self.parameters():
            p.data.fill_(0.5)

    def forward(self) -> dict[str, Tensor]:
        return {"loss": torch.stack([p.sum() for p in self.parameters()]).sum()}


def scaling(model: Small, method: ASAM) -> dict[str, Tensor]:
    """T of each parameter up to one common factor, from the shift: ``e`` is in proportion to ``T^2 g``."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Watch(model) as watch:
        SharpStep(model, SGD(model.parameters(), lr=0.1), method)(lambda _: model()["loss"], {})
    (e,) = [there - here for here, there in zip(watch.weights, watch.weights[1:], strict=False)]
    assert flat_gradient(model).eq(1).all()
    parts = e.sqrt().split([p.numel() for p in before.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(before.items(), parts, strict=True)}


class Bare(nn.Module):
    """One parameter under a name, beside a bias that is one for certain."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(2, 3)))
        self.sure = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("name", "is_bias"),
    [
        ("bias", True),
        ("in_proj_bias", True),
        ("q_bias", True),
        ("bias_ih_l0", True),
        ("bias_hh_l0_reverse", True),
        ("weight", False),
        ("weight_ih_l0", False),
        ("relative_position_bias_table", False),
        ("position_embeddings", False),
        ("cls_token", False),
        ("masked_spec_embed", False),
        ("bias_k", False),
        ("layer_scale", False),
    ],
)
def test_role_by_name(name: str, is_bias: bool) -> None:
    """Names of additive biases have T = 1; tables and tokens are scaled whatever their name holds."""
    t = scaling(Holder(Bare(name)), ASAM(0.01, eta=0.0))
    ratio = 1.0 if is_bias else 0.5
    torch.testing.assert_close(t[f"part.{name}"], torch.full((2, 3), ratio, dtype=torch.float64) * t["part.sure.bias"])


def test_role_by_module() -> None:
    """The weights of norm layers and of an embedding that is called bias are scaled, LSTM and attention biases are not."""
    part = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(2),
            "attention_bias": nn.Embedding(3, 2),
            "relative_bias": nn.EmbeddingBag(3, 2),
            "lstm": nn.LSTM(2, 2, bidirectional=True),
            "attention": nn.MultiheadAttention(2, 1, add_bias_kv=True),
            "gpt": Conv1D(2, 2),
        }
    )
    t = scaling(Holder(part), ASAM(0.01, eta=0.0))
    largest = max(float(x.max()) for x in t.values())
    biases = {name for name, x in t.items() if float(x.min()) > 0.75 * largest}
    lstm = {f"part.lstm.bias_{kind}_l0{way}" for kind in ("ih", "hh") for way in ("", "_reverse")}
    rest = {"part.norm.bias", "part.attention.in_proj_bias", "part.attention.out_proj.bias", "part.gpt.bias"}
    assert biases == lstm | rest


def test_zero_weights_stay_without_eta() -> None:
    """With eta = 0 a weight that is zero is never perturbed."""
    model = Holder(nn.Linear(3, 1, bias=False))
    model.part.weight.data[0, 1] = 0.0
    assert scaling(model, ASAM(0.1, eta=0.0))["part.weight"][0].bool().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("kind", "axis"), [(nn.Conv2d, 0), (nn.Conv3d, 0), (nn.ConvTranspose2d, 1), (nn.ConvTranspose3d, 1)]
)
def test_filters_are_those_of_the_outputs(kind: type[nn.Conv2d], axis: int) -> None:
    """A filter makes one output channel: a transposed convolution keeps those on its second axis."""
    model = Holder(kind(2, 3, 2, bias=False))
    weight = model.part.weight
    weight.data.copy_(torch.arange(1.0, 1 + weight.numel()).view(weight.shape))
    others = [i for i in range(weight.ndim) if i != axis]
    norms = torch.linalg.vector_norm(weight.detach(), dim=others, keepdim=True).expand_as(weight)
    t = scaling(model, ASAM(0.001, eta=0.0, scale="filter"))["part.weight"]
    torch.testing.assert_close(t / t.sum(), norms / norms.sum())
