"""Live memory, from the events of PyTorch's allocator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MEASURED = "measured steps"
"""What the measured span is called in the profile."""


def live_bytes(events: list[Any]) -> Iterator[int]:
    """The bytes in live tensors at the start of the measured steps and after each event of the allocator in them.

    Args:
        events: the profiler's. A release of memory from before the profile has 0 bytes in it.
    """
    span = next(event for event in events if event.name() == MEASURED)
    start, end = span.start_ns(), span.start_ns() + span.duration_ns()
    moments = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    total = sum(change for moment, change in moments if moment < start)
    yield total
    for moment, change in moments:
        if start <= moment <= end:
            total += change
            yield total
