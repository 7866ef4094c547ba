"""What each process of the benchmark of backends runs: a model under one kind of training, a step whenever it is asked."""

from __future__ import annotations

import logging
import os
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from allocations import MEASURED, live_bytes
from collectives import Aside, Call, Collectives
from settings import method
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile, record_function

from hf_sharp import SharpStep

KINDS = (
    *("ddp", "ddp-device", "fsdp2", "hsdp"),
    *("zero0", "zero1", "zero2", "zero3", "zero1-offload", "zero2-offload", "zero3-offload"),
)
BATCH = 4


class Perceptron(nn.Module):
    """Layers of equal width: many weights, few activations."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of inputs, (batch, width), and labels, (batch,)."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return nn.functional.cross_entropy(self.head(x), labels)


@dataclass(frozen=True)
class Task:
    """What a group of processes trains.

    Attributes:
        kind: one of `KINDS`.
        method: the name of a method; None for the plain step.
        width, depth: of the model.
    """

    kind: str
    method: str | None
    width: int
    depth: int


@dataclass(frozen=True)
class Facts:
    """What one rank found before the timed steps; sizes in bytes.

    Attributes:
        weights: the whole model.
        peak: the most in live tensors at any moment of three steps.
        idle: after them.
        calls: the collectives of one step.
    """

    weights: int
    peak: int
    idle: int
    calls: list[Call]


class Loop:
    """A training loop that goes on one optimizer step per call, always on the same batch of this rank."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(0)
        model = Perceptron(task.width, task.depth)
        self.weights = sum(p.nbytes for p in model.parameters())
        self._optimizer: Optimizer
        self._accelerator: Accelerator | None = None
        self._model: Any = model
        if task.kind.startswith("zero"):
            self._prepare(task)
        else:
            self._model = ddp(model) if task.kind.startswith("ddp") else fsdp2(model, task.kind)
            self._optimizer = AdamW(self._model.parameters(), lr=1e-4)
        self._sharp = None if task.method is None else self._sharp_step(task)
        torch.manual_seed(dist.get_rank())
        self._batch = torch.randn(BATCH, task.width), torch.randint(10, (BATCH,))

    def _prepare(self, task: Task) -> None:
        stage = int(task.kind[4])
        config = deepspeed_config(stage, task.width)
        if task.kind.endswith("-offload"):
            config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        plugin = DeepSpeedPlugin(hf_ds_config=config)
        self._accelerator = Accelerator(deepspeed_plugin=plugin)
        self._model, self._optimizer = self._accelerator.prepare(self._model, AdamW(self._model.parameters(), lr=1e-4))
        if self._model.zero_optimization_stage() != stage:
            raise RuntimeError(f"DeepSpeed must run ZeRO-{stage}, got stage {self._model.zero_optimization_stage()}.")

    def _sharp_step(self, task: Task) -> SharpStep:
        assert task.method is not None
        return SharpStep(
            self._model,
            self._optimizer,
            method(task.method),
            accelerator=self._accelerator,
            perturb_over="device" if task.kind == "ddp-device" else "batch",
        )

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._model(*batch)

    def __call__(self) -> None:
        if self._sharp is not None:
            self._sharp(self._loss, self._batch)
        elif self._accelerator is not None:
            self._accelerator.backward(self._loss(self._batch))
        else:
            self._loss(self._batch).backward()
        if self._accelerator is None:  # DeepSpeed's engine stepped already
            self._optimizer.step()
            self._optimizer.zero_grad()


def ddp(model: nn.Module) -> nn.Module:
    """The model under DDP."""
    return DistributedDataParallel(model)


def fsdp2(model: Perceptron, kind: str) -> nn.Module:
    """The model under FSDP2, each layer gathered by itself; as hsdp in two replicas."""
    ranks = dist.get_world_size()
    if kind == "hsdp":
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if not all(isinstance(p, DTensor) for p in model.parameters()):
        raise RuntimeError("FSDP2 must shard every parameter, and left some whole.")
    return model


def deepspeed_config(stage: int, width: int) -> dict[str, Any]:
    """A configuration whose buckets are as small beside this model as the usual ones beside a large model: two layers."""
    bucket = 2 * width * (width + 1)
    return {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_clipping": 0.0,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": bucket,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 2 * width,
        },
    }


def found(task: Task) -> tuple[Loop, Facts]:
    """A loop after its first steps, and what they used."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, Aside():
        loop = Loop(task)
        loop()
        loop()
        with record_function(MEASURED):
            for _ in range(3):
                loop()
    alive = list(live_bytes(profiler.profiler.kineto_results.events()))
    with Collectives() as seen:
        loop()
    return loop, Facts(loop.weights, max(alive), alive[-1], seen.calls)


def serve(connection: Connection, port: int, rank: int, ranks: int, task: Task) -> None:
    """One process: sends its `Facts`, then takes one step for every True that it receives, and sends its seconds.

    Args:
        connection: to the process that measures; False ends the loop.
        port: of the store at which the ranks meet.
        rank: which process this is.
        ranks: how many there are.
        task: what to train.
    """
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    os.environ.update(LOCAL_WORLD_SIZE=str(ranks), DS_ACCELERATOR="cpu")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what DeepSpeed says about itself is not a result
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of what DeepSpeed calls
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.TCPStore("localhost", port), rank=rank, world_size=ranks)
    loop, facts = found(task)
    connection.send(facts)
    while connection.recv():
        dist.barrier()
        start = time.perf_counter()
        loop()
        connection.send(time.perf_counter() - start)
    os._exit(0)  # gloo can abort at interpreter exit after ZeRO-3
