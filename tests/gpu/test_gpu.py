"""What only a GPU can show: fp16 with a live loss scale, NCCL, and the device's memory.

What of it can run on a CPU runs there too, so that a fault in the tests shows early.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD

from hf_sharp import ASAM, CRSAM, GSAM, RSAM, SAM, AbstractMethod, SharpStep
from tests.backends.launches import ROOT
from tests.gpu.engine import METHODS as IN_ENGINES
from tests.gpu.loops import STEPS, fitted, on, peak, trained, world
from tests.gpu.marks import DEVICES, GPU, gpu_only
from tests.problems import EXAMPLES, Perceptron, batch_for, generic

NOISY = ("lpf", "rgsam", "rsam")
PASSES: dict[str, tuple[AbstractMethod, int]] = {
    "sam": (SAM(rho=0.05), 2),
    "asam": (ASAM(rho=0.5), 2),
    "rsam": (RSAM(rho=0.05, gamma=0.02), 2),
    "crsam": (CRSAM(rho=0.05), 3),
}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("device", DEVICES)
def test_ddp_and_fsdp2_of_one_process(device: str, name: str, tmp_path: Path) -> None:
    """Over NCCL, and over gloo on the CPU: the numbers of a loop without either."""
    alone = trained(device, "alone", EXAMPLES[name])
    with world(device, tmp_path):
        for kind in ("ddp", "fsdp2"):
            assert float((trained(device, kind, EXAMPLES[name]) - alone).abs().max()) <= 1e-12, kind


@gpu_only
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in NOISY])
def test_gpu_equals_cpu(name: str) -> None:
    """But for the noise, which each kind of device draws in its own way."""
    gap = trained("cuda", "alone", EXAMPLES[name]) - trained("cpu", "alone", EXAMPLES[name])
    assert float(gap.abs().max()) <= 1e-9


@pytest.mark.parametrize("kind", ["zero2", *(pytest.param(k, marks=pytest.mark.slow) for k in ("zero1", "zero3"))])
@pytest.mark.parametrize("device", DEVICES)
def test_deepspeed_of_one_process(device: str, kind: str) -> None:
    engine(kind, device)


@gpu_only
@pytest.mark.parametrize("kind", ["zero2_offload", "zero3_offload"])
def test_deepspeed_with_the_optimizer_on_the_cpu(kind: str) -> None:
    engine(kind, "cuda")


def engine(kind: str, device: str) -> None:
    """Fail unless a DeepSpeed engine ends with a plain loop's weights."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    env |= {"MASTER_PORT": str(port), "DS_ACCELERATOR": device}
    command = [sys.executable, "-m", "tests.gpu.engine", kind, device]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    found = dict(line.split() for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in IN_ENGINES)
    assert found.keys() == IN_ENGINES.keys()
    assert {name: gap for name, gap in found.items() if not float(gap) <= 1e-6} == {}


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "no"), ("cpu", "bf16"), *(pytest.param("cuda", precision, marks=GPU) for precision in ("no", "bf16", "fp16"))],
)
def test_neutral_is_plain_through_the_trainer(device: str, precision: str, tmp_path: Path) -> None:
    """The weights' bits after each step, in every precision; and another radius gives other weights."""
    plain_trainer, plain = fitted(tmp_path, device, precision, None)
    neutral_trainer, neutral = fitted(tmp_path, device, precision, SAM(rho=0))
    _, sharp = fitted(tmp_path, device, precision, SAM(rho=0.5))
    for trainer in (plain_trainer, neutral_trainer):
        scaler = trainer.accelerator.scaler
        assert (scaler is not None and scaler.is_enabled()) == (precision == "fp16")
    assert len(neutral.weights) == STEPS + 1
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, neutral.weights, strict=True))
    assert plain.scales == neutral.scales
    assert (plain_trainer.model.forwards, neutral_trainer.model.forwards) == (STEPS, 2 * STEPS)
    assert not torch.equal(sharp.weights[-1], plain.weights[-1])


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), *(pytest.param("cuda", precision, marks=GPU) for precision in ("bf16", "fp16"))],
)
def test_methods_see_true_gradients(device: str, precision: str, tmp_path: Path) -> None:
    """The logged norms do not have the loss scale in them, and the shift has its radius in the float32 weights."""
    whole, _ = fitted(tmp_path, device, "no", SAM(rho=0.05), dropout=0.0)  # its masks depend on the precision
    trainer, _ = fitted(tmp_path, device, precision, SAM(rho=0.05), dropout=0.0)
    first = next(entry for entry in whole.state.log_history if "loss" in entry)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == STEPS
    assert logs[0]["sharpness/grad_norm"] == pytest.approx(first["sharpness/grad_norm"], rel=0.05)
    for entry in logs:
        assert entry["sharpness/shift_norm"] == pytest.approx(0.05, rel=1e-4)
        assert entry["sharpness/shift_norm_applied"] == pytest.approx(0.05, rel=1e-3)
        assert -1.001 <= entry["sharpness/cos"] <= 1.001


