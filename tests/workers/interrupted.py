"""Two ranks whose Trainer meets an exception in the second pass of a step, and is evaluated and saved after it.

    torchrun --nproc-per-node 2 -m tests.workers.interrupted KIND FOLDER

KIND is zero0 to zero3.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_sharp import SAM
from tests.models import collated
from tests.workers.trainers import RANK, Loadable, look, samples, trainer_for

GOOD_STEPS = 2


class Interrupt:
    """Raises on all ranks in the second pass of the third step."""

    def __init__(self) -> None:
        self.forwards = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.forwards += module.training
        if self.forwards == 2 * GOOD_STEPS + 2:
            self.forwards += 1
            raise KeyboardInterrupt


def main() -> None:
    """Train until the interruption, evaluate and save."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    trainer: Any = trainer_for(kind, folder, SAM(rho=0.5), 1, None, eval_strategy="no")
    core: Loadable = trainer.model
    hook = core.register_forward_hook(Interrupt())
    try:
        trainer.train()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("there was no interruption")
    hook.remove()
    look(kind, trainer)
    assert trainer.state.global_step == GOOD_STEPS
    stage = trainer.model_wrapped.zero_optimization_stage()
    masters = [safe_get_full_fp32_param(p) if stage else p.detach() for p in trainer.model.parameters()]
    found: dict[str, Any] = {"masters": torch.cat([p.double().reshape(-1) for p in masters])}
    rows = samples(kind, 8, torch.float32)
    trainer.gather_function = lambda x: x  # under DeepSpeed on the CPU it believes to be the only rank
    found["evaluated"] = trainer.evaluate(rows)["eval_loss"]
    trainer.save_model(str(folder / "saved"))
    dist.barrier()
    unset_hf_deepspeed_config()  # load as a plain script does
    if RANK == 0:
        saved = Loadable.from_pretrained(folder / "saved", dtype=torch.float32)
        found["saved"] = torch.cat([p.detach().double().reshape(-1) for p in saved.parameters()])
        with torch.no_grad():
            found["loss"] = float(saved(**collated(rows))["loss"])
    torch.save(found, folder / f"found-{RANK}")


if __name__ == "__main__":
    main()
