"""What one optimizer step costs, against the plain Trainer and against SAM from pytorch_optimizer.

A plain and a sharp Trainer with the same model live in a process each, since what an allocator does depends on what else
lives there. Both are prepared by their own ``train()``, which takes one step, and then go on in turns, one optimizer step
each on the same batch, while the other one sleeps. Who goes first alternates, so that drift hits both alike. A step is what
the Trainer's loop does from ``training_step`` to ``zero_grad``; loading data and logging are left out, since they are the
same. Per pair of steps::

    ratio  = sharp / plain
    bound  = n x plain forward-backward + the rest of the plain step (clipping, optimizer, scheduler, zero_grad)
    excess = sharp / bound - 1

n is the number of passes that the sharp step made, counted in the Trainer. The table has medians over the pairs and, in
brackets, the quartiles. ``allowed`` is ``bound / plain`` plus the allowance: 2 %, and 5 % below batch 16. SAM, ASAM and
GSAM are judged by it; other methods are only reported, at the smallest batch unless they are named. ``faults`` are page
faults per step, sharp / plain: on CPU, memory that the allocator has given back costs time when it is touched anew. How
much that is differs between starts of one program by more than the quartiles in one start say; ``--starts 5`` takes more.

The second table is SAM in a loop without a Trainer: SharpStep beside ``pytorch_optimizer.SAM``, both with AdamW.

    python examples/benchmarks/step_time.py
    python examples/benchmarks/step_time.py --models resnet18 --batches 4 --methods sam crsam --steps 20
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import pytorch_optimizer
import torch
import transformers
from torch import Tensor, nn
from torchvision.models import resnet18
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments, set_seed

from hf_sharp import LPF, METHODS, RGSAM, SAM, AbstractMethod, Decayed, During, Every, SharpnessAwareMixin, SharpStep

if sys.platform != "win32":
    import resource

Batch: TypeAlias = dict[str, Tensor]

CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "win32" or torch.cuda.is_available() else "forkserver")

JUDGED = ("sam", "asam", "gsam")
VERDICT = {True: "within", False: "OVER", None: ""}
SETTINGS: dict[str, AbstractMethod] = {
    "decayed": Decayed(SAM(), weight_decay=0.0005),
    "during": During(SAM(), start=0.5),
    "every": Every(2, SAM()),
    "lpf": LPF(gamma=0.001, draws=2),
    "rgsam": RGSAM(rho=0.05, gamma=0.0025, lam=2.0, alpha=0.3),
}
"""Methods that have no defaults; the others run with theirs."""


class ImageClassifier(nn.Module):
    """A torchvision network that the Trainer can train."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Batch:
        """Loss and logits, (batch, classes), of images, (batch, 3, height, width), and labels, (batch,)."""
        logits = self.network(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def vit_tiny() -> nn.Module:
    """ViT-Ti/16 at 224 x 224: 5.7 million weights in 200 parameters."""
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, patch_size=16, num_labels=1000
    )
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit_tiny": vit_tiny,
    "resnet18": lambda: ImageClassifier(resnet18()),
}


def method(name: str) -> AbstractMethod:
    """A method as it is measured."""
    return SETTINGS[name] if name in SETTINGS else METHODS[name]()


def images(size: int, device: torch.device | str = "cpu", classes: int = 1000) -> Batch:
    """One batch of random images."""
    pixels = torch.randn(size, 3, 224, 224, device=device)
    return {"pixel_values": pixels, "labels": torch.randint(classes, (size,), device=device)}


@dataclass(frozen=True)
class Step:
    """What one optimizer step took.

    Attributes:
        passes: forward-backward passes in it.
        forward_backward: seconds in ``training_step``, the method's passes included.
        rest: seconds in everything after it.
        faults: page faults of the process; 0 where the system does not tell.
    """

    passes: int
    forward_backward: float
    rest: float
    faults: int = 0

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.forward_backward + self.rest


class CountingTrainer(Trainer):
    """A plain Trainer that counts its forward-backward passes."""

    passes = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's."""
        self.passes += 1
        return super().training_step(*args, **kwargs)


class CountingSharpTrainer(SharpnessAwareMixin, CountingTrainer):
    """A sharpness-aware Trainer that counts its forward-backward passes."""


class StopAtOnce(TrainerCallback):
    """Ends ``train()`` after its first step."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the loop to stop."""
        control.should_training_stop = True


