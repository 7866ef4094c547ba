"""What each rank of the tests of DeepSpeed's low precision runs.

    torchrun --nproc-per-node 2 -m tests.workers.precision KIND FILE

KIND is a ZeRO stage and a precision: zero0_bf16, zero2_fp16 and so on; zero1_bf16_fp32 accumulates gradients in float32;
zero2_autocast has DeepSpeed's own autocast to float16, with weights in float32.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler

from hf_sharp import GAM, SAM, SharpStep
from tests.problems import Perceptron, generic
from tests.reference import Problem, error, gam, sam
from tests.workers.engines import engine
from tests.workers.loops import RANKS, piece, union

RHO, FAR = 0.05, 0.5
"""Radii in masters, and in weights of low precision, where each rank has its own perturbation."""
LR, MOMENTUM = 0.1, 0.9
"""Those of the engines."""


class Half(nn.Module):
    """A small model that computes in its weights' precision and returns its loss in float32; poison makes it infinite."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.core = generic(Perceptron()).to(dtype)
        self.seen: list[Tensor] = []
        self.poison = 1.0

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        out = self.core(x.to(self.core.inner.bias.dtype))["logits"].float()
        return nn.functional.cross_entropy(out, labels) * self.poison


def settings(kind: str) -> tuple[torch.dtype, dict[str, Any]]:
    """The precision of a kind, and what DeepSpeed must be told."""
    if "bf16" in kind:
        more: dict[str, Any] = {"bf16": {"enabled": True}}
        dtype = torch.bfloat16
    elif "autocast" in kind:
        more = {"torch_autocast": {"enabled": True, "dtype": "float16"}}
        dtype = torch.float32
    else:
        more = {"fp16": {"enabled": True, "initial_scale_power": 8, "hysteresis": 1, "loss_scale_window": 1000}}
        dtype = torch.float16
    if kind.endswith("fp32"):
        more["data_types"] = {"grad_accum_dtype": "fp32"}
    return dtype, more


def scaler_of(kind: str, wrapped: Any) -> GradScaler:
    """The engine's own GradScaler under its autocast."""
    return wrapped.torch_autocast_z0_gradscaler if kind[4] == "0" else wrapped.optimizer.torch_autocast_gradscaler


def masters_of(sharp: SharpStep) -> list[Tensor]:
    """This rank's pieces of the weights that the optimizer keeps."""
    return [w.clone() for w in sharp._backend.weights()]


def whole(sharp: SharpStep) -> dict[str, Tensor]:
    """The whole weights that the optimizer keeps, flat, by the names in the small model."""
    out = {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in Perceptron().named_parameters()}
    for piece_, master in zip(sharp._space.pieces, masters_of(sharp), strict=True):
        out[piece_.name.partition("core.")[2]][piece_.start : piece_.stop] = master.double().reshape(-1)
    if not sharp._backend._store.holds_all:
        for x in out.values():
            dist.all_reduce(x)
    return out


def flattened(sharp: SharpStep) -> Tensor:
    """The same as one vector."""
    return torch.cat([*whole(sharp).values()])


def truths() -> tuple[Problem, list[Problem]]:
    """The loss on the batches of all ranks, and on that of each."""
    pieces = [piece(0, 0, rank) for rank in range(RANKS)]
    return Problem(Perceptron(), union(pieces)), [Problem(Perceptron(), batch) for batch in pieces]


def errors(sharp: SharpStep, w: Tensor, direction: Tensor) -> dict[str, float]:
    """How far the direction that the optimizer saw, and the norm in the logs, are from those in float64 without a scale."""
    truth, _ = truths()
    norm = float(truth.gradient(w)[1].norm())
    logged = sharp.scalars()["sharpness/grad_norm"]
    return {"direction": error(direction, sam(truth, w, RHO)), "grad_norm": abs(logged - norm) / norm}


class Sided(nn.Module):
    """Two weights, of which rank 0 keeps the first and rank 1 the second; only the forward of rank 1 uses the first."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.side, self.body = (nn.Parameter(torch.ones(4, dtype=dtype)) for _ in range(2))

    def forward(self) -> Tensor:
        return (self.body * self.side if dist.get_rank() else self.body).float().sum()


def used_on_one_rank(kind: str) -> Tensor:
    """The first weight's step at a radius of 0, as the published weights show it."""
    dtype, more = settings(kind)
    wrapped, optimizer, accelerator = engine(kind, Sided(dtype), 1, None, **more)
    SharpStep(wrapped, optimizer, SAM(rho=0.0), accelerator=accelerator)(lambda b: wrapped(), {})
    return wrapped.module.side.detach().float()


