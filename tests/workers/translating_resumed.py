"""What each rank of the test of a run that goes on in mid-epoch runs.

    torchrun --nproc-per-node 2 -m tests.workers.translating_resumed FOLDER

Writes the weights at the end of a run that was not interrupted, ``whole-RANK.pt``, and of one that was, ``resumed-RANK.pt``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.translation.test_batches import trained


def main() -> None:
    """Trains as the test in one process does."""
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    torch.save(trained(folder / "whole"), folder / f"whole-{rank}.pt")
    trained(folder / "cut", stop=7)
    torch.save(trained(folder / "cut", resume=True), folder / f"resumed-{rank}.pt")


if __name__ == "__main__":
    main()
