"""Two loops in a process each, which take steps in turns while the other one sleeps."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from loops import PLAIN_LOOPS, Step, TrainerLoop
from settings import method
from subjects import MODELS, Batch, images
from transformers import set_seed

if sys.platform != "win32":
    import resource

CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "win32" or torch.cuda.is_available() else "forkserver")


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
