"""Loss landscapes: along filter-normalised random directions (Li et al., 2018), and between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_sharp.checkpoints import found
from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.result import Found
from hf_sharp.measure.sharding import cut
from hf_sharp.measure.stillness import normalisers
from hf_sharp.measure.surface import Surface
from hf_sharp.methods.checks import above, at_least, one_of, whole
from hf_sharp.vector import Piece, Vector

NORMALIZATIONS = ("filter", "none")


@dataclass(frozen=True)
class AbstractLandscape(AbstractQuantity):
    """The loss at evenly spaced points along random directions; the settings are `LossLine`'s."""

    reach: float = 1.0
    points: int = 21
    normalization: str = "filter"
    draw: int = 0

    def __post_init__(self) -> None:
        whole(0, "draw", self.draw)
        above(0, "reach", self.reach, example="1.0")
        whole(3, "points", self.points)
        if self.points % 2 == 0:
            more = self.points + 1
            raise ValueError(
                f"points must be odd, got {self.points}: the weights are in the middle. Pass e.g. points={more}."
            )
        one_of(NORMALIZATIONS, "normalization", self.normalization)


@dataclass(frozen=True)
class LossLine(AbstractLandscape):
    """The loss along one random direction to both sides.

    Cost: ``points`` forward passes.

    Args:
        reach: how far to either side, > 0, in lengths of the direction.
        points: on the line, an odd number >= 3, so that the weights are one of them.
        normalization: ``"filter"``: each output unit's part is as long as the unit's weights, and biases and norm layers
            stand still; ``"none"``: a direction of length 1.
        draw: which random direction; two models with the same seed, draw and shapes get the same numbers.

    References:
        Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018; Zhang et al., GAM, CVPR 2023, Figure 5.
    """

    name: ClassVar[str] = "loss_line"

    @torch.no_grad()
    def take(self, f: Surface) -> Found:
        d, along = direction(f, self.draw, self.normalization), _axis(self.reach, self.points)
        losses = [f.loss(a * d) for a in along]
        return Found(
            {"loss": losses[self.points // 2], "rise": max(losses) - min(losses)}, {}, {"x": along, "losses": losses}
        )


@dataclass(frozen=True)
class LossPlane(AbstractLandscape):
    """The loss on a square grid along two random directions.

    Cost: ``points^2`` forward passes.

    Args:
        reach, points, normalization: see `LossLine`; the same along both axes.
        draw: which pair of directions.

    References:
        Li et al., NeurIPS 2018; Wu, Luo and Wunsch, CR-SAM, AAAI 2024, Figure 4.
    """

    name: ClassVar[str] = "loss_plane"
    points: int = 15

    @torch.no_grad()
    def take(self, f: Surface) -> Found:
        first, second = (direction(f, 2 * self.draw + i, self.normalization) for i in (0, 1))
        along = _axis(self.reach, self.points)
        rows = [[f.loss(a * first + b * second) for a in along] for b in along]
        middle = self.points // 2
        values = {"loss": rows[middle][middle], "rise": max(map(max, rows)) - min(map(min, rows))}
        return Found(values, {}, {"x": along, "y": along, "losses": rows})


@dataclass(frozen=True)
class LossBetween(AbstractQuantity):
    """The loss on the straight line from these weights (0) to another checkpoint's (1) and beyond.

    Running averages of BatchNorm belong to one end only, so a model that has them needs ``statistics="batch"``.

    ``barrier`` is how far the loss between the two ends rises above the higher one; 0 where it nowhere does.

    Cost: up to ``points + 2`` forward passes.

    Args:
        checkpoint: the other one: a folder that ``from_pretrained`` reads, or the file of a state dict.
        margin: how far beyond the two ends, >= 0 in lengths of the line.
        points: evenly on the line, >= 3; the two ends come beside them where they are not among them.
    """

    name: ClassVar[str] = "loss_between"
    checkpoint: str
    margin: float = 0.25
    points: int = 21

    def __post_init__(self) -> None:
        whole(3, "points", self.points)
        at_least(0, "margin", self.margin, example="0.25")

    def check(self, f: Surface) -> None:
        if f.how.statistics == "running" and any(m.running_mean is not None for m in normalisers(f.model)):  # type: ignore[attr-defined]
            raise ValueError(
                "A line between checkpoints must not use BatchNorm's running averages, got statistics='running'. "
                "Measure with statistics='batch'."
            )

    @torch.no_grad()
    def take(self, f: Surface) -> Found:
        step = way_to(f, self.checkpoint)
        even = torch.linspace(-self.margin, 1 + self.margin, self.points, dtype=torch.float64).tolist()
        along = sorted([0.0, 1.0, *(a for a in even if min(abs(a), abs(a - 1)) > 1e-9)])
        losses = [f.loss(a * step) for a in along]
        ends = {"loss": losses[along.index(0)], "other_loss": losses[along.index(1)]}
        barrier = max(x for a, x in zip(along, losses, strict=True) if 0 <= a <= 1) - max(ends.values())
        return Found(ends | {"barrier": barrier, "distance": float(step.norm())}, {}, {"x": along, "losses": losses})


def direction(f: Surface, draw: int, normalization: str = "filter") -> Vector:
    """A random direction in weight space, normalised as `LossLine` says."""
    z = f.normal(draw)
    if normalization == "none":
        return (z / z.norm()).stored()
    lengths, own = f.unit_norms(), f.backend.unit_norms(z)

    def scaled(piece: Piece, x: Tensor, length: Tensor, norm: Tensor) -> Tensor:
        if len(piece.shape) < 2:
            return x.zero_()
        return x.mul_(length / norm.clamp(min=1e-30))

    return z.map(scaled, lengths, own)


def way_to(f: Surface, checkpoint: str) -> Vector:
    """The vector from the present weights to a checkpoint's.

    Raises:
        ValueError: it lacks a weight, or has one of another shape.
    """
    state = _state(f.model, checkpoint)
    parts: list[Tensor | None] = []
    for piece, w in zip(f.space.pieces, f.backend.weights(), strict=True):
        other = state.get(piece.name)
        if other is None or tuple(other.shape) != piece.shape:
            got = "none" if other is None else f"shape {tuple(other.shape)}"
            raise ValueError(
                f"Both checkpoints must have the same weights, got {got} for {piece.name!r} of shape {piece.shape} in "
                f"{checkpoint!r}. Give two checkpoints of one model."
            )
        parts.append(cut(piece, w, other.to(w.device, w.dtype)) - w)
    return Vector(f.space, parts)


def _state(model: nn.Module, checkpoint: str) -> Mapping[str, Any]:
    if Path(checkpoint).is_file():
        try:
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"A checkpoint's file must be a state dict, got {checkpoint!r}, which is none. Write it with torch.save."
            ) from error
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"A model that transformers does not know needs the file of a state dict, got {checkpoint!r}. "
            "Write one with torch.save(other.state_dict(), file)."
        )
    with found(checkpoint):
        return {name: p.detach() for name, p in type(model).from_pretrained(checkpoint).named_parameters()}


def _axis(reach: float, points: int) -> list[float]:
    return [reach * (2 * i / (points - 1) - 1) for i in range(points)]
