"""The arithmetic of vectors, against the same arithmetic on flat tensors."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from hf_sharp.backends import Replicated
from hf_sharp.parameters import Perturb
from hf_sharp.vector import Vector


def space_of(perturb: Perturb = None) -> Replicated:
    torch.manual_seed(0)
    return Replicated(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double(), perturb)


def random(backend: Replicated, seed: int, missing: tuple[int, ...] = ()) -> Vector:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in backend.space.like]
    return Vector(backend.space, [None if i in missing else part for i, part in enumerate(parts)])


def flat(v: Vector) -> Tensor:
    pairs = zip(v.tensors(), v.space.like, strict=True)
    return torch.cat([(torch.zeros_like(w) if x is None else x).reshape(-1) for x, w in pairs])


@pytest.mark.parametrize("missing", [(), (0,), (1, 3)])
def test_arithmetic(missing: tuple[int, ...]) -> None:
    backend = space_of()
    a, b = random(backend, 1, missing), random(backend, 2, (2,))
    x, y = flat(a), flat(b)
    v = 2 * (a - 3.0 * b) / torch.tensor(4.0, dtype=torch.float64) + -b
    expected = 2 * (x - 3 * y) / 4 - y
    torch.testing.assert_close(flat(v), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(flat(v.stored()), expected, rtol=1e-14, atol=1e-14)
    assert float(v.norm()) == pytest.approx(float(expected.norm()), rel=1e-14)
    assert float(v.dot(a)) == pytest.approx(float(expected @ x), rel=1e-13)
    assert float(v.peak()) == pytest.approx(float(expected.abs().max()), rel=1e-14)
    assert list(v.present) == [i not in missing or i != 2 for i in range(4)]


def test_the_number_zero_gives_the_zero_vector() -> None:
    """``g + 0.0 * h`` is g to the bit, signed zeros, infinities and NaN in h notwithstanding."""
    backend = space_of()
    g = Vector(backend.space, [torch.full_like(w, -0.0) for w in backend.space.like])
    h = Vector(backend.space, [torch.full_like(w, float("nan")) for w in backend.space.like])
    assert (g + 0.0 * h) is g
    assert (0 * h).is_zero
    assert float((0.0 * h).norm()) == 0.0


def test_sums_do_not_touch_their_operands() -> None:
    backend = space_of()
    a, b = random(backend, 1), random(backend, 2)
    before = flat(a), flat(b)
    total = a + b
    for part in (total * 2.0).stored().tensors():
        assert part is not None
        part.zero_()
    assert torch.equal(flat(a), before[0])
    assert torch.equal(flat(b), before[1])
    torch.testing.assert_close(flat(total), before[0] + before[1])


def test_only_what_is_perturbed() -> None:
    backend = space_of(perturb={"1.*": 0.5})
    a = random(backend, 1)
    assert list(a.perturbed().present) == [False, False, True, True]
    assert list((a + a).perturbed().present) == [False, False, True, True]


def test_a_buffer_comes_back_when_its_last_user_is_gone() -> None:
    backend = space_of()
    a = random(backend, 1)
    v = a.map(lambda piece, x: x.abs_())
    half = 0.5 * v.perturbed()
    held = {id(part) for part in v.parts}
    del v
    gc.collect()
    fresh = a.map(lambda piece, x: x.zero_())
    assert held.isdisjoint({id(part) for part in fresh.parts})
    torch.testing.assert_close(flat(half), flat(a).abs() / 2)
    del half
    gc.collect()
    assert held == {id(part) for part in a.map(lambda piece, x: x).parts}
