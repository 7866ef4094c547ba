"""Small losses whose every quantity is known, and dense twins of the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from hf_sharp.measure import How, Surface, loss_surface


class Quadratic(nn.Module):
    """``L = mean over samples of x_i (w' A w / 2 + b' w)``: with samples of mean 1, the quadratic itself."""

    def __init__(self, a: Tensor, b: Tensor | None = None, w: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", torch.zeros(len(a), dtype=a.dtype) if b is None else b)
        self.w = nn.Parameter(torch.zeros(len(a), dtype=a.dtype) if w is None else w)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (x.mean() * (self.w @ self.a @ self.w / 2 + self.b @ self.w)).reshape(())}


class Frozen(torch.autograd.Function):
    """A square without second derivative, as fused attention kernels are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class Lossless(nn.Module):
    """A headless model."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}


ONES = [{"x": torch.ones(3, dtype=torch.float64)}, {"x": torch.ones(1, dtype=torch.float64)}]
"""Two batches of unequal size."""


def symmetric(n: int, seed: int = 0) -> Tensor:
    """A random symmetric matrix with both signs in its spectrum."""
    m = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (m + m.T) / 2


def positive(n: int, seed: int = 0) -> Tensor:
    """A random positive definite matrix."""
    m = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return m @ m.T / n + 0.1 * torch.eye(n, dtype=torch.float64)


class Classifier(nn.Module):
    """A perceptron; without hidden units, logistic regression."""

    def __init__(
        self, hidden: int = 5, bias: bool = True, activation: type[nn.Module] = nn.Tanh, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(4, hidden, bias), activation(), nn.Dropout(dropout), nn.Linear(hidden, 3, bias)]
        self.layers = nn.Sequential(*(layers if hidden else [nn.Linear(4, 3, bias)]))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self.layers(x), labels)}


class Fused(Classifier):
    """With an operation that has no second derivative."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return super().forward(Frozen.apply(self.layers[0].weight.sum() * x), labels)


class Normalised(Classifier):
    """With a BatchNorm whose running averages are not those of any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def samples(n: int = 20, seed: int = 0) -> dict[str, Tensor]:
    """Random samples and labels in one batch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "labels": torch.randint(3, (n,), generator=generator)}


def batches(n: int = 20, size: int = 8) -> list[dict[str, Tensor]]:
    """The same samples in batches, the last one smaller."""
    whole = samples(n)
    return [{key: value[i : i + size] for key, value in whole.items()} for i in range(0, n, size)]


def made(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with random weights, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.double().parameters():
        p.data.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.eval()


@contextmanager
def opened(model: nn.Module, data: Any = None, **settings: Any) -> Iterator[Surface]:
    """The loss surface of a model, on ``ONES`` where no data are given."""
    with loss_surface(model, ONES if data is None else data, how=How(**settings)) as f:
        yield f


def dense(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The Hessian by torch.func, with the weights flattened in the order of ``parameters()``."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    blocks: Any = hessian(lambda w: functional_call(model, w, kwargs=batch)["loss"])(weights)
    rows = [
        torch.cat([blocks[i][j].reshape(weights[i].numel(), weights[j].numel()) for j in weights], dim=1) for i in weights
    ]
    return torch.cat(rows)
