"""What each rank of the tests of save and resume runs; what it found in one file per rank.

    torchrun --nproc-per-node 2 -m tests.workers.resuming KIND FOLDER

KIND is ddp or zero0 to zero3 (through the Trainer), or fsdp2 or hsdp, on four ranks (in a bare loop: the Trainer writes no
optimizer state for models that were sharded while loading).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_sharp import SAM, SharpnessAwareTrainer, SharpStep
from tests.models import collated, differences, reseed, streams
from tests.problems import Perceptron, batch_for, generic
from tests.workers.engines import full_weights
from tests.workers.train_and_die import Averaging
from tests.workers.trainers import RANK, Loadable, SmallConfig, samples, train, trainer_for

STEPS, CUT = 10, 4


def optimizer_state(kind: str, trainer: SharpnessAwareTrainer) -> list[Tensor]:
    """The tensors of this rank's optimizer state."""
    inner: Any = trainer.model_wrapped.optimizer if kind.startswith("zero") else trainer.optimizer
    if kind in ("zero1", "zero2", "zero3"):
        inner = inner.optimizer
    return [x.detach().clone() for entry in inner.state.values() for x in entry.values() if isinstance(x, Tensor)]


def end(kind: str, trainer: SharpnessAwareTrainer) -> dict[str, Any]:
    """All that a later step depends on."""
    assert trainer._sharp is not None
    weights = (
        full_weights(trainer.model_wrapped)
        if kind.startswith("zero")
        else torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])
    )
    memory = [[x.clone() for x in v.tensors() if x is not None] for v in trainer._sharp.memory.values()]
    return {"weights": weights, "optimizer": optimizer_state(kind, trainer), "streams": streams(), "memory": memory}


def through_the_trainer(kind: str, folder: Path) -> dict[str, Any]:
    """Uninterrupted, and resumed from the checkpoint in the middle; and what a consolidated checkpoint holds."""
    ends = []
    for resume in (None, str(folder / f"checkpoint-{CUT}")):
        reseed(0 if resume is None else 99)
        every = {"save_strategy": "steps", "save_steps": CUT, "optim": "adamw_torch", "learning_rate": 0.01}
        trainer: Any = trainer_for(kind, folder, Averaging(), 2, 0.5, dropout=0.2, output_dir=str(folder), **every)
        train(kind, trainer, STEPS if resume is None else STEPS - CUT, resume_from_checkpoint=resume)
        assert trainer.state.global_step == STEPS
        ends.append(end(kind, trainer))
    trainer.save_model(str(folder / "final"))
    if dist.is_initialized():
        dist.barrier()
    unset_hf_deepspeed_config()  # load as a plain script does
    return result(kind, folder, ends)


def result(kind: str, folder: Path, ends: list[dict[str, Any]]) -> dict[str, Any]:
    """What differs between two ends, and between the second one and a plain model from the consolidated checkpoint; and how
    that model goes on elsewhere."""
    loaded = Loadable.from_pretrained(folder / "final", dtype=torch.float64)
    return {
        "differences": differences(*ends),
        "consolidated": float((whole(loaded) - ends[-1]["weights"].double()).abs().max()),
        "memory": len(ends[0]["memory"]),
        "optimizer": len(ends[0]["optimizer"]),
        "went_on": go_on(kind, loaded),
    }


def whole(model: nn.Module) -> Tensor:
    """The whole weights as one vector in float64."""
    tensors = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([x.detach().double().reshape(-1) for x in tensors])


def go_on(kind: str, loaded: Any) -> Tensor:
    """The weights after two steps more, of SAM, of an optimizer that starts anew, and without dropout: under DDP after
    shards, and on FSDP2's shards after all else."""
    loaded.dropout.p = 0.0
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model: Any = DistributedDataParallel(loaded) if kind in ("fsdp2", "hsdp") else fully_shard(loaded, mesh=mesh)
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, SAM())
    rows, each = samples("fsdp2", 16, torch.float64), 8 // dist.get_world_size()
    for first in range(each * RANK, len(rows), 8):
        sharp(lambda b: model(**b)["loss"], collated(rows[first : first + each]))
        optimizer.step()
        optimizer.zero_grad()
    return whole(loaded)


def in_a_bare_loop(kind: str, folder: Path) -> dict[str, Any]:
    """The same for fully_shard, with PyTorch's distributed checkpoints."""
    dist.init_process_group("gloo")
    names = ("replicate", "shard") if kind == "hsdp" else ("shard",)
    mesh = init_device_mesh("cpu", (2,) * len(names), mesh_dim_names=names)
    assert mesh.size() == dist.get_world_size()

    def start(seed: int) -> tuple[Any, SGD, SharpStep]:
        model: Any = Loadable(SmallConfig(dropout=0.2))
        generic(model.core)
        fully_shard(model.core.inner, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(module, FSDPModule) for module in (model, model.core.inner))
        assert all(isinstance(p, DTensor) and p.device_mesh == mesh for p in model.parameters())
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        reseed(seed + RANK)
        return model, optimizer, SharpStep(model, optimizer, Averaging(), steps=STEPS)

    def go(model: Any, optimizer: SGD, sharp: SharpStep, steps: range, save: bool) -> dict[str, Any]:
        for step in steps:
            if save and step == CUT:
                weights, state = get_state_dict(model, optimizer)
                dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "dcp")
                torch.save({"sharp": sharp.state_dict(), "stream": torch.get_rng_state()}, folder / f"rank-{RANK}")
            sharp(lambda b: model(**b)["loss"], batch_for(Perceptron(), seed=10 * step + RANK))
            optimizer.step()
            optimizer.zero_grad()
        return {
            "weights": whole(model),
            "optimizer": [optimizer.state[p]["momentum_buffer"].to_local().clone() for p in model.parameters()],
            "stream": torch.get_rng_state(),  # dropout draws from no other
            "memory": [[x.clone() for x in v.tensors()] for v in sharp.memory.values()],
        }

    uninterrupted = go(*start(0), range(STEPS), save=True)
    model, optimizer, sharp = start(99)
    weights, state = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": state}
    dcp.load(saved, checkpoint_id=folder / "dcp")
    set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    own = torch.load(folder / f"rank-{RANK}", weights_only=True)
    sharp.load_state_dict(own["sharp"])
    torch.set_rng_state(own["stream"])
    resumed = go(model, optimizer, sharp, range(CUT, STEPS), save=False)
    consolidated = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if RANK == 0:
        SmallConfig().save_pretrained(folder / "final")
        save_file(consolidated, folder / "final" / "model.safetensors", metadata={"format": "pt"})
    dist.barrier()
    return result(kind, folder, [uninterrupted, resumed])


def main() -> None:
    """Run the kind and write what this rank found."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    found = in_a_bare_loop(kind, folder) if kind in ("fsdp2", "hsdp") else through_the_trainer(kind, folder)
    torch.save(found, folder / f"found-{RANK}.pt")


if __name__ == "__main__":
    main()
