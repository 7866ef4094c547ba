"""What each rank of the backends' tests runs through the Trainer; the results of each rank in one file.

    torchrun --nproc-per-node 2 -m tests.workers.trainers KIND FOLDER

KIND is ddp, fsdp2 (sharded while it is loaded) or zero0 to zero3. Without torchrun, as ``alone`` or ``alone32``, it trains
the same cases in one process with batches of twice the size.
"""

from __future__ import annotations

import itertools
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback
from transformers.distributed import DistributedConfig

from hf_sharp import AbstractMethod, SharpnessAwareTrainer
from tests.models import arguments, bits, neutral_methods, reseed
from tests.problems import Perceptron, batch_for, generic
from tests.workers.engines import config, full_weights
from tests.workers.loops import in_float32, localities, methods, settings

RANK = int(os.environ.get("RANK", "0"))
RANKS = 2
STEPS = 10
EACH = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
"""To be copied: the Trainer writes into it."""


class SmallConfig(PretrainedConfig):
    """The configuration of `Loadable`."""

    model_type = "hf_sharp_test_perceptron"

    def __init__(self, dropout: float = 0.0, **kwargs: Any) -> None:
        self.dropout = dropout
        super().__init__(**kwargs)


class Loadable(PreTrainedModel):
    """The two-layer network as a model that `from_pretrained` loads."""

    config_class = SmallConfig
    base_model_prefix = ""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        self.core, self.dropout = Perceptron(), nn.Dropout(config.dropout)
        self.post_init()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return self.core(self.dropout(x), labels)


def model_for(kind: str, folder: Path, dropout: float, dtype: torch.dtype) -> nn.Module:
    """The model, loaded as this kind of training wants it."""
    if kind != "fsdp2":
        model = Loadable(SmallConfig(dropout=dropout)).to(dtype)
        generic(model.core).to(dtype)
        return model
    path = folder / f"model-{dropout}"
    if RANK == 0 and not path.exists():
        whole = Loadable(SmallConfig(dropout=dropout))
        generic(whole.core)
        whole.double().save_pretrained(path)
    dist.barrier()
    sharded = DistributedConfig(fsdp_size=RANKS, fsdp_plan={"core.inner": "free_full_weight"})
    return Loadable.from_pretrained(path, dtype=dtype, distributed_config=sharded)


