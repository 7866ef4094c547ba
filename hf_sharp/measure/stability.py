"""How steady the gradient is along the ascent, with and without smoothing: Liu et al. (2022), Figures 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.result import Found, mean_and_error
from hf_sharp.measure.surface import Surface
from hf_sharp.methods import kernel_noise, unit
from hf_sharp.methods.checks import above, at_least, one_of, whole
from hf_sharp.vector import Vector

NOISE = ("kernel", "isotropic")


@dataclass(frozen=True)
class _Smoothed(AbstractQuantity):
    """Something about ``w^ + rho g(w^) / |g(w^)|`` with ``w^ = w + delta_0``, over radii and sizes of the noise delta_0."""

    rhos: Sequence[float] = (0.05, 0.1, 0.2, 0.4)
    gammas: Sequence[float] = (0.0, 0.05, 0.1)
    noise_kind: str = "kernel"
    draws: int = 4

    def __post_init__(self) -> None:
        for name, numbers in (("rhos", self.rhos), ("gammas", self.gammas)):
            if not isinstance(numbers, list | tuple) or not numbers:
                raise ValueError(f"{name} must be a list of numbers, got {numbers!r}. Pass e.g. {name}=[0.05, 0.1].")
        for rho in self.rhos:
            above(0, "rho", rho, example="0.05")
        for gamma in self.gammas:
            at_least(0, "gamma", gamma, example="0.05")
        one_of(NOISE, "noise_kind", self.noise_kind)
        whole(2, "draws", self.draws)

    def _table(self, f: Surface, asked: Callable[[Surface, Vector, Vector | None, float], float]) -> Found:
        """One row per gamma, one column per rho: means over the draws; without noise there is one draw."""
        values, errors, table, spread = {}, {}, [], []
        for gamma in self.gammas:
            rows = [self._row(f, gamma, draw, asked) for draw in range(self.draws if gamma else 1)]
            pairs = [mean_and_error(column) for column in zip(*rows, strict=True)]
            table.append([pair[0] for pair in pairs])
            spread.append([pair[1] if gamma else 0.0 for pair in pairs])
            for rho, pair in zip(self.rhos, pairs, strict=True):
                key = f"rho={rho:g},gamma={gamma:g}"
                values[key] = pair[0]
                if gamma:
                    errors[key] = pair[1]
        arrays = {"rhos": list(self.rhos), "gammas": list(self.gammas), "table": table, "standard_error": spread}
        return Found(values, errors, arrays)

    def _row(
        self, f: Surface, gamma: float, draw: int, asked: Callable[[Surface, Vector, Vector | None, float], float]
    ) -> list[float]:
        start = None if gamma == 0 else self._noise(f, gamma, draw)
        g = f(start).grad.stored()
        return [asked(f, g, start, rho) for rho in self.rhos]

    def _noise(self, f: Surface, gamma: float, draw: int) -> Vector:
        if self.noise_kind == "kernel":
            return kernel_noise(f, gamma, draw).stored()
        return (gamma * f.normal(draw)).stored()


def _ahead(g: Vector, start: Vector | None, rho: float) -> Vector:
    e = rho * unit(g)
    return e if start is None else start + e


@dataclass(frozen=True)
class GradientCosine(_Smoothed):
    """The cosine between the gradients at w^ and at ``w^ + rho g(w^) / |g(w^)|``; 1 where one step finds the maximum.

    Cost: per gamma and draw one gradient, and one per radius.

    Args:
        rhos: radii, each > 0.
        gammas: sizes of the noise delta_0, each >= 0; 0 is the plain ascent.
        noise_kind: ``"kernel"``: standard deviation gamma times the norm of each output unit, as R-SAM trains;
            ``"isotropic"``: gamma, as the figure's caption has it.
        draws: of the noise, >= 2.

    References:
        Liu et al., Random Sharpness-Aware Minimization, NeurIPS 2022, Figure 1 (which uses the batch's statistics).
    """

    name: ClassVar[str] = "gradient_cosine"

    @torch.no_grad()
    def take(self, f: Surface) -> Found:
        return self._table(f, self._cosine)

    def _cosine(self, f: Surface, g: Vector, start: Vector | None, rho: float) -> float:
        there, here = f(_ahead(g, start, rho)).grad.perturbed(), g.perturbed()
        return float(there.dot(here) / (there.norm() * here.norm()))


@dataclass(frozen=True)
class AscentLoss(_Smoothed):
    """The loss at ``w^ + rho g(w^) / |g(w^)|`` for a range of radii.

    Cost: per gamma and draw one gradient, and one forward pass per radius.

    Args:
        rhos, gammas, noise_kind, draws: see `GradientCosine`.

    References:
        Liu et al., Random Sharpness-Aware Minimization, NeurIPS 2022, Figure 2.
    """

    name: ClassVar[str] = "ascent_loss"

    @torch.no_grad()
    def take(self, f: Surface) -> Found:
        return self._table(f, lambda f, g, start, rho: f.loss(_ahead(g, start, rho)))