class TrainerLoop:
    """A Trainer's loop that goes on one optimizer step per call, after ``train()`` has prepared it and taken the first.

    Args:
        model: the model to train.
        rule: the method; None for the plain Trainer.
        batch: what the first step sees, ``{name: tensor}``.
        steps: how many steps there will be, for schedules.
    """

    def __init__(self, model: nn.Module, rule: AbstractMethod | None, batch: Batch, steps: int) -> None:
        size = len(next(iter(batch.values())))
        samples = [{name: x[i].cpu() for name, x in batch.items()} for i in range(size)]
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder,
                max_steps=steps + 2,
                per_device_train_batch_size=size,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                remove_unused_columns=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            given: dict[str, Any] = {"args": args, "train_dataset": samples, "callbacks": [StopAtOnce()]}
            if rule is None:
                self.trainer = CountingTrainer(model, **given)
            else:
                self.trainer = CountingSharpTrainer(model, method=rule, **given)
            self.trainer.remove_callback(PrinterCallback)
            self.trainer.train()

    def __call__(self, batch: Batch) -> Step:
        trainer, model = self.trainer, self.trainer.model_wrapped
        (inputs,), items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.passes = 0
        start = now()
        trainer.training_step(model, inputs, items)
        middle = now()
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()
        end = now()
        trainer.state.global_step += 1
        return Step(trainer.passes, middle - start, end - middle)


def now() -> float:
    """Seconds, once the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sharp_loop(model: nn.Module) -> Callable[[Batch], Step]:
    """SAM in a loop of one's own, by hf_sharp."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sharp = SharpStep(model, optimizer, SAM(rho=0.05))

    def step(batch: Batch) -> Step:
        start = now()
        sharp(lambda batch: model(**batch)["loss"], batch)
        optimizer.step()
        optimizer.zero_grad()
        return Step(2, now() - start, 0.0)

    return step


def reference_loop(model: nn.Module) -> Callable[[Batch], Step]:
    """SAM in a loop of one's own, by pytorch_optimizer, as its documentation shows it."""
    optimizer = pytorch_optimizer.SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-4)

    def step(batch: Batch) -> Step:
        start = now()
        model(**batch)["loss"].backward()
        optimizer.first_step(zero_grad=True)
        model(**batch)["loss"].backward()
        optimizer.second_step(zero_grad=True)
        return Step(2, now() - start, 0.0)

    return step


PLAIN_LOOPS = {"SharpStep": sharp_loop, "pytorch_optimizer": reference_loop}


