"""The batch of an optimizer step, divided over devices and micro-batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

_PER_DEVICE, _STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"


def divided(given: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """Settings with a batch per device and accumulation steps, in place of the total and the size of an ascent set.

    ``total_batch_size`` is the number of images of an optimizer step; ``m``, where it is given, how many of them share a
    perturbation: the micro-batch of a device. Either of the Trainer's own settings may be given, too; the other one follows.

    Args:
        given: settings; without ``total_batch_size`` they are returned as they are.
        devices: how many train, >= 1.

    Raises:
        ValueError: the total cannot be divided.

    >>> divided({"total_batch_size": 512, "m": 128}, devices=2)
    {'per_device_train_batch_size': 128, 'gradient_accumulation_steps': 2}
    >>> divided({"total_batch_size": 512}, devices=8)
    {'per_device_train_batch_size': 64, 'gradient_accumulation_steps': 1}
    """
    rest = {name: value for name, value in given.items() if name not in ("total_batch_size", "m")}
    numbers = {name: _whole(name, given.get(name)) for name in ("total_batch_size", "m", _PER_DEVICE, _STEPS)}
    total, m, per_device, steps = numbers.values()
    if total is None:
        if m is not None:
            raise ValueError(f"m needs the batch of a step, got m={m} alone. Pass total_batch_size, too.")
        return rest
    if m is not None and per_device not in (None, m):
        raise ValueError(f"{_PER_DEVICE} must be m, got {per_device} and m={m}. Leave {_PER_DEVICE} out.")
    per_device = per_device or m or max(1, total // (devices * (steps or 1)))
    steps = steps or max(1, total // (devices * per_device))
    if per_device * steps * devices != total:
        raise ValueError(
            f"total_batch_size must be {_PER_DEVICE} x {_STEPS} x devices, got {total} for {per_device} x {steps} x "
            f"{devices}. Use another number of devices, or pass another total_batch_size."
        )
    return {**rest, _PER_DEVICE: per_device, _STEPS: steps}


def training_devices(use_cpu: bool) -> int:
    """How many devices train: the launcher's processes, or without a launcher the GPUs of this machine."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return 1 if use_cpu else max(1, torch.cuda.device_count())


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}. Pass e.g. {name}=128.")
    return int(value)
