"""The backend of models whose weights each process holds whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from hf_sharp.backends.base import AbstractBackend, check_dense
from hf_sharp.parameters import Perturb, describe
from hf_sharp.vector import Parts, Space, Vector


class Replicated(AbstractBackend):
    """One process that holds all weights.

    Args:
        model: the module whose trainable parameters are trained.
        perturb: the user's name patterns, see `hf_sharp.parameters.describe`.
    """

    def __init__(self, model: nn.Module, perturb: Perturb = None) -> None:
        self._model, self._perturb = model, perturb
        self._parameters: list[nn.Parameter] = []
        self._look()

    def refresh(self) -> None:
        if not _same([p for p in self._model.parameters() if p.requires_grad], self._parameters):
            self._look()

    def _look(self) -> None:
        pieces = describe(self._model, self._perturb)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self.space = Space(pieces, self.weights(), self.total)

    def weights(self) -> list[Tensor]:
        return [p.detach() for p in self._parameters]

    def publish(self) -> None:
        """Nothing to do: the forward reads the weights themselves, once autocast forgets its casts of the old ones."""
        torch.clear_autocast_cache()

    def take_gradient(self) -> Parts:
        gradient = [p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        check_dense(self.space.pieces, gradient)
        return gradient

    def put_gradient(self, parts: Parts) -> None:
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = part

    def total(self, x: Tensor, op: str) -> Tensor:
        return x

    def mean(self, loss: Tensor) -> Tensor:
        return loss

    def unit_norms(self, v: Vector) -> list[Tensor]:
        norms = []
        for piece, part, like in zip(self.space.pieces, v.tensors(), self.space.like, strict=True):
            x = torch.zeros_like(like) if part is None else part
            axes = [axis for axis in range(x.ndim) if axis != piece.unit_axis]
            norms.append(torch.linalg.vector_norm(x, dim=axes, keepdim=True) if axes else x.abs())
        return norms

    def evaluation(self, *, last: bool, local: bool) -> AbstractContextManager[None]:
        return nullcontext()


def _same(these: list[nn.Parameter], those: list[nn.Parameter]) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))
