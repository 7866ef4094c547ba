"""The trainable parameters of a model: their names, roles, output units and radii."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_sharp.vector import Piece

ShapeOf: TypeAlias = Callable[[nn.Parameter], Sequence[int]]
Perturb: TypeAlias = str | Sequence[str] | Mapping[str, float] | None

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_OUTPUTS_SECOND = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, Conv1D)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by their names without wrappers' prefixes; a tied one counts once."""
    return {clean(name): p for name, p in model.named_parameters() if p.requires_grad}


def same(these: Iterable[nn.Parameter], those: Iterable[nn.Parameter]) -> bool:
    """Whether two lists hold the same parameters, not equal ones."""
    return [id(p) for p in these] == [id(p) for p in those]


def describe(model: nn.Module, perturb: Perturb = None, shape_of: ShapeOf = lambda p: p.shape) -> tuple[Piece, ...]:
    """One whole piece per trainable parameter, in the order of ``model.parameters()``; a tied one counts once.

    Args:
        model: the module to look at, wrapped or not.
        perturb: which parameters a shift may move. None: all. Name patterns (shell style: ``*``, ``?``, ``[...]``, matched
            against the whole dotted name): those. A mapping from pattern to factor: those, with their radius multiplied by
            the factor (>= 0); the first pattern that matches counts. A factor multiplies whatever shift a method makes, but
            not the differences that `GAM` takes for its Hessian products.
        shape_of: the full shape of a parameter, where the tensor itself does not have it.

    Raises:
        ValueError: nothing is trainable, a trainable parameter holds integers (quantised weights), a pattern matches no
            trainable parameter, a factor is not a number >= 0, or no parameter is left to perturb.
    """
    parameters = trainable(model)
    if not parameters:
        raise ValueError(
            "The model must have a trainable parameter, got none with requires_grad=True. "
            "Unfreeze what you want to train before you build the trainer."
        )
    for name, p in parameters.items():
        if not p.is_floating_point() or p.dtype.itemsize < 2:
            raise ValueError(
                f"Trainable weights must be floating-point numbers of 16 bits or more, got {p.dtype} for {name!r}. "
                "Freeze the quantised weights and train an adapter, e.g. LoRA."
            )
    factors = _factors(list(parameters), perturb)
    owners = {clean(name): module for name, module in model.named_modules()}
    pieces = []
    for name, p in parameters.items():
        owner_name, _, leaf = _without_parametrization(name).rpartition(".")
        owner, shape = owners.get(owner_name), tuple(shape_of(p))
        axis = _unit_axis(owner, leaf, shape)
        pieces.append(Piece(name, shape, _is_bias(owner, leaf), axis, factors[name], 0, math.prod(shape)))
    return tuple(pieces)


def clean(name: str) -> str:
    """A parameter's name without the prefixes that compilation and wrappers put into it.

    >>> clean("_orig_mod.classifier.weight")
    'classifier.weight'
    """
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".").replace("._checkpoint_wrapped_module.", ".")


def _without_parametrization(name: str) -> str:
    """``a.parametrizations.weight.original0`` is about ``a.weight``."""
    return re.sub(r"\.?parametrizations\.(\w+)\.original\d*$", lambda m: "." + m[1], name).lstrip(".")


def _is_bias(owner: nn.Module | None, leaf: str) -> bool:
    """Whether a parameter is an additive bias. Tables and extra tokens that have "bias" in their name are not."""
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) or leaf in ("bias_k", "bias_v"):
        return False
    return leaf == "bias" or leaf.endswith("_bias") or leaf.startswith("bias_")


def _unit_axis(owner: nn.Module | None, leaf: str, shape: tuple[int, ...]) -> int | None:
    """The axis of a parameter's output units: one row of a Linear or an embedding, one filter of a convolution.

    A bare parameter with several axes longer than 1 (position embeddings) has its units along the last axis, as the
    authors' JAX code has it for every parameter.
    """
    if sum(size > 1 for size in shape) < 2 and not leaf.startswith("weight"):
        return None
    if len(shape) < 2:
        return None
    if isinstance(owner, _OUTPUTS_SECOND):
        return 1
    return 0 if "weight" in leaf else len(shape) - 1


def _factors(names: list[str], perturb: Perturb) -> dict[str, float]:
    if perturb is None:
        return dict.fromkeys(names, 1.0)
    given = [perturb] if isinstance(perturb, str) else perturb
    if not isinstance(given, Collection) or not all(isinstance(pattern, str) for pattern in given):
        raise ValueError(
            f"perturb must be a name pattern, a list of them or a mapping from pattern to factor, got {perturb!r}. "
            "Pass e.g. perturb=['*.weight']."
        )
    patterns = given if isinstance(given, Mapping) else dict.fromkeys(given, 1.0)
    for pattern, factor in patterns.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < float("inf"):
            raise ValueError(f"A factor in perturb must be a number >= 0, got {factor!r} for {pattern!r}. Pass e.g. 1.0.")
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise ValueError(
                f"Each pattern in perturb must match a trainable parameter, got {pattern!r}, which matches none. "
                f"The nearest name is {near[0]!r}; '*' stands for any characters."
            )
    factors = {
        name: float(next((f for pattern, f in patterns.items() if fnmatchcase(name, pattern)), 0.0)) for name in names
    }
    if not any(factors.values()):
        raise ValueError(f"perturb must leave a parameter to perturb, got {perturb!r}. Pass perturb=None for all of them.")
    return factors
