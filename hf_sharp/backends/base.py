"""What a backend must offer: where this rank's weights and gradients live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hf_sharp.arithmetic import Scalar
from hf_sharp.vector import Parts, Piece, Space, Vector


class AbstractBackend(ABC):
    """The plumbing under a training step. It knows nothing of sharpness.

    Every list has one entry per piece of ``space``, in the same order on every call until ``refresh``.

    Attributes:
        space: which pieces this rank holds.
        whole: whether each rank has all weights, so that it can do a pass of its own.
        parameters: the trainable ones of the model, where each rank has all weights.
    """

    space: Space
    whole: bool = True
    parameters: list[nn.Parameter]

    @abstractmethod
    def refresh(self) -> None:
        """Look again which parameters are trainable; called before the first micro-batch of each optimizer step."""

    @abstractmethod
    def weights(self) -> list[Tensor]:
        """This rank's trainable pieces, writable, in the precision that the optimizer keeps."""

    @abstractmethod
    def publish(self) -> None:
        """Let the next ``evaluation`` see what ``weights`` now hold. It waits for no other rank, for it is also called where
        only this one met an exception.
        """

    def settle(self) -> None:  # noqa: B027 - most backends publish at once
        """Let everybody see what was published; called on all ranks before the loop goes on."""

    @abstractmethod
    def take_gradient(self) -> Parts:
        """The gradient averaged over the ranks' data, the caller's to keep; the storage is left empty.

        Raises:
            ValueError: a gradient is sparse.
        """

    @abstractmethod
    def put_gradient(self, parts: Parts) -> None:
        """Leave these tensors where clipping and ``optimizer.step`` will look; the backend may keep them."""

    def commit(self) -> None:  # noqa: B027 - most backends have nothing to do
        """After the last micro-batch, with the direction in place: take the optimizer step if the loop's does nothing."""

    @abstractmethod
    def loss_scale(self) -> Scalar:
        """What the gradients of this step are multiplied with against underflow; read without waiting for the device."""

    @abstractmethod
    def total(self, x: Tensor, op: str) -> Tensor:
        """``x`` summed (``"sum"``) or maximised (``"max"``) over the ranks that hold different pieces."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Which of the processes that see different samples this is."""

    @abstractmethod
    def mean(self, loss: Tensor) -> Tensor:
        """A loss averaged over the ranks' samples."""

    @abstractmethod
    def average(self, parts: Parts) -> Parts:
        """Parts that each rank made from its own samples, averaged over the ranks; None where all ranks have None. Asked
        only of backends whose ranks have all weights.
        """

    def gather(self, v: Vector) -> Parts:
        """``v`` whole, a tensor for each of ``parameters``. Asked only of backends whose ranks have all weights."""
        return list(v.tensors())

    def scatter(self, whole: Parts) -> Parts:
        """This rank's pieces of a vector that each rank made whole from its own samples, averaged over the ranks. Asked only
        of backends whose ranks have all weights.
        """
        return self.average(whole)

    @abstractmethod
    def unit_norms(self, v: Vector) -> list[Tensor]:
        """Per piece the Euclidean norm of each output unit, shaped to broadcast against the piece."""

    @abstractmethod
    def evaluation(self, *, last: bool, local: bool) -> AbstractContextManager[None]:
        """The context of one micro-batch's forward-backward.

        Args:
            last: whether it is the last one of the pass, after which the gradient must be there.
            local: whether each rank works on its own samples only.
        """

    def differentiation(self) -> AbstractContextManager[None]:
        """The context of one micro-batch's forward of which the caller takes derivatives; nothing is reduced, no gradient
        is left. Asked only of backends whose ranks have all weights.
        """
        return self.evaluation(last=True, local=True)


def check_dense(pieces: Sequence[Piece], gradients: Parts) -> None:
    """Raises ValueError where a gradient is sparse."""
    for piece, gradient in zip(pieces, gradients, strict=True):
        if gradient is not None and gradient.is_sparse:
            raise ValueError(
                f"Gradients must be dense, got a sparse one for {piece.name!r}. Build its embedding with sparse=False."
            )


def scale_of(scaler: GradScaler | None, space: Space) -> Scalar:
    """The loss scale of a GradScaler. Asking for its value would wait for the device."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    return scaler.scale(torch.ones((), device=space.device)).to(space.scalars()[0])
