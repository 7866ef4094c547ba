"""Training in one process on one device, whatever the device is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_sharp import AbstractMethod, SharpnessAwareTrainer, SharpStep
from tests.models import Mixed, arguments, rows, seeded
from tests.problems import Perceptron, batch_for, generic

STEPS = 6


@contextmanager
def world(device: str, folder: Path) -> Iterator[None]:
    """A process group of this process alone, over NCCL or gloo."""
    over = "nccl" if device == "cuda" else "gloo"
    where = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else None
    dist.init_process_group(over, init_method=f"file://{folder / 'meeting'}", rank=0, world_size=1, device_id=where)
    try:
        assert dist.get_backend() == over
        yield
    finally:
        dist.destroy_process_group()


def ddp(model: nn.Module, device: str) -> nn.Module:
    """The model under DDP."""
    return DistributedDataParallel(model, device_ids=[torch.cuda.current_device()] if device == "cuda" else None)


def fsdp2(model: Any, device: str) -> nn.Module:
    """The model under FSDP2, after looking whether it is."""
    mesh = init_device_mesh(device, (1,))
    fully_shard(model.inner, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(p, DTensor) and p.device.type == device for p in model.parameters())
    return model


WRAPPERS: dict[str, Callable[[Any, str], nn.Module]] = {"alone": lambda model, device: model, "ddp": ddp, "fsdp2": fsdp2}


def on(device: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch on the device."""
    return {name: x.to(device) for name, x in batch.items()}


def trained(device: str, kind: str, method: AbstractMethod) -> Tensor:
    """The whole weights in float64 on the CPU, after some steps of two micro-batches with clipping."""
    model = WRAPPERS[kind](generic(Perceptron()).to(device), device)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp = SharpStep(model, optimizer, method, steps=STEPS)
    for step in range(STEPS):
        for micro in range(2):
            batch = on(device, batch_for(Perceptron(), seed=10 * step + micro))
            sharp(lambda given: model(**given)["loss"] / 2, batch, last=micro == 1, micro_batches=2)
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([p.detach().double().cpu().reshape(-1) for p in whole])


class Poisoned(Mixed):
    """`Mixed` with an infinite loss in one forward of the training, counted from 0; None: in none."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.bad: int | None = None
        self.forwards = 0

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = super().forward(x, labels)
        if self.training and "loss" in out:
            if self.forwards == self.bad:
                out["loss"] = out["loss"] * float("inf")
            self.forwards += 1
        return out


class Steps(TrainerCallback):
    """Starts from a loss scale that does not overflow by itself, and takes down the weights and the scale before training
    and after each optimizer step.
    """

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.weights: list[Tensor] = []
        self.scales: list[float] = []

    def _look(self, model: nn.Module) -> None:
        assert self.trainer is not None
        scaler = self.trainer.accelerator.scaler
        self.weights.append(torch.cat([p.detach().float().cpu().reshape(-1) for p in model.parameters()]))
        self.scales.append(1.0 if scaler is None else scaler.get_scale())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.trainer is not None
        scaler = self.trainer.accelerator.scaler
        if scaler is not None:
            scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**10})
        self._look(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._look(kwargs["model"])


def fitted(
    folder: Path,
    device: str,
    precision: str,
    method: AbstractMethod | None,
    *,
    bad: int | None = None,
    dropout: float = 0.2,
) -> tuple[Trainer, Steps]:
    """A Trainer that has trained in ``"fp16"``, ``"bf16"`` or ``"no"``, plain where there is no method, and its steps."""
    torch.manual_seed(0)
    model = seeded(lambda: Poisoned(PreTrainedConfig()))
    model.bad, model.dropout.p = bad, dropout
    args = arguments(
        folder,
        use_cpu=device == "cpu",
        max_steps=STEPS,
        per_device_train_batch_size=4,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
    )
    steps, data = Steps(), rows("mixed", 4 * STEPS)
    trainer: Trainer
    if method is None:
        trainer = Trainer(model, args, train_dataset=data, callbacks=[steps])
    else:
        trainer = SharpnessAwareTrainer(model, args, train_dataset=data, callbacks=[steps], method=method)
    steps.trainer = trainer
    trainer.train()
    assert trainer.accelerator.mixed_precision == precision
    assert next(model.parameters()).device.type == device
    return trainer, steps


def deep(width: int = 1024, depth: int = 24) -> nn.Module:
    """A deep MLP: a hundred megabytes of weights, few activations."""
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))


def peak(method: AbstractMethod | None) -> tuple[int, int]:
    """The weights' bytes, and the most that two steps of SGD have allocated on the GPU; None is the plain step."""
    x = torch.randn(4, 1024, device="cuda")
    deep(depth=2).cuda()(x).sum().backward()  # cuBLAS allocates its workspaces now, also those of the backward's thread
    gc.collect()
    before = torch.cuda.memory_allocated()
    model = deep().cuda()
    optimizer = SGD(model.parameters(), lr=1e-3, foreach=False)
    sharp = None if method is None else SharpStep(model, optimizer, method)
    for step in range(4):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        if sharp is None:
            model(x).square().mean().backward()
        else:
            sharp(lambda given: model(given).square().mean(), x)
        optimizer.step()
        optimizer.zero_grad()
    return sum(p.nbytes for p in model.parameters()), torch.cuda.max_memory_allocated() - before
