"""What all tests share."""

from __future__ import annotations

import gc
import os

# Read when torch and the Hub's client are imported, here and in the processes that tests start. The models are so small
# that a second thread only waits for the first one.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def pytest_collection_finish() -> None:
    """Keep what was imported out of the collections of garbage, one of which starts every Trainer's training."""
    gc.collect()
    gc.freeze()
