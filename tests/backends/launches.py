"""Launches of the workers, each once per session of tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import sys
import time
from multiprocessing import connection, forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from torch.distributed import TCPStore

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
EXACT = ("ddp", "fsdp2")
"""Those that train in float64 here; DeepSpeed keeps float32."""
FORKS = multiprocessing.get_context("forkserver")
"""Workers are forked from a process that has done the imports that they share: these take longer than most of them run."""
FORKS.set_forkserver_preload(["deepspeed", "hf_sharp", "peft", "transformers.trainer"])
ON_CPU = {"DS_ACCELERATOR": "cpu"}


def launch(worker: str, *arguments: str | Path, ranks: int = 2, timeout: float = 900) -> None:
    """Run a worker in processes that have what torchrun tells theirs, and fail with what they said where one fails.

    Where the first argument says ``alone`` there is one process, which is told nothing.
    """
    ranks = 1 if str(arguments[0]).startswith("alone") else ranks
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    words = [f"tests.workers.{worker}", *map(str, arguments)]
    with TemporaryDirectory() as said:
        processes = [
            FORKS.Process(target=_work, args=(words, _environment(rank, ranks, store.port), f"{said}/{rank}"))
            for rank in range(ranks)
        ]
        with patch.dict(os.environ, ON_CPU):  # the server reads it when it is started, by the first worker
            forkserver.ensure_running()
        try:
            for process in processes:
                process.start()
            end, running = time.monotonic() + timeout, processes
            while running and not any(process.exitcode for process in processes) and time.monotonic() < end:
                connection.wait([process.sentinel for process in running], end - time.monotonic())
                running = [process for process in running if process.is_alive()]
        finally:
            for process in processes:  # where one fails, the others wait for it in vain
                if process.pid is not None:
                    process.kill()
        texts = "".join(file.read_text()[-8000:] for file in sorted(Path(said).iterdir()))
        assert not any(process.exitcode for process in processes), texts
        assert not running, f"{words} takes more than {timeout} s\n{texts}"


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables of one process."""
    alone = {**os.environ, **ON_CPU}
    if ranks == 1:
        return alone
    return alone | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # there is a store at the port; rank 0 need not open one
    }


def _work(words: list[str], environment: dict[str, str], said: str) -> None:
    """Be one process of a worker."""
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = words
    os.chdir(ROOT)
    gc.freeze()  # ZeRO-3 collects garbage for every engine, and would go through all that was imported
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
