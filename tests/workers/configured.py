"""What ``accelerate launch`` starts with each of configs/accelerate; the results of each rank in one file.

    accelerate launch --config_file configs/accelerate/NAME.yaml -m tests.workers.configured NAME FOLDER

One run in an Accelerate loop and one through the Trainer, each after a look at what is in force. Both are the same training,
of which `alone` is the twin in one process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_sharp import SAM, AbstractMethod, SharpnessAwareTrainer, SharpStep
from tests.models import arguments
from tests.problems import Perceptron, batch_for, generic
from tests.workers.engines import full_weights
from tests.workers.trainers import Loadable, SmallConfig

METHOD = SAM(rho=0.5)
STEPS, ACCUMULATION, SIZE, CLIP = 3, 2, 4, 1.0
"""Optimizer steps; micro-batches in each; samples of one rank in each of those; the largest norm of a direction."""


def network() -> Loadable:
    """The small model in float32."""
    model = Loadable(SmallConfig())
    generic(model.core)
    return model.float()


def samples(ranks: int) -> list[dict[str, Tensor]]:
    """The training data of all ranks, in order."""
    rows = [batch_for(Perceptron(), 1, seed=i) for i in range(STEPS * ACCUMULATION * SIZE * ranks)]
    return [{"x": row["x"][0].float(), "labels": row["labels"][0]} for row in rows]


def introduced(name: str) -> None:
    """Tell accelerate how many ranks there are: under DeepSpeed on the CPU it takes each for the only one."""
    if not name.startswith("zero"):
        return
    state = PartialState()
    if state.num_processes != dist.get_world_size():
        assert state.device.type == "cpu"
        state.num_processes, state.process_index = dist.get_world_size(), dist.get_rank()
        state.local_process_index = int(os.environ["LOCAL_RANK"])


def flattened(parameters: list[Tensor]) -> Tensor:
    """Whole weights as one vector in float64."""
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    return torch.cat([p.detach().double().reshape(-1).cpu() for p in whole])


def alone(ranks: int, method: AbstractMethod | None) -> Tensor:
    """The weights after the same training in one process without Accelerate; plain where there is no method."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, method or SAM(rho=0.0), steps=STEPS)
    for i, batch in enumerate(DataLoader(samples(ranks), batch_size=SIZE * ranks)):  # type: ignore[arg-type]
        last = i % ACCUMULATION == ACCUMULATION - 1
        sharp(lambda b: model(**b)["loss"] / ACCUMULATION, batch, last=last, micro_batches=ACCUMULATION)
        if last:
            clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    return flattened(list(model.parameters()))


def look(name: str, accelerator: Accelerator, model: Any) -> None:
    """Fail unless the configuration is in force."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    assert accelerator.num_processes == ranks
    if name == "cpu":
        assert isinstance(model, Loadable)
        assert accelerator.device.type == "cpu"
        assert ranks == 1
    elif name in ("ddp", "multinode"):
        assert isinstance(model, DistributedDataParallel)
        assert ranks == int(os.environ["WORLD_SIZE"])
        assert (int(os.environ["LOCAL_WORLD_SIZE"]) == ranks) == (name == "ddp")
    elif name in ("fsdp2", "hsdp"):
        assert isinstance(model, FSDPModule)
        placements = (Shard(0),) if name == "fsdp2" else (Replicate(), Shard(0))
        assert all(isinstance(p, DTensor) and p.placements == placements for p in model.parameters())
    else:
        assert model.zero_optimization_stage() == int(name[-1])
        assert model.gradient_clipping() == CLIP
        assert model.gradient_accumulation_steps() == ACCUMULATION


def ended(name: str, model: Any) -> Tensor:
    """The whole weights of a model as the loop calls it."""
    if name.startswith("zero"):
        return full_weights(model).cpu()
    return flattened(list(model.parameters()))


def loop(name: str) -> Tensor:
    """The weights after an Accelerate loop."""
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATION)
    core = network()
    data: Any = samples(accelerator.num_processes)
    model, optimizer, loader = accelerator.prepare(core, SGD(core.parameters(), lr=0.1), DataLoader(data, batch_size=SIZE))
    look(name, accelerator, model)
    sharp = SharpStep(model, optimizer, METHOD, accelerator=accelerator, steps=STEPS)
    for batch in loader:
        with accelerator.accumulate(model):
            sharp(lambda b: model(**b)["loss"], batch)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    assert sharp.step == STEPS
    return ended(name, model)


class Look(TrainerCallback):
    """Looks what is in force before each step of a Trainer."""

    def __init__(self, name: str) -> None:
        self.name, self.trainer, self.looks = name, None, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer: Any = self.trainer
        look(self.name, trainer.accelerator, trainer.model_wrapped)
        self.looks += 1


def trained(name: str, folder: Path) -> Tensor:
    """The weights after training with the Trainer."""
    watch = Look(name)
    args = arguments(
        folder / f"out-{os.environ.get('RANK', '0')}",
        use_cpu=name == "cpu",
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=STEPS,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        train_sampling_strategy="sequential",
    )
    introduced(name)  # once more: the arguments begin a new state
    data: Any = samples(args.world_size)
    trainer: Trainer = SharpnessAwareTrainer(network(), args, train_dataset=data, method=METHOD, callbacks=[watch])
    watch.trainer = trainer  # type: ignore[assignment]
    trainer.train()
    assert watch.looks == STEPS
    return ended(name, trainer.model_wrapped)


def main() -> None:
    """Run both and write what this rank found."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    introduced(name)
    found = {"loop": loop(name)}
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    found["trainer"] = trained(name, folder)
    torch.save(found, folder / f"{name}-{os.environ.get('RANK', '0')}.pt")
    print("done", flush=True)
    os._exit(0)  # gloo can abort at interpreter exit after ZeRO-3


if __name__ == "__main__":
    main()
