"""The toy figures of the papers: where SAM and ASAM go, maximisation regions, zeroth- against first-order flatness.

python examples/measure/toys.py --output_dir sharpness
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_sharp import ASAM, SAM
from hf_sharp.measure import figures as draw
from hf_sharp.measure import toys

METHODS = {"SAM, rho 0.05": SAM(rho=0.05), "ASAM, rho 0.5": ASAM(rho=0.5, eta=0.0)}
HILLS = {"(a) many minima within the radius": toys.MANY_MINIMA, "(b) one minimum": toys.ONE_MINIMUM}


def main(given: Sequence[str] | None = None) -> None:
    """Draws the three figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("sharpness"))
    folder: Path = parser.parse_args(given).output_dir
    torch.set_num_threads(1)
    paths = {name: [toys.trajectory(start, method) for start in toys.VALLEY_STARTS] for name, method in METHODS.items()}
    draw.save(draw.trajectories(paths), folder / "trajectories")
    first, second = toys.REGION_POINTS
    found = {name: (toys.maximum(region, first), toys.maximum(region, second)) for name, region in toys.REGIONS.items()}
    draw.save(draw.regions(found), folder / "regions")
    pairs = {name: [(hill, *toys.flatness_of(hill)) for hill in hills] for name, hills in HILLS.items()}
    draw.save(draw.hills(pairs), folder / "hills")
    print(f"trajectories, regions and hills as PNG and SVG: {folder}")


if __name__ == "__main__":
    main()
