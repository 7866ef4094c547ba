"""Draw what a `SharpnessCallback` kept: values over the epochs, training set on the left axis, test set on the right.

python examples/measure/evolution.py AdamW=runs/plain/history.json SAM=runs/sam/history.json --values trace top_eigenvalue
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_sharp.measure import figures as draw
from hf_sharp.measure.callback import read_history

VALUES = ["top_eigenvalue", "trace", "normalized_trace", "approximation_ratio"]


def main(given: Sequence[str] | None = None) -> None:
    """Draws one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("histories", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--values", nargs="+", default=VALUES, help=f"one panel each ({' '.join(VALUES)})")
    parser.add_argument("--loaders", nargs=2, default=["train", "test"], help="left and right axis (train test)")
    parser.add_argument("--output_dir", type=Path, default=Path("sharpness"))
    args = parser.parse_args(given)
    histories = {}
    for text in args.histories:
        name, _, file = text.rpartition("=")
        if not name or not Path(file).is_file():
            raise ValueError(
                f"Each history must be NAME=FILE with an existing file, got {text!r}. Write e.g. SAM=history.json."
            )
        histories[name] = read_history(Path(file))
    figure = draw.evolution(histories, args.values, tuple(args.loaders))
    print(*draw.save(figure, args.output_dir / "evolution"), sep="\n")


if __name__ == "__main__":
    main()