@gpu_only
@pytest.mark.parametrize("name", PASSES)
def test_a_non_finite_value_in_any_pass_skips_the_step(name: str, tmp_path: Path) -> None:
    """The weights keep their bits, the loss scale is halved, and training goes on."""
    method, passes = PASSES[name]
    for bad in range(passes):
        _, steps = fitted(tmp_path, "cuda", "fp16", method, bad=3 * passes + bad)
        assert torch.equal(steps.weights[4], steps.weights[3])
        assert steps.scales[4] == 0.5 * steps.scales[3]
        assert all(torch.isfinite(w).all() for w in steps.weights)
        assert not torch.equal(steps.weights[-1], steps.weights[4])


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_bare_loop_skips_the_step_too(device: str, name: str) -> None:
    """fp16 by autocast with a GradScaler of one's own, which the CPU has as well."""
    method, passes = PASSES[name]
    for bad in range(passes):
        weights, scales = scaled(device, method, 3 * passes + bad)
        assert torch.equal(weights[4], weights[3])
        assert scales[4] == 0.5 * scales[3]
        assert not torch.equal(weights[3], weights[2])
        assert not torch.equal(weights[-1], weights[4])


def scaled(device: str, method: AbstractMethod, bad: int) -> tuple[list[Tensor], list[float]]:
    """The weights and the loss scale before training and after each step of a loop in fp16; one forward is infinite."""
    model = generic(Perceptron()).float().to(device)
    optimizer = SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(device, init_scale=1024.0)
    sharp = SharpStep(model, optimizer, method, scaler=scaler)
    forwards: list[int] = []

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device, torch.float16):
            assert model.inner(batch["x"]).dtype == torch.float16
            loss = model(**batch)["loss"]
        forwards.append(len(forwards))
        return loss * float("inf") if forwards[-1] == bad else loss

    def look() -> None:
        weights.append(torch.cat([p.detach().cpu().reshape(-1) for p in model.parameters()]))
        scales.append(scaler.get_scale())

    weights: list[Tensor] = []
    scales: list[float] = []
    look()
    for step in range(STEPS):
        batch = on(device, batch_for(Perceptron(), seed=step))
        sharp(loss_of, {**batch, "x": batch["x"].float()})
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        look()
    return weights, scales


@gpu_only
@pytest.mark.parametrize(("method", "kept"), [(SAM(), 0), (ASAM(), 0), (GSAM(), 1)])
def test_peak_memory(method: AbstractMethod, kept: int) -> None:
    """Over the plain step's: the gradients that the formula keeps, and two vectors of the weights' size."""
    weights, plain = peak(None)
    _, sharp = peak(method)
    assert plain >= 2 * weights  # the measurement itself: weights and gradient
    assert (sharp - plain) / weights <= kept + 2 + 0.05
