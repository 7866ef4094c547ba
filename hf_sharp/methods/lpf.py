"""The low-pass filter baseline, Bisla et al. (2022)."""

from __future__ import annotations

from dataclasses import dataclass

from hf_sharp.methods.base import AbstractMethod
from hf_sharp.methods.checks import whole
from hf_sharp.methods.noise import kernel_noise
from hf_sharp.methods.schedules import Radius, radius
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector


@dataclass(frozen=True)
class LPF(AbstractMethod):
    """Low-pass filtered gradient: the mean gradient over Gaussian draws around the weights.

    ``d = mean_k g(w + delta_k)`` with kernel-wise noise ``delta_k = gamma z |w_j|``, as in `RSAM`.

    Cost: ``draws`` passes; memory for one gradient, one draw and the old weights.

    Suggested values: gamma 0.0005 to 0.005 with 8 draws. Those of the R-SAM paper, where it is a baseline (tables 1 and 2),
    are in an appendix.

    Caveats: a baseline; nothing ascends. The first pass runs at w + delta_0, so the logged loss and the BatchNorm statistics
    are those of the first draw.

    Args:
        gamma: standard deviation of the noise relative to the norm of each output unit, >= 0.
        draws: how many draws, >= 1.

    References:
        Bisla, Wang and Choromanska, Low-Pass Filtering SGD for Recovering Flat Optima in the Deep Learning Optimization
        Landscape, AISTATS 2022; a baseline in Liu et al., NeurIPS 2022.
    """

    gamma: Radius
    draws: int = 8

    def __post_init__(self) -> None:
        radius("gamma", self.gamma)
        whole(1, "draws", self.draws)

    def first(self, f: AbstractOracle) -> Vector:
        return kernel_noise(f, self.gamma)

    def direction(self, f: AbstractOracle) -> Vector:
        total = f(self.first(f) if f.first is None else f.first).grad
        for k in range(1, self.draws):
            total = (total + f(kernel_noise(f, self.gamma, draw=k)).grad).stored()
        return total / self.draws
