"""A script under ``accelerate launch`` on CPUs, where accelerate by itself takes each process for the only one.

    accelerate launch --config_file configs/accelerate/zero3.yaml -m hf_sharp.launch -m tests.workers.on_cpus FILE SCRIPT ...

Accelerate is told of the others, and that FSDP shards; transformers, hf_sharp and the script are as they are. What is in
force while the script's Trainer trains is written into FILE, with the process's rank at its end.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, trainer


def introduced() -> None:
    """Let accelerate's states know how many processes there are, and of FSDP."""
    begin, configure = PartialState.__init__, AcceleratorState.__init__

    @functools.wraps(begin)
    def partial(self: PartialState, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if dist.is_initialized():
            assert self.device.type == "cpu"
            self.num_processes, self.process_index = dist.get_world_size(), dist.get_rank()
            self.local_process_index = int(os.environ["LOCAL_RANK"])

    @functools.wraps(configure)
    def whole(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        configure(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    PartialState.__init__ = partial  # type: ignore[method-assign]
    AcceleratorState.__init__ = whole  # type: ignore[method-assign]


class InForce(TrainerCallback):
    """Writes what a Trainer trains with."""

    file = ""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = {
            "processes": args.world_size,
            "sharded": isinstance(kwargs["model"], FSDPModule),
            "optimizer": type(kwargs["optimizer"].optimizer).__name__,
        }
        Path(f"{self.file}-{os.environ['RANK']}.json").write_text(json.dumps(found))


def main() -> None:
    """Run the script."""
    introduced()
    file, script = sys.argv[1:3]
    trainer.DEFAULT_CALLBACKS.append(type("Into", (InForce,), {"file": file}))
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