def serve(connection: Connection, kind: str, model: str, size: int, steps: int, threads: int) -> None:
    """A process that takes one step whenever it is asked to, and says what it took.

    Args:
        connection: sends True for one more step and False for the end.
        kind: "Trainer", a method's name, or a key of `PLAIN_LOOPS`.
        model: a key of `MODELS`.
        size: samples per batch.
        steps: how many steps there will be.
        threads: torch's on CPU.
    """
    torch.set_num_threads(threads)
    set_seed(0)
    network, batch = MODELS[model](), images(size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loop: Callable[[Batch], Step]
    if kind in PLAIN_LOOPS:
        loop = PLAIN_LOOPS[kind](network.to(device).train())
    else:
        loop = TrainerLoop(network, None if kind == "Trainer" else method(kind), batch, steps)
    batch = {name: x.to(device) for name, x in batch.items()}
    loop(batch)
    connection.send(None)
    while connection.recv():
        before = page_faults()
        step = loop(batch)
        connection.send(replace(step, faults=page_faults() - before))


def page_faults() -> int:
    """Page faults of this process so far, without reading from a disk; 0 where the system does not count them."""
    return 0 if sys.platform == "win32" else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@contextmanager
def served(*what: Any) -> Iterator[Callable[[], Step]]:
    """A process of its own that takes one step per call; see `serve` for what it runs."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=serve, args=(there, *what), daemon=True)
    process.start()
    there.close()

    def step() -> Step:
        time.sleep(0.02)  # threads of the other process go on spinning for a moment after its last kernel
        here.send(True)
        return here.recv()

    here.recv()
    yield step
    here.send(False)
    process.join()


def alternate(ours: Callable[[], Step], theirs: Callable[[], Step], pairs: int) -> list[tuple[Step, Step]]:
    """Pairs of steps, (ours, theirs), taken in turns after one pair that does not count."""
    steps = []
    for i in range(pairs + 1):
        if i % 2:
            second = theirs()
            steps.append((ours(), second))
        else:
            steps.append((ours(), theirs()))
    return steps[1:]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles, the median in the middle."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def trainer_row(name: str, size: int, steps: Sequence[tuple[Step, Step]]) -> dict[str, Any]:
    """One row of the first table, from pairs of a sharp and a plain step."""
    bounds = [ours.passes * base.forward_backward + base.rest for ours, base in steps]
    allowance = 0.02 if size >= 16 else 0.05
    allowed = statistics.median(bound / base.seconds for bound, (_, base) in zip(bounds, steps, strict=True))
    excess = quartiles([ours.seconds / bound - 1 for bound, (ours, _) in zip(bounds, steps, strict=True)])
    return {
        "method": name,
        "setting": repr(method(name)),
        "passes": statistics.mean(ours.passes for ours, _ in steps),
        "plain_forward_backward": statistics.median(base.forward_backward for _, base in steps),
        "plain_rest": statistics.median(base.rest for _, base in steps),
        "ratio": quartiles([ours.seconds / base.seconds for ours, base in steps]),
        "allowed": allowed * (1 + allowance),
        "excess": excess,
        "within": excess[1] <= allowance if name in JUDGED else None,
        "faults": [statistics.median(side) for side in zip(*((a.faults, b.faults) for a, b in steps), strict=True)],
        "steps": [(asdict(ours), asdict(base)) for ours, base in steps],
    }


def reference_row(steps: Sequence[tuple[Step, Step]]) -> dict[str, Any]:
    """One row of the second table, from pairs of a step by hf_sharp and one by pytorch_optimizer."""
    ratio = quartiles([ours.seconds / theirs.seconds for ours, theirs in steps])
    return {
        "ratio": ratio,
        "within": ratio[1] <= 1.01,
        "faults": [statistics.median(side) for side in zip(*((a.faults, b.faults) for a, b in steps), strict=True)],
        "steps": [(asdict(ours), asdict(theirs)) for ours, theirs in steps],
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pytorch_optimizer": version("pytorch_optimizer"),
    }


def trainer_line(row: dict[str, Any]) -> str:
    """A row of the first table, as text."""
    (low, ratio, high), (least, excess, most) = row["ratio"], (100 * x for x in row["excess"])
    plain = f"{1e3 * row['plain_forward_backward']:8.1f} {1e3 * row['plain_rest']:8.1f}"
    return (
        f"{row['model']:9} {row['batch']:5} {row['method']:15} {row['passes']:6.2f} {plain} "
        f"{ratio:6.3f} [{low:.3f}, {high:.3f}] {row['allowed']:7.3f} {excess:+6.1f} [{least:+.1f}, {most:+.1f}] "
        f"{row['faults'][0]:7.0f} / {row['faults'][1]:<7.0f} {VERDICT[row['within']]}"
    )


def reference_line(row: dict[str, Any]) -> str:
    """A row of the second table, as text."""
    low, ratio, high = row["ratio"]
    faults = f"{row['faults'][0]:7.0f} / {row['faults'][1]:<7.0f}"
    return (
        f"{row['model']:9} {row['batch']:5} {ratio:7.3f} [{low:.3f}, {high:.3f}]    1.010 {faults} {VERDICT[row['within']]}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 4], help="samples per step")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="default: all, those not judged at the smallest batch")
    parser.add_argument(
        "--steps", type=int, default=5, help="pairs per row and start; four times as many where judged below batch 16"
    )
    parser.add_argument("--starts", type=int, default=1, help="how often the two processes of a row are started anew")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on CPU")
    parser.add_argument("--output", type=Path, default=Path("step_time.json"), help="where every step goes")
    return parser.parse_args()


def measured(
    ours: str, theirs: str, model: str, size: int, pairs: int, options: argparse.Namespace
) -> list[tuple[Step, Step]]:
    """Pairs of steps from as many pairs of processes as there shall be starts; see `serve` for the names."""
    steps = []
    for _ in range(options.starts):
        what = (model, size, pairs + 1, options.threads)
        with served(ours, *what) as our_step, served(theirs, *what) as their_step:
            steps += alternate(our_step, their_step, pairs)
    return steps


def trainer_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The first table, row by row."""
    for model, size in itertools.product(options.models, options.batches):
        names = options.methods
        if names is None:
            others = [name for name in METHODS if name not in JUDGED]
            names = [*JUDGED, *(others if size == min(options.batches) else [])]
        for name in names:
            pairs = options.steps * (4 if size < 16 and name in JUDGED else 1)
            steps = measured(name, "Trainer", model, size, pairs, options)
            yield {"model": model, "batch": size, **trainer_row(name, size, steps)}


def reference_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The second table, row by row."""
    for model, size in itertools.product(options.models, options.batches):
        steps = measured(*PLAIN_LOOPS, model, size, options.steps * (4 if size < 16 else 1), options)
        yield {"model": model, "batch": size, **reference_row(steps)}


def main() -> None:
    """Measure, print the two tables, and write everything down."""
    options = parse()
    result: dict[str, Any] = {"machine": {**machine(), "threads": options.threads}, "trainer": [], "reference": []}
    print(json.dumps(result["machine"]))
    print(f"model     batch method          passes  fb (ms) rest(ms)  {'ratio':22} allowed  {'excess, %':22}  faults")
    for row in trainer_rows(options):
        print(trainer_line(row), flush=True)
        result["trainer"].append(row)
    print("\nSAM in a plain loop: hf_sharp / pytorch_optimizer\nmodel     batch   ratio                allowed  faults")
    for row in reference_rows(options):
        print(reference_line(row), flush=True)
        result["reference"].append(row)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Every step is in {options.output}.")


if __name__ == "__main__":
    main()
