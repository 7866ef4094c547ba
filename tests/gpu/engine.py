"""One DeepSpeed engine on one device beside a plain loop with the same data; prints the largest difference of their weights.

python -m tests.gpu.engine KIND DEVICE
"""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hf_sharp import ASAM, GAM, GSAM, RSAM, SAM, AbstractMethod, SharpStep
from tests.gpu.loops import STEPS, on
from tests.problems import Perceptron, batch_for, generic
from tests.reference import flat
from tests.workers.engines import config, full_weights

METHODS: dict[str, AbstractMethod] = {
    "sam": SAM(rho=0.1),
    "asam": ASAM(rho=0.3),
    "gsam": GSAM(rho=0.1),
    "gam": GAM(rho=0.2, alpha=0.5, step=0.05),
    "rsam": RSAM(rho=0.1, gamma=0.02),
}


def steps(device: str, model: Any, optimizer: Optimizer, method: AbstractMethod, accelerator: Any) -> None:
    """Train a little in float32."""
    sharp = SharpStep(model, optimizer, method, accelerator=accelerator, steps=STEPS)
    for step in range(STEPS):
        batch = batch_for(Perceptron(), seed=step)
        sharp(lambda given: model(**given)["loss"], on(device, {**batch, "x": batch["x"].float()}))
        if accelerator is None:  # DeepSpeed's engine stepped already
            optimizer.step()
            optimizer.zero_grad()


def fresh(device: str) -> tuple[nn.Module, SGD]:
    """The small model in float32, and its optimizer."""
    model = generic(Perceptron()).float().to(device)
    return model, SGD(model.parameters(), lr=0.1, momentum=0.9)


def in_engine(kind: str, device: str, method: AbstractMethod) -> Tensor:
    """The weights that the engine ends with."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DeepSpeedPlugin

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config(kind, 1, None)))
    wrapped, optimizer = accelerator.prepare(*fresh(device))
    assert wrapped.zero_optimization_stage() == int(kind[4])
    assert wrapped.device.type == device
    steps(device, wrapped, optimizer, method, accelerator)
    return full_weights(wrapped).cpu()


def main() -> None:
    """Compare every method."""
    kind, device = sys.argv[1:]
    for name, method in METHODS.items():
        model, optimizer = fresh(device)
        steps(device, model, optimizer, method, None)
        gap = (in_engine(kind, device, method) - flat(model).double().cpu()).abs().max()
        print(f"{name} {float(gap)}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
