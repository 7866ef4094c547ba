"""The peak memory of a training step over the plain Trainer's, in units of the weights.

Each method trains in a process of its own, through the Trainer, with AdamW; so does the plain Trainer. The peak is the
largest number of bytes in live tensors at any moment of three steps, from ``training_step`` to ``zero_grad``, after three
others in which optimizer state and kept buffers came to be. On CPU every allocation and release of torch's allocator since
before the model was built is taken from the profiler and summed up in order of time, temporaries inside of kernels included
(but not oneDNN's own scratchpads, which do not go through it). On CUDA it is ``torch.cuda.max_memory_allocated``. Neither
depends on timing, on other processes or on what an allocator keeps in reserve, so CPU numbers repeat exactly.

The default model is a deep, narrow MLP at batch 4: its largest parameter is 1/24 and its activations are about 1/50 of its
weights. There the plain peak, when the backward ends, is 4 units (weights, gradient, two of AdamW) and the images. Where
activations outweigh the gradient (``--model vit_tiny --batch 32``) every peak moves to a moment early in a backward, where
the gradient of that pass hardly exists yet: plain and sharp lose it alike, so the buffers alive during a pass are still
compared, but arithmetic after the last pass no longer shows.

    extra   (peak - the plain Trainer's peak) / bytes of the weights
    idle    the same for what is alive after the last step
    kept    vectors (gradients of earlier passes, noise) that the method's formula still needs when its last pass runs
    target  kept + 2: the old weights and the shift

    python examples/benchmarks/memory.py
    python examples/benchmarks/memory.py --model vit_tiny --batch 1 --methods sam gsam
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from allocations import MEASURED, live_bytes
from loops import TrainerLoop
from machine import VERDICT, machine
from settings import method
from subjects import MODELS, Batch, images
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import set_seed
from turns import CONTEXT

from hf_sharp import METHODS

KEPT = {
    "accelerated_gam": 3,
    "asam": 0,
    "crsam": 2,
    "decayed": 0,
    "during": 0,
    "every": 0,
    "gam": 2,
    "gsam": 1,
    "lpf": 1,
    "rgsam": 2,
    "rsam": 1,
    "sam": 0,
}
"""Vectors that a method's formula keeps. GAM: g(w), g(w'). CR-SAM: g, g+. GSAM: g. R-SAM: delta_0; R-GSAM: that and g.
LPF: the sum of the draws so far."""


class Perceptron(nn.Module):
    """Layers of equal width: many weights, few activations."""

    def __init__(self, width: int = 384, depth: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))
        self.inputs, self.outputs = nn.Linear(3, width), nn.Linear(width, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Batch:
        """Loss and logits, (batch, 10), of the mean colours of images, (batch, 3, height, width)."""
        logits = self.outputs(self.layers(self.inputs(pixel_values.mean((2, 3)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


BUILD: dict[str, Callable[[], nn.Module]] = {"mlp": Perceptron, **MODELS}


@dataclass(frozen=True)
class Usage:
    """Bytes in live tensors.

    Attributes:
        weights: those of the trainable parameters.
        peak: the most at any moment of the measured steps.
        idle: after them.
    """

    weights: int
    peak: int
    idle: int


def usage(model: str, size: int, name: str | None) -> Usage:
    """What a method uses; None is the plain Trainer."""
    set_seed(0)
    if torch.cuda.is_available():
        loop, batch = started(model, size, name)
        torch.cuda.reset_peak_memory_stats()
        go_on(loop, batch)
        peak, idle = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            loop, batch = started(model, size, name)
            with record_function(MEASURED):
                go_on(loop, batch)
        alive = list(live_bytes(profiler.profiler.kineto_results.events()))
        peak, idle = max(alive), alive[-1]
    weights = sum(p.nbytes for p in loop.trainer.model.parameters() if p.requires_grad)
    return Usage(weights, peak, idle)


def started(model: str, size: int, name: str | None) -> tuple[TrainerLoop, Batch]:
    """A Trainer after three steps, and a batch for the next."""
    batch = images(size, classes=10)
    loop = TrainerLoop(BUILD[model](), None if name is None else method(name), batch, steps=4)
    batch = {key: x.to(loop.trainer.args.device) for key, x in batch.items()}
    loop(batch)
    loop(batch)
    return loop, batch


def go_on(loop: TrainerLoop, batch: Batch) -> None:
    """The three measured steps, so that a method for every other step is seen at work."""
    for _ in range(3):
        loop(batch)


def row(name: str, used: Usage, plain: Usage) -> dict[str, Any]:
    """One method against the plain Trainer."""
    extra, kept = (used.peak - plain.peak) / used.weights, KEPT.get(name)
    return {
        "method": name,
        "setting": repr(method(name)),
        "extra": extra,
        "idle": (used.idle - plain.idle) / used.weights,
        "kept": kept,
        "target": None if kept is None else kept + 2,
        "within": None if kept is None else extra <= kept + 2 + 0.05,
        "bytes": asdict(used),
    }


def line(found: dict[str, Any]) -> str:
    """The same as text."""
    kept, target = str(found["kept"]), str(found["target"])
    return (
        f"{found['method']:16} {found['extra']:5.2f} {found['idle']:5.2f} {kept:>5} {target:>7}  {VERDICT[found['within']]}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BUILD, default="mlp")
    parser.add_argument("--batch", type=int, default=4, help="samples per step")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("memory.json"), help="where the bytes go")
    return parser.parse_args()


def main() -> None:
    """Measure each method in a fresh process, print the table, and write the bytes down."""
    options = parse()
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's, read by the new processes
    with CONTEXT.Pool(1, maxtasksperchild=1) as pool:
        plain = pool.apply(usage, (options.model, options.batch, None))
        print(f"{options.model}, batch {options.batch}: weights {plain.weights / 2**20:.1f} MiB, ", end="")
        print(f"plain Trainer's peak {plain.peak / plain.weights:.2f} units, idle {plain.idle / plain.weights:.2f}")
        print("method           extra  idle  kept  target")
        rows = []
        for name in options.methods:
            rows.append(row(name, pool.apply(usage, (options.model, options.batch, name)), plain))
            print(line(rows[-1]), flush=True)
    result = {"machine": machine(), "model": options.model, "batch": options.batch, "plain": asdict(plain), "methods": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"The bytes are in {options.output}.")


if __name__ == "__main__":
    main()
