"""What ``accelerate launch`` starts with a file of configs/accelerate in the test of train.py on sharded weights.

    accelerate launch --config_file configs/accelerate/KIND.yaml -m tests.workers.translating_launched KIND WORDS...

Runs ``examples/translation/train.py WORDS`` with a look at what is in force before each step. accelerate shards on devices
only, so it is told here that the CPU is one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from tests.scripts import example


class Look(TrainerCallback):
    """Fails unless the weights are sharded as the file says, layer by layer."""

    def __init__(self, kind: str, trainer: Any) -> None:
        self.kind, self.trainer, self.looks = kind, trainer, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.looks += 1
        if self.kind == "alone":
            return
        assert args.world_size == dist.get_world_size() == 2
        if self.kind == "fsdp2":
            layers = [*self.trainer.model.model.encoder.layers, *self.trainer.model.model.decoder.layers]
            assert all(isinstance(module, FSDPModule) for module in [self.trainer.model, *layers])
            assert all(isinstance(p, DTensor) for layer in layers for p in layer.parameters())
        else:
            engine = self.trainer.model_wrapped
            assert engine.zero_optimization_stage() == int(self.kind[-1])
            assert engine.gradient_clipping() == args.max_grad_norm == 0


def main() -> None:
    """Runs the script."""
    kind, words = sys.argv[1], sys.argv[2:]
    if kind != "alone":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    script, looks = example("translation/train"), []
    usual = script.made

    def watched(*parts: Any) -> Any:
        trainer = usual(*parts)
        looks.append(Look(kind, trainer))
        trainer.add_callback(looks[0])
        return trainer

    script.made = watched
    script.main(words)
    assert looks[0].looks == int(words[words.index("--max_steps") + 1])
    print("done", flush=True)
    os._exit(0)  # gloo can abort at interpreter exit after ZeRO-3


if __name__ == "__main__":
    main()
