"""ASAM, Kwon et al. (2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hf_sharp.methods.base import AbstractMethod, ascend
from hf_sharp.methods.checks import at_least, between, flag, one_of
from hf_sharp.methods.schedules import Radius, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Piece, Vector


@dataclass(frozen=True)
class ASAM(AbstractMethod):
    """Adaptive SAM: the region is scaled by the weights, so that rescaling them does not change it.

    ``d = g(w + e)`` with ``e = rho T sign(g) |T g|^(q-1) / |T g|_q^(q-1)``; for p = 2 ``e = rho T^2 g / |T g|``. T is
    diagonal: ``|w| + eta``, and 1 for additive biases.

    Cost: 2 passes; memory for e and the old weights.

    Suggested values: rho 0.5 on CIFAR-10, 1.0 on CIFAR-100, for a PyramidNet-272 on both and for a ResNet-50 on ImageNet,
    0.2 with Adam on IWSLT'14; eta 0.01 (sections 5.2 and 5.3). p = 2 does better than infinity, filters as well as elements,
    and scaled biases do not help (figure 4).

    Caveats: rho is in units of the weights, so SAM's values do not carry over: here they are two to twenty times larger.
    Other implementations scale biases, too, and have eta = 0; their values of rho belong to ``ASAM(eta=0,
    scale_biases=True)``, where a weight that is 0 never moves (LoRA's B at the start). Biases are told from weights by their
    name and module: the weights of norm layers, embeddings, class tokens and position embeddings are scaled. (The authors'
    code scales whatever has "weight" in its name, and so leaves class tokens and position embeddings out.) With 80 % wrong
    labels ASAM was below SGD (table 6).

    Args:
        rho: radius in the scaled p-norm, >= 0.
        eta: added to every ``|w|`` for stability, >= 0.
        p: the norm, from 1 to infinity.
        scale: ``"element"``, or ``"filter"``: one norm per output filter of weights with 4 or more dimensions (eq. 5).
        scale_biases: whether biases are scaled like weights.

    References:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks, ICML
        2021, Algorithm 1 and section 4.
    """

    rho: Radius = 0.5
    eta: float = 0.01
    p: float = 2.0
    scale: str = "element"
    scale_biases: bool = False

    def __post_init__(self) -> None:
        radius("rho", self.rho)
        at_least(0, "eta", self.eta, example="0.01")
        between(1, math.inf, "p", self.p, example="2.0")
        one_of(("element", "filter"), "scale", self.scale)
        flag("scale_biases", self.scale_biases)

    def direction(self, f: AbstractOracle) -> Vector:
        norms = dict(zip(f.weights.space.pieces, f.unit_norms(), strict=True)) if self.scale == "filter" else {}

        def t(piece: Piece, w: Tensor) -> Tensor:
            """The diagonal of T for one parameter, in the place of its weights."""
            if piece.bias and not self.scale_biases:
                return w.fill_(1.0)
            if self.scale == "filter" and len(piece.shape) >= 4:
                return w.copy_(norms[piece]).add_(self.eta)
            return w.abs_().add_(self.eta)

        return f(ascend(f().grad, self.rho, self.p, t, f.weights)).grad
