"""Slow textbook twins of every method, on one flat float64 vector.

Written from the formulas of the papers; nothing here imports the package under test.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

Batch: TypeAlias = Mapping[str, Tensor]
LossOf: TypeAlias = Callable[[Mapping[str, Tensor], Batch], Tensor]

TINY = 1e-12


def flat(model: nn.Module) -> Tensor:
    """The trainable weights as one float64 vector."""
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters() if p.requires_grad])


def flat_gradient(model: nn.Module) -> Tensor:
    """The gradients as one float64 vector; zero where there is none."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad.clone()).double().reshape(-1) for p in trainable])


def given_loss(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The loss that the model returned."""
    return outputs["loss"]


class Small(nn.Module):
    """A model that returns a mapping with ``loss``.

    Attributes:
        additive: the names of the additive biases, listed by hand.
    """

    additive: ClassVar[frozenset[str]] = frozenset()


class Problem:
    """A model's loss on one batch as a function of one flat float64 vector.

    Args:
        model: it is copied.
        batch: what its forward takes.
        loss: the loss from the model's outputs and the batch.
        decay: the factor of the penalty ``decay / 2 |w|^2``, a part of the loss.
        factors: each parameter's factor on the radius, by name, missing ones 0; None: 1 for all.
    """

    def __init__(
        self,
        model: Small,
        batch: Batch,
        *,
        loss: LossOf = given_loss,
        decay: float = 0.0,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self._model, self._batch, self._loss, self._decay = copy.deepcopy(model).double(), batch, loss, decay
        self._additive = model.additive
        self._shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        self.factors = torch.ones(sum(shape.numel() for shape in self._shapes.values()), dtype=torch.float64)
        for name, factor in zip(self._shapes, self.pieces(self.factors).values(), strict=True):
            factor.fill_(1.0 if factors is None else factors.get(name, 0.0))

    def pieces(self, w: Tensor) -> dict[str, Tensor]:
        """The parts of a flat vector in the parameters' shapes."""
        parts = w.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def loss(self, w: Tensor) -> Tensor:
        """The loss at w."""
        outputs = functional_call(self._model, self.pieces(w), (), dict(self._batch))
        return self._loss(outputs, self._batch) + self._decay / 2 * w.dot(w)

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient at w."""
        w = w.clone().requires_grad_()
        loss = self.loss(w)
        return loss.detach(), torch.autograd.grad(loss, w)[0]

    def hessian_times(self, w: Tensor, v: Tensor) -> Tensor:
        """The product of the Hessian at w and v."""
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.functional.hvp(self.loss, w, v)[1]

    def scaling(self, w: Tensor, eta: float, scale: str, scale_biases: bool) -> Tensor:
        """ASAM's T (its eq. 5 where ``scale`` is "filter"), as a vector."""
        parts = []
        for name, x in self.pieces(w).items():
            if name in self._additive and not scale_biases:
                t = torch.ones_like(x)
            elif scale == "filter" and x.ndim >= 4:
                t = torch.stack([kernel.pow(2).sum().sqrt() + eta + torch.zeros_like(kernel) for kernel in x])
            else:
                t = x.abs() + eta
            parts.append(t.reshape(-1))
        return torch.cat(parts)


def unit(x: Tensor) -> Tensor:
    return x / (x.norm() + TINY)


def climb(f: Problem, g: Tensor, rho: float, p: float = 2.0, t: Tensor | None = None) -> Tensor:
    """The e with ``|T^-1 e|_p = rho`` that has the largest product with g, in logarithms (Kwon et al., 2021, section 4)."""
    t = torch.ones_like(g) if t is None else t
    h = torch.where(f.factors > 0, t * g, 0.0)
    if p == math.inf:
        z = h.sign()
    elif p == 1:
        top = (h.abs() == h.abs().max()).double()
        z = top * h.sign() / top.sum()
    else:
        q = p / (p - 1)
        log = h.abs().log()
        z = h.sign() * ((q - 1) * (log - torch.logsumexp(q * log, 0) / q)).exp()
    return f.factors * rho * t * z


def sam(f: Problem, w: Tensor, rho: float, p: float = 2.0) -> Tensor:
    return f.gradient(w + climb(f, f.gradient(w)[1], rho, p))[1]


def asam(
    f: Problem, w: Tensor, rho: float, eta: float, p: float = 2.0, scale: str = "element", scale_biases: bool = False
) -> Tensor:
    e = climb(f, f.gradient(w)[1], rho, p, f.scaling(w, eta, scale, scale_biases))
    return f.gradient(w + e)[1]


def rsam(f: Problem, w: Tensor, delta: Tensor, rho: float, lam: float, project: bool = True) -> Tensor:
    g = f.gradient(w + delta)[1]
    return f.gradient(w + rho * unit(delta + lam * g) if project else w + delta + rho * unit(g))[1]


def gsam(f: Problem, w: Tensor, rho: float, alpha: float) -> Tensor:
    g = f.gradient(w)[1]
    gp = f.gradient(w + climb(f, g, rho))[1]
    along = unit(gp)
    return gp - alpha * (g - g.dot(along) * along)


def rgsam(f: Problem, w: Tensor, delta: Tensor, rho: float, lam: float, alpha: float) -> Tensor:
    g = f.gradient(w + delta)[1]
    gp = f.gradient(w + rho * unit(delta + lam * g))[1]
    along = unit(gp)
    return gp - alpha * (g - g.dot(along) * along)


def crsam(f: Problem, w: Tensor, rho: float, alpha: float, beta: float, log: bool = False) -> Tensor:
    here, g = f.gradient(w)
    e = climb(f, g, rho)
    (above, gp), (below, gm) = f.gradient(w + e), f.gradient(w - e)
    d2, d1 = gp + gm - 2 * g, gp - gm
    if log:
        curve, slope = float(above + below - 2 * here), float(above - below)
        rounding = torch.finfo(torch.float64).eps * float(above.abs() + below.abs() + 2 * here.abs())
        d2 = d2 / curve if curve > rounding else 0 * d2
        d1 = d1 / slope if slope > rounding else 0 * d1
    return gp + alpha * d2 + beta * d1


def gam(
    f: Problem,
    w: Tensor,
    rho: float,
    alpha: float,
    step: float | None = None,
    base: Callable[[Problem, Tensor], Tensor] | None = None,
) -> Tensor:
    """Algorithm 1 of GAM; exact where ``step`` is None, else with gradient differences."""

    def hessian_times(at: Tensor, v: Tensor) -> Tensor:
        if step is None:
            return f.hessian_times(at, v)
        return (f.gradient(at + step * v)[1] - f.gradient(at)[1]) / step

    g = f.gradient(w)[1]
    h_loss = g if base is None else base(f, w)
    adv = w + rho * unit(hessian_times(w, unit(g)))
    return h_loss + alpha * rho * hessian_times(adv, unit(f.gradient(adv)[1]))


def accelerated_gam(
    f: Problem, w: Tensor, rho: float, step: float, a: float, b: float, gamma: float, released: bool = False
) -> Tensor:
    g0 = f.gradient(w)[1]
    g1 = f.gradient(w + step * unit(g0))[1]
    w2 = w + rho * unit(g1 - g0)
    g2 = f.gradient(w2)[1]
    g3 = f.gradient(w2 + step * unit(g2))[1]
    h_plus = a * g1 + (1 - a) * g3
    h_minus = (g0 if released else b * g0) + (1 - b) * g2
    return h_plus - gamma * (h_minus - h_minus.dot(h_plus) / h_plus.dot(h_plus) * h_plus)


def lpf(f: Problem, w: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    return sum((f.gradient(w + delta)[1] for delta in deltas), torch.zeros_like(w)) / len(deltas)


def error(got: Tensor, wanted: Tensor) -> float:
    """The distance of two vectors relative to the length of the wanted one."""
    return float((got - wanted).norm() / wanted.norm())
