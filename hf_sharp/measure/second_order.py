"""Exact Hessian products by double backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from hf_sharp.vector import Parts, Vector

_FUSED = ("flash", "flex", "paged", "kernels")
_ERROR = "torch::autograd::Error"
_NO_SECOND = ("derivative", "once_differentiable", "double backward", "differentiate twice")


class Graph:
    """The gradient of a loss with the graph that made it.

    Args:
        loss: a tensor without dimensions, with its graph.
        parameters: what it is differentiated by.
        keep: whether the graph shall serve several products: each then costs a double backward alone, and the graph's memory
            stays taken in between.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor], keep: bool) -> None:
        self._keep = keep
        with _explained():
            gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        self._curved = [(p, g) for p, g in zip(parameters, gradient, strict=True) if g is not None and g.requires_grad]
        self._index = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
        self._size = len(parameters)

    def check(self) -> None:
        """Raises ValueError where an operation has no second derivative.

        Such an operation leaves a mark that raises when a backward comes by. One that is asked for the parameters alone does
        not, and its products would be wrong without a word.
        """
        seen, ahead = set(), [g.grad_fn for _, g in self._curved]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.name() == _ERROR:
                raise _lacking("a function that is marked with @once_differentiable")
            ahead += [following for following, _ in node.next_functions]

    def times(self, v: Vector) -> Parts:
        """``H v``, a part per parameter; None where nothing depends on it."""
        out: Parts = [None] * self._size
        given = list(v.tensors())
        chosen = [(g, given[i]) for i, (_, g) in zip(self._index, self._curved, strict=True) if given[i] is not None]
        if not chosen:
            return out
        with _explained():
            products = torch.autograd.grad(
                [g for g, _ in chosen],
                [p for p, _ in self._curved],
                grad_outputs=[x for _, x in chosen],
                retain_graph=self._keep,
                allow_unused=True,
            )
        for i, product in zip(self._index, products, strict=True):
            out[i] = product
        return out


def added(total: Parts, more: Parts) -> Parts:
    """The sum part by part; None counts as zero."""
    return [b if a is None else a if b is None else a.add_(b) for a, b in zip(total, more, strict=True)]


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Torch's own attention in the form that has a second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if not any(words in str(error) for words in _NO_SECOND):
            raise
        raise _lacking(str(error).splitlines()[0].rstrip(".")) from error


def check_attention(model: nn.Module) -> None:
    """Raises ValueError where a transformers model was loaded with an attention kernel that is known to be fused."""
    kind = model.config._attn_implementation if isinstance(model, PreTrainedModel) else None
    if kind is not None and any(word in kind for word in _FUSED):
        raise _lacking(f"attn_implementation={kind!r}")


def _lacking(what: str) -> ValueError:
    return ValueError(
        f"hvp='exact' needs a second derivative of every operation, got one without: {what}. Use hvp='difference', or load "
        "the model with attn_implementation='eager'."
    )
