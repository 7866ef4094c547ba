"""What no backend can do is refused at construction, by name, with the reason and the way out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_sharp import GAM, SAM, SharpnessAwareTrainer, SharpStep
from hf_sharp.limits import check_training
from tests.backends.launches import ROOT
from tests.models import arguments, mixed, rows

DEVICE = (
    "ValueError: perturb_over='device' needs all weights on each device, got {}: its ranks gather the weights from each "
    "other, so that all stand at the same point. Use perturb_over='batch' or 'micro_batch', or DDP."
)
EXACT = "ValueError: hvp='exact' needs all weights on each device, got {}. Use GAM(hvp='difference')."
NVME = "ValueError: Weights must be in memory, got {} to NVMe. Offload to the CPU: device: cpu."
FIRST = "ValueError: FSDP must be of version 2, got version 1. Set fsdp_version: 2 in the accelerate config."
KEY = "ValueError: {} must be {}, got {}: {}. Leave it out of the DeepSpeed config."
VERSION = (
    "ImportError: deepspeed must be at least 0.19.0 and below 0.20.0, got {}. Run pip install 'deepspeed>=0.19.0,<0.20.0'."
)
REFUSED = {
    "device, zero3": DEVICE.format("ZeRO-3"),
    "device, fsdp2": DEVICE.format("FSDP2"),
    "device, fsdp2, not yet wrapped": DEVICE.format("FSDP2"),
    "exact, zero3": EXACT.format("ZeRO-3"),
    "exact, fsdp2": EXACT.format("FSDP2"),
    "exact, fsdp2, not yet wrapped": EXACT.format("FSDP2"),
    "fsdp1": FIRST,
    "fsdp1, not yet wrapped": FIRST,
    "nvme optimizer": NVME.format("offload_optimizer"),
    "nvme weights": NVME.format("offload_param"),
    "hpz": KEY.format("zero_optimization.zero_hpz_partition_size", 1, 2, "secondary shards (hpZ) are not written back"),
    "qwz": KEY.format(
        "zero_optimization.zero_quantized_weights", False, True, "quantised gathers (qwZ) would round the shift away"
    ),
    "qgz": KEY.format(
        "zero_optimization.zero_quantized_gradients",
        False,
        True,
        "quantised reductions (qgZ) would round the passes' differences",
    ),
    "zenflow": KEY.format("zero_optimization.zenflow", None, {"topk_ratio": 0.1}, "it updates weights between the passes"),
    "ratio": KEY.format("zero_optimization.offload_optimizer.ratio", 1.0, 0.5, "the weights would be on two devices"),
    "muon": "ValueError: The optimizer must take gradients as the backward leaves them, got Muon in the DeepSpeed config, "
    "whose update takes their place at once. Use another one, such as AdamW.",
    "deepcompile": KEY.format("compile.deepcompile", False, True, "it reduces gradients where they cannot be held back"),
    "deepspeed 0.18.9": VERSION.format("0.18.9"),
    "deepspeed 0.20.0": VERSION.format("0.20.0"),
    "megatron": "ValueError: distributed_type must be one of NO, MULTI_CPU, MULTI_GPU, FSDP, DEEPSPEED, got MEGATRON_LM, "
    "for which there is no backend. Launch under DDP, FSDP2 or DeepSpeed, on CUDA GPUs or CPUs.",
    "columns": "ValueError: FSDP2 must cut all trainable weights by rows on one mesh, got (Shard(dim=1),) on "
    "DeviceMesh((1,), 'cpu', stride=((),)) for 'inner.weight'. Leave out shard_placement_fn, tensor and expert parallelism.",
}
"""What is raised, whoever is built: SharpStep, or the Trainer."""
ACCEPTED = ("zero0", "zero2", "zero3", "fsdp2", "deepspeed 0.19.0+cpu")
BOTH = {"Trainer", "SharpStep"}
NO_TRAINER = {
    "device, fsdp2, not yet wrapped",
    "exact, fsdp2, not yet wrapped",
    "megatron",
    "columns",
}
"""Known to the Trainer only on a GPU, or when it wraps the model."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str | None]]:
    """What was raised in each case; all run in one process of their own, which has a process group."""
    folder = tmp_path_factory.mktemp("refusals")
    command = [sys.executable, "-m", "tests.workers.refusals", str(folder / "found.json"), str(folder / "out")]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(("case", "message"), REFUSED.items(), ids=REFUSED)
