"""What measurements say to weights that the ranks hold in pieces, and what an evaluation between steps does to them: rank 0
writes it into a file.

torchrun --nproc-per-node 2 -m tests.workers.measuring FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD

from hf_sharp import SAM, SharpStep
from hf_sharp.backends.fsdp import reshard
from hf_sharp.measure import AbstractQuantity, How, Sharpness, TopEigenvalues, Trace, loss_surface
from tests.problems import Perceptron, batch_for, generic
from tests.workers.engines import engine, full_weights


def said(model: nn.Module, quantity: AbstractQuantity, **how: Any) -> str | None:
    """What is said when a quantity is measured; None where it is."""
    batch = batch_for(Perceptron())
    dtype = next(model.parameters()).dtype
    try:
        with loss_surface(model, [{**batch, "x": batch["x"].to(dtype)}], how=How(**how)) as f:
            quantity.measure(f)
    except ValueError as error:
        return str(error)
    return None


def unmoved(model: nn.Module, weights: Callable[[], torch.Tensor], *asked: Callable[[], str | None]) -> list[str | None]:
    """What is said, after a look that modes, gradients and weights are as they were."""
    model.train()
    before = weights().clone()
    found = [ask() for ask in asked]
    assert torch.equal(weights(), before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    return found


def shards(model: nn.Module) -> torch.Tensor:
    """This rank's weights."""
    reshard(model.modules())
    return torch.cat([p.detach().to_local().reshape(-1) for p in model.parameters()])


def fsdp2() -> dict[str, list[str | None]]:
    """Exact products and groups of samples; differences are taken."""
    model: Any = generic(Perceptron())
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    assert all(isinstance(p, DTensor) for p in model.parameters())
    exact = unmoved(
        model,
        lambda: shards(model),
        lambda: said(model, Trace(draws=2)),
        lambda: said(model, TopEigenvalues(k=1)),
    )
    return {
        "exact": exact,
        "groups": [said(model, Sharpness(m=2), hvp="difference")],
        "difference": [said(model, Trace(draws=2), hvp="difference"), said(model, Sharpness())],
    }


def trained(looks: bool) -> torch.Tensor:
    """This rank's weights after two steps of SAM; before each one somebody may have looked, which gathers the weights."""
    model: Any = generic(Perceptron())
    fully_shard(model.inner)
    fully_shard(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = None
    for i in range(2):
        if looks:
            with torch.no_grad():
                model(**batch_for(Perceptron()))
            assert not isinstance(model.outer.weight, DTensor)  # FSDP2 keeps what the root has gathered
        sharp = sharp or SharpStep(model, optimizer, SAM(rho=0.1))
        sharp(lambda batch: model(**batch)["loss"], batch_for(Perceptron(), seed=2 * i + dist.get_rank()))
        optimizer.step()
        optimizer.zero_grad()
    return shards(model)


def zero3() -> dict[str, list[str | None]]:
    """Anything."""
    model, _, _ = engine("zero3", generic(Perceptron()).float(), 1, None)
    assert model.zero_optimization_stage() == 3
    weights = lambda: full_weights(model)  # noqa: E731
    return {"zero3": unmoved(model, weights, lambda: said(model, Trace(draws=2)), lambda: said(model, Sharpness()))}


def main() -> None:
    """Ask, make sure that all ranks were told the same, and let rank 0 write."""
    dist.init_process_group("gloo")
    torch.set_default_dtype(torch.float64)
    assert torch.equal(trained(looks=True), trained(looks=False))
    found = fsdp2()
    torch.set_default_dtype(torch.float32)
    found |= zero3()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    assert all(theirs == found for theirs in everyone)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
