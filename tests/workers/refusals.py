"""What is refused under DeepSpeed and FSDP: every case in one process, what was raised in one file.

    python -m tests.workers.refusals FILE FOLDER

Each case is built as `SharpStep` and as the Trainer, where that knows of it before it trains. The file says for each what
was raised, or None.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard
from torch.optim import SGD

from hf_sharp import GAM, SAM, AbstractMethod, SharpnessAwareTrainer, SharpStep
from hf_sharp.backends import check
from tests.models import arguments
from tests.problems import Perceptron, batch_for

EXACT = GAM(rho=0.1, hvp="exact")
Build = Callable[[], object]


def network() -> Perceptron:
    return Perceptron()


def sharded(**placed: Any) -> nn.Module:
    """The model in the hands of FSDP2, on a mesh of one."""
    return fully_shard(network(), **placed)


def first_version() -> nn.Module:
    """The model in the hands of FSDP1."""
    return FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))


def fresh() -> None:
    """Let accelerate forget the case before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    os.environ.pop("ACCELERATE_USE_FSDP", None)


def config(stage: int, zero: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A DeepSpeed configuration of two samples per micro-batch."""
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, **zero},
        **more,
    }


def step(model: nn.Module, method: AbstractMethod, over: str, accelerator: Accelerator | None = None) -> object:
    """A SharpStep."""
    optimizer = SGD(model.parameters(), lr=0.1)
    return SharpStep(model, optimizer, method, accelerator=accelerator, steps=1, perturb_over=over)


class FirstVersionTrainer(SharpnessAwareTrainer):
    """A Trainer that believes in FSDP1, which needs another device than this machine has."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        believe(self.accelerator, DistributedType.FSDP, 1)


def trainer(
    folder: Path,
    model: nn.Module,
    method: AbstractMethod,
    over: str,
    cls: type[SharpnessAwareTrainer] = SharpnessAwareTrainer,
    **changed: Any,
) -> object:
    """A Trainer."""
    data: Any = [batch_for(Perceptron(), 1)]
    return cls(model, arguments(folder, **changed), train_dataset=data, method=method, perturb_over=over)


def under_deepspeed(written: dict[str, Any]) -> Accelerator:
    return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=written))


def believe(accelerator: Accelerator, kind: DistributedType, fsdp: int | None = None) -> Accelerator:
    """An accelerator that believes in a kind of training which needs other devices than this machine has."""
    accelerator.state.distributed_type = kind
    if fsdp is not None:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=fsdp)
    return accelerator


def told(kind: DistributedType, fsdp: int | None = None) -> Accelerator:
    return believe(Accelerator(cpu=True), kind, fsdp)


ZERO: dict[str, tuple[dict[str, Any], AbstractMethod, str]] = {
    "device, zero3": (config(3, {}), SAM(), "device"),
    "exact, zero3": (config(3, {}), EXACT, "batch"),
    "nvme optimizer": (
        config(3, {"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}),
        SAM(),
        "batch",
    ),
    "nvme weights": (config(3, {"offload_param": {"device": "nvme", "nvme_path": "/nvme"}}), SAM(), "batch"),
    "hpz": (config(3, {"zero_hpz_partition_size": 2}), SAM(), "batch"),
    "qwz": (config(3, {"zero_quantized_weights": True}), SAM(), "batch"),
    "qgz": (config(3, {"zero_quantized_gradients": True}), SAM(), "batch"),
    "zenflow": (config(2, {"zenflow": {"topk_ratio": 0.1}}), SAM(), "batch"),
    "ratio": (config(3, {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}), SAM(), "batch"),
    "muon": (config(2, {}, optimizer={"type": "Muon", "params": {"lr": 0.1}}), SAM(), "batch"),
    "deepcompile": (config(3, {}, compile={"deepcompile": True}), SAM(), "batch"),
}
"""DeepSpeed's configuration, the method, and perturb_over."""
ACCEPTED: dict[str, tuple[dict[str, Any], AbstractMethod, str]] = {
    "zero0": (config(0, {}), SAM(), "device"),
    "zero2": (config(2, {"offload_optimizer": {"device": "cpu"}}), SAM(), "device"),
    "zero3": (config(3, {"offload_param": {"device": "cpu"}, "zero_hpz_partition_size": 1}), SAM(), "micro_batch"),
}
SHARDED: dict[str, tuple[Callable[[], nn.Module], AbstractMethod, str]] = {
    "device, fsdp2": (sharded, SAM(), "device"),
    "exact, fsdp2": (sharded, EXACT, "batch"),
    "fsdp1": (first_version, SAM(), "batch"),
    "fsdp2": (sharded, SAM(), "micro_batch"),
}
"""The model, the method, and perturb_over."""


def in_version(version: str, build: Build) -> object:
    """A case under another version of DeepSpeed."""
    import deepspeed

    was, deepspeed.__version__ = deepspeed.__version__, version
    try:
        return build()
    finally:
        deepspeed.__version__ = was


def cases(folder: Path) -> dict[str, dict[str, Build]]:
    """Every case, and the ways to build it."""
    out: dict[str, dict[str, Build]] = {}
    for name, (written, method, over) in {**ZERO, **ACCEPTED}.items():
        local, exact = over == "device", method is EXACT
        ways: dict[str, Build] = {
            "SharpStep": lambda w=written, m=method, o=over: step(network(), m, o, under_deepspeed(w)),
            "Trainer": partial(trainer, folder, network(), method, over, use_cpu=False, deepspeed=written),
            "check": lambda w=written, x=local, y=exact: check(network(), under_deepspeed(w), None, local=x, exact=y),
        }
        out[name] = {way: ways[way] for way in (("Trainer", "check") if name in ACCEPTED else ("Trainer", "SharpStep"))}
    for name, (make, method, over) in SHARDED.items():
        out[name] = {
            "SharpStep": lambda f=make, m=method, o=over: step(f(), m, o),
            "Trainer": lambda f=make, m=method, o=over: trainer(folder, f(), m, o),
        }
    for version in ("0.18.9", "0.20.0", "0.19.0+cpu"):
        usual = out["zero0" if "+" in version else "hpz"]
        out[f"deepspeed {version}"] = {way: partial(in_version, version, build) for way, build in usual.items()}
    kinds = DistributedType
    out["fsdp1, not yet wrapped"] = {
        "SharpStep": lambda: step(network(), SAM(), "batch", told(kinds.FSDP, 1)),
        "Trainer": lambda: trainer(folder, network(), SAM(), "batch", FirstVersionTrainer),
    }
    out["device, fsdp2, not yet wrapped"] = {"SharpStep": lambda: step(network(), SAM(), "device", told(kinds.FSDP, 2))}
    out["exact, fsdp2, not yet wrapped"] = {"SharpStep": lambda: step(network(), EXACT, "batch", told(kinds.FSDP, 2))}
    out["megatron"] = {"SharpStep": lambda: step(network(), SAM(), "batch", told(kinds.MEGATRON_LM))}
    by_columns = partial(sharded, shard_placement_fn=lambda p: Shard(p.ndim - 1))
    out["columns"] = {"SharpStep": lambda: step(by_columns(), SAM(), "batch")}
    return out


def raised(build: Build) -> str | None:
    """What a case raises, with its kind."""
    fresh()
    try:
        build()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    """Build every case and write what was raised."""
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found = {name: {way: raised(build) for way, build in ways.items()} for name, ways in cases(folder).items()}
    file.write_text(json.dumps(found, indent=1))
    os._exit(0)


if __name__ == "__main__":
    main()
