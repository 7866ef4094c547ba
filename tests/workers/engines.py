"""DeepSpeed engines on the CPU, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn
from torch.optim import SGD, Optimizer


def config(kind: str, accumulation: int, clip: float | None, **more: Any) -> dict[str, Any]:
    """A DeepSpeed configuration: zero0 to zero3, followed by _round_robin and _offload where these are wanted."""
    zero: dict[str, Any] = {"stage": int(kind[4]), "stage3_gather_16bit_weights_on_model_save": kind[4] == "3"}
    if "round_robin" in kind:
        zero["round_robin_gradients"] = True
    if kind.endswith("offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip or 0.0,  # the default is 1
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **more,
    }


def engine(
    kind: str, model: nn.Module, accumulation: int, clip: float | None, **more: Any
) -> tuple[Any, Optimizer, Accelerator]:
    """A model in an engine with SGD, its optimizer, and the accelerator that prepared them."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    plugin = DeepSpeedPlugin(hf_ds_config=config(kind, accumulation, clip, **more))
    accelerator = Accelerator(deepspeed_plugin=plugin, gradient_accumulation_steps=accumulation)
    with sequence_parallel() if kind.endswith("sequence") else nullcontext():
        prepared, optimizer = accelerator.prepare(model, SGD(model.parameters(), lr=0.1, momentum=0.9))
    return prepared, optimizer, accelerator


@contextmanager
def sequence_parallel() -> Iterator[None]:
    """Let engines know that all ranks share their samples, as accelerate does for a model with attention."""
    import deepspeed
    from deepspeed.runtime.sequence_parallel import parallel_state_sp as groups

    if groups._SEQUENCE_PARALLEL_GROUP is None:
        groups.initialize_sequence_parallel(int(os.environ["WORLD_SIZE"]))
    with patch("deepspeed.initialize", partial(deepspeed.initialize, mpu=groups)):
        yield


def full_weights(wrapped: Any) -> Tensor:
    """The whole trainable weights, which are in float32, as one vector in float64."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = []
    for p in (p for p in wrapped.module.parameters() if p.requires_grad):
        # in float32 the masters' values are in the weights; DeepSpeed's links to masters miss with round_robin_gradients
        master = safe_get_full_fp32_param(p) if wrapped.zero_optimization_stage() == 3 else p.detach()
        assert master is not None
        assert master.dtype == torch.float32
        whole.append(master.detach().double().reshape(-1))
    return torch.cat(whole)
