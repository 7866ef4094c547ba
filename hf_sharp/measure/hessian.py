"""The Hessian's trace, largest eigenvalues and spectral density, from products with vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.result import Found, UndefinedError, mean_and_error
from hf_sharp.measure.surface import Surface
from hf_sharp.methods.checks import above, one_of, whole

DISTRIBUTIONS = ("rademacher", "normal")
_DENSE = 32
"""Up to this many weights the whole matrix is cheaper than an iteration."""


@dataclass(frozen=True)
class Trace(AbstractQuantity):
    """``Tr H``, by Hutchinson's estimator: the mean of ``z' H z`` over random z.

    Cost: ``draws`` Hessian products.

    Args:
        draws: how many z, >= 2; the standard error is over them.
        distribution: ``"rademacher"`` (signs; the smaller variance) or ``"normal"``.

    References:
        Wu, Luo and Wunsch, CR-SAM, AAAI 2024, Table 3; Zhang et al., GAM, CVPR 2023, section 5.4.
    """

    name: ClassVar[str] = "trace"
    draws: int = 20
    distribution: str = "rademacher"

    def __post_init__(self) -> None:
        whole(2, "draws", self.draws)
        one_of(DISTRIBUTIONS, "distribution", self.distribution)

    def check(self, f: Surface) -> None:
        f.check_products()

    def take(self, f: Surface) -> Found:
        from curvlinops import hutchinson_trace

        a = _operator(f)
        with _seeded(f):  # one z per call, since the spread between them is the standard error
            if f.dimension == 1:
                samples = [float(a @ torch.ones(1, dtype=a.dtype, device=a.device))] * self.draws
            else:
                samples = [float(hutchinson_trace(a, 1, self.distribution)) for _ in range(self.draws)]
        value, error = mean_and_error(samples)
        return Found({"trace": value}, {"trace": error}, {"samples": samples})


@dataclass(frozen=True)
class NormalizedTrace(AbstractQuantity):
    """``C(w) = Tr H / |g|``, with the trace by Hutchinson's estimator.

    Cost: ``draws`` Hessian products and one gradient.

    Args:
        draws, distribution: see `Trace`.

    References:
        Wu, Luo and Wunsch, CR-SAM, AAAI 2024, eq. 4.
    """

    name: ClassVar[str] = "normalized_trace"
    draws: int = 20
    distribution: str = "rademacher"

    def __post_init__(self) -> None:
        Trace(self.draws, self.distribution)

    def check(self, f: Surface) -> None:
        f.check_products()

    def take(self, f: Surface) -> Found:
        trace = Trace(self.draws, self.distribution).take(f)
        with torch.no_grad():
            norm = float(f().grad.perturbed().norm())
        value, error = trace.values["trace"], trace.errors["trace"]
        if norm == 0.0:
            raise UndefinedError(
                "The normalised trace needs a gradient that is not zero, got 0 at the weights. Measure 'trace'."
            )
        return Found(
            {"normalized_trace": value / norm, "trace": value, "gradient_norm": norm},
            {"normalized_trace": error / norm, "trace": error},
            trace.arrays,
        )


@dataclass(frozen=True)
class TopEigenvalues(AbstractQuantity):
    """The k largest eigenvalues of the Hessian, by the implicitly restarted Lanczos method (ARPACK).

    A Lanczos run sees one of several equal eigenvalues, and finds the others late. So for k > 1 a second, short run looks
    for what is larger than the k-th in the space that the first one left, until there is nothing.

    Cost: Hessian products, about 20 for k = 1 and about 2 k to 4 k above, and there 20 for the second run, or fewer where
    the space is smaller; each eigenvalue that was passed over costs about 20 to find and as many to look again. Memory for
    ``max(20, 2 k + 1)`` vectors.

    Args:
        k: how many, from 1 to the number of weights.
        tolerance: relative accuracy, > 0.
        restarts: until it gives up, >= 1.

    References:
        Zhang et al., GAM, CVPR 2023, section 5.4 and Figure 3 (k = 50).
    """

    name: ClassVar[str] = "top_eigenvalues"
    k: int = 1
    tolerance: float = 1e-3
    restarts: int = 100

    def __post_init__(self) -> None:
        whole(1, "k", self.k)
        above(0, "tolerance", self.tolerance, example="0.001")
        whole(1, "restarts", self.restarts)

    def check(self, f: Surface) -> None:
        f.check_products()
        if self.k > f.dimension:
            raise ValueError(f"k must be at most the number of weights, {f.dimension}, got {self.k}. Pass e.g. k=1.")

    def take(self, f: Surface) -> Found:
        values = self._dense(f) if f.dimension <= max(_DENSE, self.k) else self._iterated(f)
        ordered = sorted((float(x) for x in values), reverse=True)[: self.k]
        return Found({"top_eigenvalue": ordered[0]}, {}, {"eigenvalues": ordered})

    def _dense(self, f: Surface) -> np.ndarray:
        a = _operator(f, guarded=True)
        h = (a @ torch.eye(f.dimension, dtype=a.dtype, device=a.device)).double().cpu().numpy()
        return np.linalg.eigvalsh((h + h.T) / 2)

    def _iterated(self, f: Surface) -> np.ndarray:
        from scipy.sparse.linalg import ArpackNoConvergence

        from hf_sharp.measure.lanczos import largest_eigenvalues
        from hf_sharp.measure.operator import flat

        a = _operator(f)
        kind: Any = np.float64 if a.dtype == torch.float64 else np.float32

        def start(draw: int) -> np.ndarray:
            return flat(f, f.normal(draw)).cpu().numpy().astype(kind)

        try:
            return largest_eigenvalues(a.to_scipy(kind), self.k, start, self.tolerance, self.restarts)
        except ArpackNoConvergence as error:
            raise UndefinedError(
                f"The eigenvalues must converge, got {len(error.eigenvalues)} of {self.k} within {self.restarts} restarts "
                f"at tolerance {self.tolerance}. Raise either."
            ) from error


@dataclass(frozen=True)
class SpectralDensity(AbstractQuantity):
    """The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature with Gaussian bumps.

    Cost: ``draws * lanczos`` Hessian products; memory for three vectors.

    Args:
        lanczos: length of each Lanczos run, from 2 to the number of weights.
        draws: how many runs, >= 2; the standard error at each point is over them.
        points: of the grid, >= 2.
        kappa: width of the bumps, > 1: the larger, the narrower.

    References:
        Papyan, Traces of class/cross-class structure pervade deep learning spectra, JMLR 2020, Algorithm 2, as curvlinops
        has it. The ends of the grid are the extreme Ritz values of the runs themselves, which cost no further products.
    """

    name: ClassVar[str] = "spectral_density"
    lanczos: int = 30
    draws: int = 4
    points: int = 512
    kappa: float = 3.0

    def __post_init__(self) -> None:
        whole(2, "lanczos", self.lanczos)
        whole(2, "draws", self.draws)
        whole(2, "points", self.points)
        above(1, "kappa", self.kappa, example="3.0")

    def check(self, f: Surface) -> None:
        f.check_products()
        if self.lanczos > f.dimension:
            raise ValueError(
                f"lanczos must be at most the number of weights, {f.dimension}, got {self.lanczos}. Pass e.g. lanczos=2."
            )

    def take(self, f: Surface) -> Found:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter

        a = _operator(f, guarded=True)
        with _seeded(f):
            runs = [fast_lanczos(a, self.lanczos) for _ in range(self.draws)]
        low, high = float(min(values[0] for values, _ in runs)), float(max(values[-1] for values, _ in runs))
        found = [
            lanczos_approximate_spectrum_from_iter(run, (low, high), self.points, self.kappa, margin=0.05) for run in runs
        ]
        densities = torch.stack([density for _, density in found]).double()
        means = [float((vectors[0] ** 2 * values).sum()) for values, vectors in runs]
        mean, error = mean_and_error(means)
        spread = densities.std(dim=0) / self.draws**0.5
        arrays = {
            "grid": found[0][0].tolist(),
            "density": densities.mean(dim=0).tolist(),
            "standard_error": spread.tolist(),
            "nodes": [values.tolist() for values, _ in runs],
            "weights": [(vectors[0] ** 2).tolist() for _, vectors in runs],
        }
        values = {"mean_eigenvalue": mean, "largest_ritz_value": high, "smallest_ritz_value": low}
        return Found(values, {"mean_eigenvalue": error}, arrays)


def _operator(f: Surface, guarded: bool = False) -> Any:
    try:
        from hf_sharp.measure.operator import HessianOperator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"Hessian quantities need {error.name}. Run: pip install 'hf_sharp[measure]'") from error
    return HessianOperator(f, guarded)


@contextmanager
def _seeded(f: Surface) -> Iterator[None]:
    """Torch's random numbers from the surface's seed inside, the same in every process."""
    devices = [f.device] if f.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(f.how.seed)
        yield
