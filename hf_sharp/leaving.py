"""The end of a process that is one of several."""

from __future__ import annotations

import atexit
import gc
import io
import os
from contextlib import suppress

import torch.distributed as dist


def leave() -> None:
    """Leave torch's process group, where there is one, and let this process end when its exit handlers have run.

    To be called last, by a process that has succeeded: its exit status becomes 0. After a failure the others may still be
    waiting in a collective, which leaving would join.

    A thread of gloo needs the interpreter to let go of the tensors of its last collective. Before Python 3.14 it is killed
    when it asks while the interpreter closes, and takes the process with it (SIGABRT), after all is done. A model under DDP
    or FSDP holds the group, so that destroying it does not end its threads. Hence with gloo the interpreter is not closed.
    """
    if not dist.is_initialized():
        return
    gloo = "gloo" in dist.get_backend_config()
    dist.destroy_process_group()
    if gloo:
        atexit.register(_end)


def _end() -> None:
    """What Python does at its end, up to where it closes the interpreter."""
    atexit.unregister(_end)
    atexit._run_exitfuncs()
    for file in gc.get_objects():
        if issubclass(type(file), io.IOBase):
            with suppress(ValueError):  # it is closed, or detached
                file.flush()  # else a file that a program left open would lose its last lines
    os._exit(0)
