"""The largest eigenvalues of a symmetric operator, equal ones as often as they are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_sharp.measure.operator import check_finite

PROBE = 20
"""Products of a look for eigenvalues that were passed over. From a random start they show one that is larger than the k-th
by a tenth of the spectrum's width, in spaces of a million dimensions."""
Start = Callable[[int], np.ndarray]
"""A random vector by its number."""


def largest_eigenvalues(a: Any, k: int, start: Start, tolerance: float, restarts: int) -> np.ndarray:
    """The k largest eigenvalues, from large to small.

    Args:
        a: a SciPy operator, symmetric, shape (n, n).
        k: from 1 to n - 1.
        start: the vectors that the runs start from.
        tolerance: relative accuracy, > 0.
        restarts: of each run, >= 1.

    Raises:
        scipy.sparse.linalg.ArpackNoConvergence: a run does not get there.
        UndefinedError: a product is not finite.
    """
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh

    a = _guarded(a)
    settings: dict[str, Any] = {"which": "LA", "tol": tolerance, "maxiter": restarts}
    try:
        if k == 1:
            return eigsh(a, k=1, v0=start(0), return_eigenvectors=False, **settings)
        values, vectors = eigsh(a, k=k, v0=start(0), **settings)
    except ArpackNoConvergence:
        raise
    except ArpackError:  # ARPACK cannot begin where everything is 0
        if a.matvec(start(0)).any():
            raise
        return np.zeros(k)
    draw = 1
    while len(values) < a.shape[0]:
        last = np.sort(values)[-k]
        margin = max(tolerance * abs(last), 100 * np.finfo(a.dtype).eps * np.abs(values).max())
        z = start(draw)
        if not _exceeds(a, vectors, z, last + margin):
            break
        missed, directions = eigsh(_deflated(a, values, vectors), k=1, v0=_outside(vectors, z), **settings)
        values, vectors = np.append(values, missed), np.hstack([vectors, _outside(vectors, directions)])
        draw += 1
    return np.sort(values)[::-1][:k]


def _guarded(a: Any) -> Any:
    """The operator with a look at each product."""
    from scipy.sparse.linalg import LinearOperator

    def times(x: np.ndarray) -> np.ndarray:
        y = a.matvec(x)
        check_finite(float(y.sum()))
        return y

    return LinearOperator(a.shape, matvec=times, dtype=a.dtype)


def _exceeds(a: Any, vectors: np.ndarray, z: np.ndarray, bound: float) -> bool:
    """Whether a Lanczos run outside the span of some orthonormal vectors meets a Ritz value above the bound."""
    n, found = vectors.shape
    basis = _unit(_outside(vectors, z))[:, None]
    rows: list[np.ndarray] = []
    for _ in range(min(PROBE, n - found)):
        w = _outside(vectors, a.matvec(basis[:, -1]))
        rows.append(basis.T @ w)
        ritz = np.linalg.eigvalsh(_symmetric(rows))[-1]
        if ritz > bound:
            return True
        w = _outside(basis, w)
        if np.linalg.norm(w) <= 100 * np.finfo(a.dtype).eps * max(map(np.max, map(np.abs, rows))):
            return False
        basis = np.hstack([basis, _unit(_outside(vectors, w))[:, None]])
    return False


def _symmetric(rows: list[np.ndarray]) -> np.ndarray:
    """The matrix whose columns' upper parts are given."""
    out = np.zeros((len(rows), len(rows)))
    for i, column in enumerate(rows):
        out[: i + 1, i] = out[i, : i + 1] = column
    return out


def _deflated(a: Any, values: np.ndarray, vectors: np.ndarray) -> Any:
    """The operator with known eigenvalues moved below all that is asked for."""
    from scipy.sparse.linalg import LinearOperator

    low = values.min() - max(np.ptp(values), np.abs(values).max())

    def times(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1)
        inside = vectors.T @ x
        return (_outside(vectors, a.matvec(x - vectors @ inside)) + vectors @ (low * inside)).astype(a.dtype)

    return LinearOperator(a.shape, matvec=times, dtype=a.dtype)


def _outside(vectors: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What is left of x outside the span of orthonormal vectors; twice, for its rounding."""
    for _ in range(2):
        x = x - vectors @ (vectors.T @ x)
    return x


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)
