"""GAM, Zhang et al. (2023)."""

from __future__ import annotations

from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod, ascend, unit
from hf_sharp.methods.checks import above, at_least, instance, one_of
from hf_sharp.methods.schedules import Radius, as_number, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class GAM(AbstractMethod):
    """Gradient norm aware minimization: also penalises the largest gradient norm nearby (first-order flatness).

    ``h = H(w) u(g)``, ``w' = w + rho u(h)``, ``d = grad L_oracle(w) + alpha rho H(w') u(g(w'))`` with ``u(x) = x / |x|``.

    Cost: 4 passes with ``hvp="difference"`` (and those of ``base`` beyond its first); memory for three gradients and the old
    weights. Every few steps are enough: ``Every(10, GAM())``.

    Suggested values: the paper searched rho over 0.05, 0.1, 0.2, 0.5, 1, 2 and alpha over 0.1 to 10 on a tenth of the
    training data (section 5.2.1); what it chose is in its appendix. On one step in ten it does about as well as on all, with
    a larger alpha (section 5.5). SAM+GAM was better than either in most of table 1.

    Caveats: ``hvp="exact"`` needs a second derivative of every operation: attention kernels without one are replaced for
    those passes; torch.compile and reentrant checkpointing do not work with it, nor do FSDP2 and ZeRO-3. The values do
    not carry over to `AcceleratedGAM`, which is what the authors released.

    Args:
        rho: radius, >= 0.
        alpha: weight of the penalty, >= 0; 0.1 to 10.
        hvp: how ``H v`` is taken: ``"difference"``, ``(g(w + step v) - g(w)) / step``, or ``"exact"``, double backward.
        step: the length of the difference, > 0.
        base: the method whose direction is ``grad L_oracle``; None: the plain gradient. SAM+GAM is ``GAM(base=SAM())``.

    References:
        Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization, CVPR 2023,
        Algorithm 1.
    """

    rho: Radius = 0.2
    alpha: float = 1.0
    hvp: str = "difference"
    step: float = 0.02
    base: AbstractMethod | None = None

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        at_least(0, "alpha", self.alpha, example="1.0")
        one_of(("difference", "exact"), "hvp", self.hvp)
        above(0, "step", self.step, example="0.02")
        if self.base is not None:
            instance(AbstractMethod, "base", self.base, example="SAM(rho=0.05)")

    def direction(self, f: AbstractOracle) -> Vector:
        g = f().grad
        h_loss = g if self.base is None else self.base.direction(f)
        e = ascend(self._hessian_times(f, unit(g), None, g), self.rho)
        g_adv = f(e).grad
        h_norm = as_number(self.rho) * self._hessian_times(f, unit(g_adv), e, g_adv)
        return h_loss + self.alpha * h_norm

    def _hessian_times(self, f: AbstractOracle, v: Vector, shift: Vector | None, g: Vector) -> Vector:
        """``H v`` at ``w + shift``, where the gradient is g."""
        if self.hvp == "exact":
            return f.hessian_vector(v, shift)
        ahead = self.step * v if shift is None else shift + self.step * v
        return (f(ahead).grad - g) / self.step
