"""What a method costs on each backend: time, bytes sent and memory over the plain step there.

A plain and a sharp loop train the same deep MLP with AdamW, each in processes of its own that meet over gloo on this
machine, in bare loops without a Trainer. They take their steps in turns while the other one sleeps; who goes first
alternates.

    time     median over pairs of steps of sharp / plain, quartiles in brackets; a step takes as long as its slowest rank
    sent     MB that a rank sends per step by the ring algorithms, averaged over the ranks: of the N bytes of the whole
             tensor (n - 1) / n N in an all-gather, a reduce-scatter, a reduction to one rank and a broadcast, twice that in
             an all-reduce. Counted at the collectives of one step, whoever asks for them; beside it the ratio to the plain
             step's
    vectors  collectives of that step that carry more than a few numbers, sharp / plain
    numbers  those that carry one or a few: losses, norms, products, overflow flags
    extra    (peak - the plain step's peak) / bytes of what a rank holds of the weights: all of them under DDP and ZeRO-0,
             1 / n of them where they or the optimizer's copies are sharded, 2 / n under HSDP. The peak is the largest number
             of bytes in live tensors at any moment of three steps, on the rank where it is largest, temporaries inside of
             kernels included

ddp-device is DDP with ``perturb_over="device"``, hsdp two replicas, each sharded over half of the ranks (four or more), and
-offload ZeRO with the optimizer's copies on the CPU. What is judged:

    sent     ddp-device sends what plain DDP sends, apart from single numbers
    numbers  the losses, norms and products of the formula, each of which travels once, however many parameters there are;
             losses under hsdp twice, along each axis of its mesh
    extra    fsdp2, hsdp and zero3: the vectors that the formula keeps, plus two (the old weights and the shift), all of the
             size of a shard. With a copy of full size anywhere it would be n more

DeepSpeed's buckets hold two layers, as its defaults do in a large model.

    python examples/benchmarks/backends.py
    python examples/benchmarks/backends.py --kinds fsdp2 hsdp zero3 --methods sam gsam --ranks 4
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
from collectives import Call, numbers, sent, vectors
from machine import VERDICT, installed, machine
from ranks import KINDS, Facts, Task, serve

WHOLE, SHARDED = ("ddp", "ddp-device", "zero0"), ("fsdp2", "hsdp", "zero3", "zero3-offload")
"""Where each rank holds all weights and takes norms by itself, and where it holds a shard of everything."""
USUAL = ("ddp", "ddp-device", "fsdp2", "zero0", "zero1", "zero2", "zero3")
CONTEXT = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")


@dataclass(frozen=True)
class Formula:
    """What a method's formula asks for.

    Attributes:
        passes: forward-backward passes, each of which has a loss.
        numbers: collectives of norms and products; products that are known together travel together.
        kept: vectors that it still needs when its last pass runs.
    """

    passes: int
    numbers: int
    kept: int


FORMULAS = {
    "accelerated_gam": Formula(passes=4, numbers=4, kept=3),
    "asam": Formula(passes=2, numbers=1, kept=0),
    "crsam": Formula(passes=3, numbers=1, kept=2),
    "gam": Formula(passes=4, numbers=3, kept=2),
    "gsam": Formula(passes=2, numbers=2, kept=1),
    "lpf": Formula(passes=2, numbers=0, kept=1),
    "rgsam": Formula(passes=2, numbers=2, kept=2),
    "rsam": Formula(passes=2, numbers=1, kept=1),
    "sam": Formula(passes=2, numbers=1, kept=0),
}


@dataclass
class Group:
    """The processes of one loop.

    Attributes:
        task: what they train.
        facts: what each of them found.
        ends: connections to them.
    """

    task: Task
    ends: list[Connection]
    facts: list[Facts] = field(default_factory=list)

    def __call__(self) -> float:
        """One step: the seconds of the slowest rank."""
        time.sleep(0.02)  # the other group's threads go on spinning for a moment
        for end in self.ends:
            end.send(True)
        return max(end.recv() for end in self.ends)

    @property
    def calls(self) -> list[Call]:
        """The collectives of one step; all ranks take part in all of them."""
        return self.facts[0].calls

    @property
    def peak(self) -> int:
        """Bytes on the rank that uses most."""
        return max(facts.peak for facts in self.facts)


@contextmanager
def group(task: Task, ranks: int) -> Iterator[Group]:
    """The processes of one loop, ready for the timed steps."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    pipes = [CONTEXT.Pipe() for _ in range(ranks)]
    processes = [
        CONTEXT.Process(target=serve, args=(there, store.port, rank, ranks, task), daemon=True)
        for rank, (_, there) in enumerate(pipes)
    ]
    for process, (_, there) in zip(processes, pipes, strict=True):
        process.start()
        there.close()
    started = Group(task, [here for here, _ in pipes])
    started.facts += [end.recv() for end in started.ends]
    yield started
    for end in started.ends:
        end.send(False)
    for process in processes:
        process.join()


def ratios(ours: Group, theirs: Group, pairs: int) -> list[float]:
    """Ratios of steps taken in turns, after one pair that does not count."""
    found = []
    for i in range(pairs + 1):
        second = theirs() if i % 2 else 0.0
        first = ours()
        found.append(first / (second or theirs()))
    return found[1:]


