"""Adam, SAM and ASAM over several seeds, rho chosen on the validation set: the table of the README.

    python examples/translation/table.py configs/multi30k --data my/multi30k --output_dir runs/table

Each run is one call of ``train.py``; a run that is there already is not made again, so the script can be stopped. Its
settings stand beside it in ``flags.json``, and a run of other settings is refused.
The radius of each method is the one with the lowest validation loss of the first seed. Flags that follow go to ``train.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from hf_sharp.evaluation.bleu import compare
from hf_sharp.translation.configuration import flags as expanded
from hf_sharp.translation.files import replaced

TRAIN = Path(__file__).with_name("train.py")


@dataclass(frozen=True)
class Run:
    """One training."""

    folder: Path
    method: str
    rho: float | None
    seed: int

    @property
    def output(self) -> Path:
        """Where it is written."""
        radius = "" if self.rho is None else f"_rho{self.rho:g}"
        return self.folder / f"{self.method}{radius}_seed{self.seed}"

    def made(self, configs: Path, flags: list[str]) -> dict:
        """Its results, after training where there are none yet.

        Raises:
            ValueError: there are results of other settings.
        """
        results, kept = self.output / "results.json", self.output / "flags.json"
        radius = [] if self.rho is None else ["--rho", str(self.rho)]
        words = [str(configs / f"{self.method}.yaml"), *flags, "--seed", str(self.seed), *radius]
        words += ["--save_strategy", "no", "--average", "0"]
        settings = expanded(words)
        if not results.exists():
            with replaced(kept) as new:
                new.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            print(f"{self.output.name} ...", flush=True)
            subprocess.run([sys.executable, TRAIN, *words, "--output_dir", str(self.output)], check=True)
        elif not kept.exists() or json.loads(kept.read_text(encoding="utf-8")) != settings:
            raise ValueError(
                f"A run that is there already must have the same settings, got others in {kept}. "
                "Name another --output_dir, or delete the run's folder."
            )
        return json.loads(results.read_text(encoding="utf-8"))

    def lines(self, name: str) -> list[str]:
        """One of its text files."""
        return (self.output / name).read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Makes the runs and prints the table."""
    parser = argparse.ArgumentParser(description="Adam, SAM and ASAM over several seeds.")
    parser.add_argument("configs", type=Path, help="a folder with defaults.yaml, adam.yaml, sam.yaml and asam.yaml")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/table"), help="where the runs go (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(%(default)s)")
    parser.add_argument("--sam", type=float, nargs="+", default=[0.05, 0.1], help="radii to choose from (%(default)s)")
    parser.add_argument("--asam", type=float, nargs="+", default=[0.1, 0.2, 0.5], help="likewise (%(default)s)")
    args, flags = parser.parse_known_args()
    grid: dict[str, list[float | None]] = {"adam": [None], "sam": args.sam, "asam": args.asam}
    chosen: dict[str, list[Run]] = {}
    for method, radii in grid.items():
        first = [Run(args.output_dir, method, rho, args.seeds[0]) for rho in radii]
        losses = [run.made(args.configs, flags)["validation"]["nll_loss"] for run in first]
        for run, loss in zip(first, losses, strict=True):
            print(f"{run.output.name}: validation nll {loss:.4f}", flush=True)
        best = first[losses.index(min(losses))]
        chosen[method] = [Run(args.output_dir, method, best.rho, seed) for seed in args.seeds]
    print(table(chosen, args.configs, flags))


def table(chosen: dict[str, list[Run]], configs: Path, flags: list[str]) -> str:
    """One row per method; the p-values are of each seed's test set against Adam's of the same seed."""
    rows = ["| method | validation nll | test BLEU | sacreBLEU | time / Adam | p against Adam |", "| --- " * 6 + "|"]
    plain = [run.made(configs, flags) for run in chosen["adam"]]
    for method, runs in chosen.items():
        results = [run.made(configs, flags) for run in runs]
        beam = next(name for name in results[0] if name.startswith("beam"))
        columns = [
            [result["validation"]["nll_loss"] for result in results],
            [result[beam]["token_bleu"] for result in results],
            [result[beam]["bleu"] for result in results],
        ]
        digits = (3, 2, 2)
        texts = [_mean(values, decimals) for values, decimals in zip(columns, digits, strict=True)]
        ratio = mean(result["seconds"] / base["seconds"] for result, base in zip(results, plain, strict=True))
        chance = "-"
        if method != "adam":
            pairs = zip(chosen["adam"], runs, strict=True)
            chance = ", ".join(f"{_chance(base, run):.3f}" for base, run in pairs)
        label = method if runs[0].rho is None else f"{method}, rho {runs[0].rho:g}"
        rows.append(f"| {label} | {' | '.join(texts)} | {ratio:.2f} | {chance} |")
    return "\n".join(rows)


def _chance(base: Run, run: Run) -> float:
    predictions = base.lines("predictions.txt"), run.lines("predictions.txt")
    return compare(*predictions, run.lines("references.txt")).p_value


def _mean(values: list[float], decimals: int) -> str:
    spread = f" +- {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):.{decimals}f}{spread}"


if __name__ == "__main__":
    main()