def main() -> None:
    """Look at masters and copies in each pass, after a step, and after a step that an infinite loss let skip; and at the
    true size of the gradients and the direction, before and after."""
    kind, file = sys.argv[1:]
    dist.init_process_group("gloo")
    dtype, more = settings(kind)
    if dtype == torch.float16:  # DeepSpeed wants an Intel chip for it; PyTorch computes it on any
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        CPU_Accelerator.supported_dtypes = lambda self: [torch.float32, torch.bfloat16, torch.float16]
        CPU_Accelerator.is_fp16_supported = lambda self: True
    model = Half(dtype)
    wrapped, optimizer, accelerator = engine(kind, model, 1, None, **more)
    assert wrapped.zero_optimization_stage() == int(kind[4])
    assert wrapped.bfloat16_enabled() == (dtype == torch.bfloat16)
    assert wrapped.fp16_enabled() == (dtype == torch.float16)
    assert wrapped.torch_autocast_enabled() == ("autocast" in kind)
    if "autocast" in kind:
        scaler_of(kind, wrapped)._init_scale = 2.0**8
    sharp = SharpStep(wrapped, optimizer, SAM(rho=RHO), accelerator=accelerator)
    found: dict[str, Any] = {"store": type(sharp._backend._store).__name__}

    passes: list[tuple[list[Tensor], list[Tensor]]] = []

    def copies() -> list[Tensor]:
        """The low-precision weights as the forward sees them."""
        parameters: list[Any] = list(model.core.parameters())
        return [(p.ds_tensor if kind.startswith("zero3") else p).detach().clone() for p in parameters]

    hook = model.core.outer.register_forward_pre_hook(
        lambda module, args: passes.append((masters_of(sharp), [module.weight.detach().clone()]))
    )
    batch = piece(0, 0, dist.get_rank())
    before, start = masters_of(sharp), flattened(sharp)
    sharp(lambda b: wrapped(**b), batch, observe=True)
    hook.remove()
    found["scalars"] = sharp.scalars()
    direction = (start - flattened(sharp)) / LR
    found["errors"] = errors(sharp, start, direction)
    moved = [a - b for a, b in zip(passes[1][0], passes[0][0], strict=True)]
    square = torch.stack([m.double().square().sum() for m in moved]).sum()
    if not sharp._backend._store.holds_all:
        dist.all_reduce(square)
    found["shift"] = float(square.sqrt())
    found["first_at_the_weights"] = all(torch.equal(a, b) for a, b in zip(passes[0][0], before, strict=True))
    sent = torch.float16 if kind == "zero3_autocast" else dtype  # in which ZeRO-3 gathers
    # what the forward saw of one weight, beside the masters, gathered from all ranks
    for i, (masters, seen) in enumerate(passes):
        whole = torch.zeros(seen[0].numel())
        for piece_, master in zip(sharp._space.pieces, masters, strict=True):
            if piece_.name.endswith("outer.weight"):
                whole[piece_.start : piece_.stop] = master.float().reshape(-1)
        if not sharp._backend._store.holds_all:
            dist.all_reduce(whole)
        found[f"published_{i}"] = bool(torch.equal(whole.to(sent), seen[0].reshape(-1).to(sent)))
    after = masters_of(sharp)
    found["stepped"] = not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def loss_scale() -> float:
        if "autocast" in kind:
            return scaler_of(kind, wrapped).get_scale()
        return float(wrapped.optimizer.loss_scale) if dtype == torch.float16 else 1.0

    scale = loss_scale()
    for poisoned in (0, 1):
        count = 0

        def loss_of(b: dict[str, Tensor]) -> Tensor:
            nonlocal count
            model.poison = float("inf") if count == poisoned and dist.get_rank() == 1 else 1.0  # noqa: B023
            count += 1
            return wrapped(**b)

        bits = masters_of(sharp), copies()
        sharp(loss_of, batch)
        found[f"masters_kept_{poisoned}"] = all(torch.equal(a, b) for a, b in zip(masters_of(sharp), bits[0], strict=True))
        found[f"copies_kept_{poisoned}"] = all(torch.equal(a, b) for a, b in zip(copies(), bits[1], strict=True))
        found[f"lowered_{poisoned}"], scale = loss_scale() / scale, loss_scale()
    model.poison, velocity = 1.0, direction

    def stepped(step: SharpStep) -> tuple[Tensor, Tensor]:
        """The weights before a step, and the direction that the optimizer took."""
        nonlocal velocity
        start, before = flattened(sharp), velocity
        step(lambda b: wrapped(**b), batch, observe=True)
        velocity = (start - flattened(sharp)) / LR
        return start, velocity - MOMENTUM * before

    found["errors_later"] = errors(sharp, *stepped(sharp))
    if not kind.startswith("zero3"):
        truth, each = truths()
        exact = GAM(rho=0.2, alpha=0.5, hvp="exact")
        start, got = stepped(SharpStep(wrapped, optimizer, exact, accelerator=accelerator))
        found["exact"] = error(got, gam(truth, start, 0.2, 0.5))
        apart = SharpStep(wrapped, optimizer, SAM(rho=FAR), accelerator=accelerator, perturb_over="device")
        start, got = stepped(apart)
        found["device"] = error(got, sum(sam(f, start, FAR) for f in each) / RANKS)
        found["device_from_batch"] = error(sam(truth, start, FAR), sum(sam(f, start, FAR) for f in each) / RANKS)
    if kind == "zero1_bf16_fp32":  # DeepSpeed's other optimizers reduce what ranks have, and meet different sizes
        found["side"] = used_on_one_rank(kind)
    torch.save(found, f"{file}-{dist.get_rank()}")


if __name__ == "__main__":
    main()