def test_refused(case: str, message: str, found: dict[str, dict[str, str | None]]) -> None:
    assert found[case] == dict.fromkeys({"SharpStep"} if case in NO_TRAINER else BOTH, message)


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, found: dict[str, dict[str, str | None]]) -> None:
    """What lies beside the refused is not refused: CPU offload, "device" on whole weights, a build's version."""
    assert len(found[case]) == 2
    assert set(found[case].values()) == {None}


def test_every_case_was_looked_at(found: dict[str, dict[str, str | None]]) -> None:
    assert set(found) == {*REFUSED, *ACCEPTED}


def refuse(message: str) -> Any:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_weights_that_are_no_floating_point_numbers(tmp_path: Path) -> None:
    """PyTorch itself trains no integers; of what it trains, complex numbers are left."""
    model = mixed()
    model.scale = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    message = (
        "Trainable weights must be floating-point numbers of 16 bits or more, got torch.complex64 for 'scale'. "
        "Freeze the quantised weights and train an adapter, e.g. LoRA."
    )
    with refuse(message):
        SharpStep(model, SGD(model.parameters(), lr=0.1), SAM())
    with refuse(message):
        SharpnessAwareTrainer(model, arguments(tmp_path), train_dataset=rows("mixed", 4), method=SAM())


def test_frozen_quantised_weights_are_accepted() -> None:
    """Integers beside an adapter that is trained."""
    model = mixed()
    model.codes = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    SharpStep(model, SGD(model.parameters(), lr=0.1), SAM())


def test_several_gpus_in_one_process(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    message = (
        "One process must train on one device, got 2 GPUs under nn.DataParallel. "
        "Launch one process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0."
    )
    with refuse(message):
        check_training(SAM(), args, None, None)


def test_an_optimizer_class_that_steps_in_the_backward(tmp_path: Path) -> None:
    """Given as a class, beside the names and objects of the general tests."""
    message = (
        "The optimizer must step after the backward, got 'LayerWiseDummyOptimizer', which steps inside it, before a second "
        "pass could run. Choose another one, e.g. optim='adamw_torch'."
    )
    with refuse(message):
        SharpnessAwareTrainer(
            mixed(),
            arguments(tmp_path),
            train_dataset=rows("mixed", 4),
            method=SAM(),
            optimizer_cls_and_kwargs=(LayerWiseDummyOptimizer, {}),
        )


def test_a_second_derivative_under_reentrant_checkpointing(tmp_path: Path) -> None:
    message = (
        "hvp='exact' needs a second derivative, which reentrant gradient checkpointing does not have. "
        "Use GAM(hvp='difference')."
    )
    changed: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    }
    with refuse(message):
        SharpnessAwareTrainer(
            mixed(), arguments(tmp_path, **changed), train_dataset=rows("mixed", 4), method=GAM(hvp="exact")
        )


def test_another_deepspeed_is_named_before_its_private_names_are_imported() -> None:
    """Which a version may lack altogether."""
    code = (
        "import sys, deepspeed; deepspeed.__version__ = '0.20.0'; sys.modules['deepspeed.runtime.bf16_optimizer'] = None\n"
        "from types import SimpleNamespace as Has; from accelerate.utils import DistributedType; from torch import nn\n"
        "from hf_sharp.backends import check\n"
        "loop = Has(distributed_type=DistributedType.DEEPSPEED)\n"
        "try: check(nn.Linear(1, 1), loop, None, local=False, exact=False)\n"
        "except ImportError as error: print('ImportError:', error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines()[-1] == VERSION.format("0.20.0"), done.stderr