def samples(kind: str, count: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """The training data of this rank. Under DeepSpeed on the CPU each rank believes to be the only one."""
    model = Perceptron()
    data = [{key: x[0] for key, x in batch_for(model, 1, seed=i).items()} for i in range(count)]
    data = [{k: x.to(dtype) if x.is_floating_point() else x for k, x in row.items()} for row in data]
    if not kind.startswith("zero"):
        return data
    return [row for i, row in enumerate(data) if (i // 4) % RANKS == RANK]


def trainer_for(
    kind: str,
    folder: Path,
    method: AbstractMethod | None,
    accumulation: int,
    clip: float | None,
    dropout: float = 0.0,
    perturb_over: str = "batch",
    **changed: Any,
) -> Trainer:
    """A Trainer of the kind, plain where there is no method."""
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    more: dict[str, Any] = {"use_cpu": True}
    if kind.startswith("zero"):
        more = {"use_cpu": False, "deepspeed": config(kind, accumulation, clip)}
    args = arguments(
        folder,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        max_grad_norm=clip or 0.0,
        train_sampling_strategy="sequential",
        **{
            "output_dir": str(folder / f"out-{kind}-{RANK}"),
            "per_device_train_batch_size": 8 if kind.startswith("alone") else 4,
            "optim": "sgd",
            "learning_rate": 0.1,
            **more,
            **changed,
        },
    )
    dtype = torch.float32 if in_float32(kind) or args.bf16 else torch.float64
    data = samples(kind, 8 * accumulation * STEPS, dtype)
    model = model_for(kind, folder, dropout, dtype)
    if method is None:
        return Trainer(model, args, train_dataset=data)
    return SharpnessAwareTrainer(model, args, train_dataset=data, method=method, perturb_over=perturb_over)


def look(kind: str, trainer: Trainer) -> None:
    """Fail unless the kind of training is in force."""
    model: Any = trainer.model_wrapped
    assert kind.startswith("alone") or dist.get_world_size() == RANKS
    if kind == "ddp":
        assert isinstance(model, DistributedDataParallel)
    elif kind == "fsdp2":
        assert all(isinstance(p, DTensor) for p in model.parameters())
    elif kind.startswith("zero"):
        assert model.zero_optimization_stage() == int(kind[4])
    else:
        assert isinstance(model, Loadable)


class Look(TrainerCallback):
    """Looks before each step of a Trainer."""

    def __init__(self, kind: str, trainer: Trainer) -> None:
        self.kind, self.trainer, self.looks = kind, trainer, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        look(self.kind, self.trainer)
        self.looks += 1


def train(kind: str, trainer: Trainer, steps: int = STEPS, **resumed: Any) -> None:
    """Let a Trainer take so many steps, each after a look at what is in force."""
    watch = Look(kind, trainer)
    trainer.add_callback(watch)
    trainer.train(**resumed)
    assert watch.looks == steps


def trained(kind: str, trainer: Trainer) -> dict[str, Any]:
    """The whole weights and the logs after training."""
    train(kind, trainer)
    if kind.startswith("zero"):
        weights = full_weights(trainer.model_wrapped)
    else:
        assert trainer.model is not None
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in trainer.model.parameters()]
        weights = torch.cat([p.detach().double().reshape(-1) for p in whole])
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"weights": weights, "logs": [{k: v for k, v in entry.items() if isinstance(v, float)} for entry in logs]}


def grid(kind: str, folder: Path) -> dict[str, Any]:
    """Every method, with and without accumulation and clipping."""
    return {
        f"{name} {accumulation} {clip}": trained(kind, trainer_for(kind, folder, method, accumulation, clip))
        for (name, method), (accumulation, clip) in itertools.product(methods(kind).items(), settings(kind))
    }


def others(kind: str, folder: Path) -> dict[str, Any]:
    """GSAM with the other values of perturb_over, and with gradients that are reduced after each micro-batch."""
    method, out = methods("ddp")["gsam"], {}
    for over in localities(kind):
        # one process sees the micro-batches of both ranks in turns, where each has its own perturbation
        apart = over == "device" and kind.startswith("alone")
        accumulation, changed = (4, {"per_device_train_batch_size": 4}) if apart else (2, {})
        out[over] = trained(kind, trainer_for(kind, folder, method, accumulation, None, perturb_over=over, **changed))
    if not kind.startswith("zero"):
        trainer = trainer_for(kind, folder, method, 4, 0.5, **deepcopy(EACH))
        out["each"] = trained(kind, trainer)
        assert trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"]
    return out


def neutral(kind: str, folder: Path) -> dict[str, bool]:
    """For each neutral setting whether it leaves the plain Trainer's bits on this rank, with dropout; for GSAM also under
    autocast to bfloat16, and with gradients that are reduced after each micro-batch."""
    changes: dict[str, dict[str, Any]] = {"": {}}
    if not kind.startswith("zero"):
        changes |= {"bf16 ": {"bf16": True}, "sync_each_batch ": EACH}
    out = {}
    for change, changed in changes.items():
        neutrals = {"plain": None, **neutral_methods()} if not change else {"plain": None, "gsam": neutral_methods()["gsam"]}
        ends: dict[str, tuple[bytes, list[float]]] = {}
        for name, method in neutrals.items():
            reseed(0)
            end = trained(kind, trainer_for(kind, folder, method, 2, 0.5, dropout=0.2, **deepcopy(changed)))
            ends[name] = bits(end["weights"]), [entry["loss"] for entry in end["logs"]]
        plain = ends.pop("plain")
        out.update({change + name: end == plain for name, end in ends.items()})
    return out


def main() -> None:
    """Run both parts and write what this rank found."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "fsdp2":
        dist.init_process_group("gloo")
    found: dict[str, Any] = {"grid": grid(kind, folder)}
    if kind != "alone32":
        found["others"] = others(kind, folder)
    if not kind.startswith("alone"):
        found["neutral"] = neutral(kind, folder)
    torch.save(found, folder / f"{kind}-{RANK}.pt")


if __name__ == "__main__":
    main()