def quartiles(values: Sequence[float]) -> list[float]:
    """The quartiles, the median in the middle."""
    return list(values) * 3 if len(values) == 1 else statistics.quantiles(values, n=4, method="inclusive")


def row(sharp: Group, plain: Group, times: Sequence[float]) -> dict[str, Any]:
    """One method on one backend against the plain step there."""
    kind, method, ranks = sharp.task.kind, sharp.task.method, len(sharp.ends)
    assert method is not None
    formula, weights = FORMULAS[method], plain.facts[0].weights
    held = weights / (1 if kind in WHOLE else ranks // 2 if kind == "hsdp" else ranks)
    extra = (sharp.peak - plain.peak) / held
    sends = {name: sent(vectors(calls)) for name, calls in (("sharp", sharp.calls), ("plain", plain.calls))}
    singles = len(numbers(sharp.calls)), len(numbers(plain.calls))
    losses = formula.passes * (2 if kind == "hsdp" else 1)
    allowed = 0 if kind == "ddp-device" else losses + (0 if kind in WHOLE else formula.numbers)
    return {
        "kind": kind,
        "method": method,
        "ratio": quartiles(times),
        "times": list(times),
        "sent": sent(sharp.calls),
        "plain_sent": sent(plain.calls),
        "vectors": [len(vectors(sharp.calls)), len(vectors(plain.calls))],
        "numbers": singles,
        "allowed_numbers": singles[1] + allowed,
        "extra": extra,
        "allowed_extra": formula.kept + 2 if kind in SHARDED else None,
        "held": held,
        "within": {
            "sent": sends["sharp"] == sends["plain"] if kind == "ddp-device" else None,
            "numbers": singles[0] <= singles[1] + allowed,
            "extra": extra <= formula.kept + 2 + 0.05 if kind in SHARDED else None,
        },
        "facts": {"sharp": [asdict(facts) for facts in sharp.facts], "plain": [asdict(facts) for facts in plain.facts]},
    }


def line(found: dict[str, Any]) -> str:
    """The same as text."""
    low, ratio, high = found["ratio"]
    more = found["sent"] / found["plain_sent"] if found["plain_sent"] else float("nan")
    verdict = {name: VERDICT[within] for name, within in found["within"].items()}
    allowed = "" if found["allowed_extra"] is None else f"<= {found['allowed_extra']}"
    return (
        f"{found['kind']:13} {found['method']:15} {ratio:5.2f} [{low:.2f}, {high:.2f}] "
        f"{found['sent'] / 1e6:8.2f} x{more:5.2f} {verdict['sent']:6} {found['vectors'][0]:5} / {found['vectors'][1]:<5} "
        f"{found['numbers'][0]:3} / {found['numbers'][1]} {verdict['numbers']:6} "
        f"{found['extra']:6.2f} {allowed:5} {verdict['extra']}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=USUAL, help="zero needs deepspeed")
    parser.add_argument("--methods", nargs="+", choices=FORMULAS, default=["sam", "asam", "gsam", "rsam", "crsam", "gam"])
    parser.add_argument("--ranks", type=int, default=2, help="processes per loop, at least 2")
    parser.add_argument("--pairs", type=int, default=15, help="timed pairs of steps per row")
    parser.add_argument("--width", type=int, default=384, help="of the model")
    parser.add_argument("--depth", type=int, default=24, help="of the model")
    parser.add_argument("--output", type=Path, default=Path("backends.json"), help="where everything goes")
    options = parser.parse_args()
    if options.ranks < 2:
        parser.error(f"--ranks must be at least 2, got {options.ranks}. One process sends nothing; memory.py measures it.")
    if "hsdp" in options.kinds and (options.ranks < 4 or options.ranks % 2):
        parser.error(f"--kinds hsdp needs an even number of --ranks, at least 4, got {options.ranks}. Try --ranks 4.")
    if installed("deepspeed") is None and any(kind.startswith("zero") for kind in options.kinds):
        parser.error("--kinds zero0 to zero3 need DeepSpeed, got none. Run pip install 'hf_sharp[deepspeed]'.")
    return options


def main() -> None:
    """Measure, print the table, and write everything down."""
    options = parse()
    for name, level in {"KINETO_LOG_LEVEL": "9", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        os.environ.setdefault(name, level)  # read by the new processes, whose profilers warn of what is no fault
    CONTEXT.set_forkserver_preload(["torch", "hf_sharp.step"])
    settings = {"ranks": options.ranks, "width": options.width, "depth": options.depth, "pairs": options.pairs}
    result: dict[str, Any] = {"machine": machine("accelerate", "deepspeed") | {"backend": "gloo"}, **settings, "rows": []}
    print(json.dumps({**result["machine"], **settings}))
    print(f"{'kind':13} {'method':15} {'time':18} {'sent, MB':22} {'vectors':13} {'numbers':14} extra")
    for kind in options.kinds:
        with group(Task(kind, None, options.width, options.depth), options.ranks) as plain:
            for method in options.methods:
                with group(Task(kind, method, options.width, options.depth), options.ranks) as sharp:
                    found = row(sharp, plain, ratios(sharp, plain, options.pairs))
                print(line(found), flush=True)
                result["rows"].append(found)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Everything is in {options.output}.")


if __name__ == "__main__":
    main()
