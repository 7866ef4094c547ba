"""No step waits for the device, but for those that are logged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_sharp import AbstractMethod, SharpStep
from tests.gpu.loops import STEPS, WRAPPERS, on, world
from tests.gpu.marks import gpu_only
from tests.problems import EXAMPLES, Perceptron, batch_for, generic


@gpu_only
@pytest.mark.parametrize("with_scaler", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_no_step_waits_for_the_device(name: str, with_scaler: bool) -> None:
    """PyTorch raises where the host would wait."""
    go_without_waiting(generic(Perceptron()).cuda(), EXAMPLES[name], GradScaler("cuda") if with_scaler else None)


@gpu_only
@pytest.mark.parametrize(("kind", "over"), [("ddp", "batch"), ("ddp", "device"), ("fsdp2", "batch")])
@pytest.mark.parametrize("name", ["sam", "asam", "gsam", "crsam", "gam", "rsam"])
def test_no_step_waits_under_ddp_and_fsdp2(name: str, kind: str, over: str, tmp_path: Path) -> None:
    with world("cuda", tmp_path):
        go_without_waiting(WRAPPERS[kind](generic(Perceptron()).cuda(), "cuda"), EXAMPLES[name], None, over)


def go_without_waiting(model: nn.Module, method: AbstractMethod, scaler: GradScaler | None, over: str = "batch") -> None:
    """Train a little; from the third step on, since the first ones set things up, waiting inside of ours is an error."""
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, method, scaler=scaler, steps=STEPS, perturb_over=over)
    batches = [on("cuda", batch_for(Perceptron(), seed=step)) for step in range(STEPS)]
    for step, batch in enumerate(batches):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            sharp(lambda given: model(**given)["loss"], batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()


@gpu_only
def test_the_mode_sees_a_wait() -> None:
    x = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            x.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class NoTransfers(TorchDispatchMode):
    """Raises where values go from one device to another. A tensor on the device "meta" that is asked for its value raises
    by itself.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copying = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        found = [x for x in tree_leaves((args, out)) if isinstance(x, Tensor)]
        if copying and len({x.device.type for x in found}) > 1:
            raise RuntimeError(f"Values must stay on their device, got {func}.")
        return out


@pytest.fixture
def device_without_values(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device "meta", whose tensors have no values to wait for, with what is missing there for a random stream."""
    streams = SimpleNamespace(get_rng_state=lambda device: torch.zeros(1), set_rng_state=lambda state, device: None)
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    return "meta"


@pytest.mark.parametrize("with_scaler", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_no_step_asks_for_a_value(name: str, with_scaler: bool, device_without_values: str) -> None:
    """The twin of the test for GPUs, on any machine: a step that reads a number could not run here."""
    model = generic(Perceptron()).to(device_without_values)
    optimizer = SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(device_without_values) if with_scaler else None
    sharp = SharpStep(model, optimizer, EXAMPLES[name], scaler=scaler, steps=STEPS)
    for step in range(STEPS):
        batch = on(device_without_values, batch_for(Perceptron(), seed=step))
        with NoTransfers():
            sharp(lambda given: model(**given)["loss"], batch)
        optimizer.step()
        optimizer.zero_grad()


def test_the_twin_sees_a_wait(device_without_values: str) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.ones((), device=device_without_values))
    with pytest.raises(RuntimeError, match="must stay on their device"), NoTransfers():
        torch.zeros(1).to(device_without_values)
