"""Measure checkpoints: numbers as JSON and a table, and figures as PNG and SVG.

    python examples/measure/measure_checkpoint.py runs/vit/end --data digits --quantities trace "{name: sharpness, rho: 0.1}"
    python examples/measure/measure_checkpoint.py AdamW=runs/plain/end SAM=runs/sam/end --data uoft-cs/cifar10 \
        --splits train test --quantities configs/measure/report.yaml --output_dir report
    accelerate launch --num_processes 2 examples/measure/measure_checkpoint.py microsoft/resnet-50 --data my/images

A checkpoint is a folder or a model of the Hub, with a name of its own in front of "=" where several are compared. Names like
SAM@50 and SAM@100 are stages of one run, which the histogram of eigenvalues shows below each other.

Each result is written when it is there. Where a quantity has no value for a checkpoint, the others are measured all the
same; the end names it with the reason, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_sharp.descriptions import read_yaml
from hf_sharp.leaving import leave
from hf_sharp.measure import QUANTITIES, AbstractQuantity, Found, How, LossBetween, Ranks, Result, Surface, loss_surface
from hf_sharp.measure import figures as draw
from hf_sharp.measure.callback import named
from hf_sharp.measure.checkpoints import TASKS, Source
from hf_sharp.measure.landscape import way_to
from hf_sharp.measure.records import put, write_json
from hf_sharp.measure.tables import missing, table

Results = dict[str, dict[str, dict[str, Any]]]
"""By split, quantity and checkpoint."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="[NAME=]CHECKPOINT")
    parser.add_argument("--data", required=True, help="a data set of the Hub, a folder, or digits")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--splits", nargs="+", default=["train"], help="of the data set (train)")
    parser.add_argument(
        "--quantities", nargs="+", default=["trace"], help=f"names, YAML, or a file of YAML; of {', '.join(QUANTITIES)}"
    )
    parser.add_argument("--samples", type=int, default=512, help="the first so many of each split (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="samples per forward pass (%(default)s)")
    parser.add_argument("--config", help="the Hub data set's configuration")
    parser.add_argument("--text_column", default="text", help="%(default)s")
    parser.add_argument("--label_column", help="of classes, or of a seq2seq model's target texts (label)")
    parser.add_argument("--statistics", default="running", help="BatchNorm's: running or batch (%(default)s)")
    parser.add_argument("--hvp", default="exact", help="Hessian products: exact or difference (%(default)s)")
    parser.add_argument("--step", type=float, help="length of the differences (by the precision and the weights)")
    parser.add_argument("--perturb", nargs="+", help="patterns of the parameters that count (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's own)")
    parser.add_argument("--output_dir", type=Path, default=Path("sharpness"))
    return parser.parse_args(given)


def quantities(given: Sequence[str]) -> dict[str, AbstractQuantity]:
    """The quantities that are asked for, by name."""
    if len(given) == 1 and given[0].endswith((".yaml", ".yml")):
        file = Path(given[0])
        if not file.is_file():
            raise ValueError(f"quantities must be names or an existing YAML file, got {given[0]!r}. Write e.g. trace.")
        return named(read_yaml(file.read_text(encoding="utf-8"), "A file of quantities", "'- trace'", given[0]))
    return named(given)


def checkpoints(given: Sequence[str]) -> dict[str, str]:
    """Where the checkpoints are, by name."""
    out = {}
    for text in given:
        name, _, place = text.partition("=")
        whole = not place or Path(text).is_dir()  # a folder's own name may have a "="
        out |= {Path(text).name: text} if whole else {name: place}
    if len(out) < len(given):
        raise ValueError(
            f"Each checkpoint must have a name of its own, got {', '.join(given)}. Write e.g. SAM=runs/sam/end."
        )
    return out


def measure(args: argparse.Namespace) -> Results:
    """Measures everything; all processes together. The first one writes each result when it is there."""
    asked, places = quantities(args.quantities), checkpoints(args.checkpoints)
    how = How(statistics=args.statistics, hvp=args.hvp, step=args.step, perturb=args.perturb, seed=args.seed)
    source = Source(
        args.data,
        args.task,
        args.samples,
        args.batch_size,
        args.text_column,
        args.label_column,
        config=args.config,
    )
    state, ranks = PartialState(), Ranks.present()
    loaders = {name: checked(source, place, args.splits, asked, how) for name, place in places.items()}
    out: Results = {split: {label: {} for label in asked} for split in args.splits}
    steps = len(places) * len(args.splits) * len(asked)
    with tqdm(total=steps, disable=ranks.rank > 0) as bar:
        for name, place in places.items():
            model = source.model(place).to(state.device)
            for split in args.splits:
                with opened(model, loaders[name][split], how) as f:
                    for label, quantity in asked.items():
                        bar.set_description(f"{name}, {split}: {label}")
                        found = taken(quantity, f).to_dict()
                        out[split][label][name] = found | {"checkpoint": place, "source": asdict(source), "split": split}
                        if ranks.rank == 0:
                            write_json(args.output_dir / "results.json", out)
                        bar.update()
    return out


def checked(
    source: Source, place: str, splits: Sequence[str], asked: Mapping[str, AbstractQuantity], how: How
) -> dict[str, DataLoader]:
    """The samples of each split for a checkpoint, after a look at all that can be wrong with it and needs no pass.

    Raises:
        ValueError: something is.
    """
    model = source.model(place)
    out = {}
    for split in splits:
        out[split] = source.loader(place, split)
        with loss_surface(model, out[split], how=how, samples=1, check=False) as f:
            for quantity in asked.values():
                quantity.check(f)
                if isinstance(quantity, LossBetween):
                    way_to(f, quantity.checkpoint)
    return out


@contextmanager
def opened(model: PreTrainedModel, loader: DataLoader, how: How) -> Iterator[Surface | ValueError]:
    """The loss to be measured, or why there is none."""
    with ExitStack() as stack:
        f: Surface | ValueError
        try:
            f = stack.enter_context(loss_surface(model, loader, how=how))
        except ValueError as error:
            f = error
        yield f


def taken(quantity: AbstractQuantity, f: Surface | ValueError) -> Result:
    """The quantity's result; one without values, which says why, where it has none."""
    try:
        if isinstance(f, ValueError):
            raise f
        return quantity.measure(f)
    except ValueError as error:
        return Result(quantity.name, Found({}), dict(vars(quantity)), {"undefined": str(error)})


def figures(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that the results of one split allow, by file name."""
    out: dict[str, Any] = {}
    for label, every in found.items():
        results = {name: result for name, result in every.items() if result["values"]}
        if not results:
            continue
        first = next(iter(results.values()))
        kind = first["quantity"]
        if kind == "top_eigenvalues" and first["settings"]["k"] > 1:
            out[label] = draw.eigenvalues(stages(with_traces(results, found)))
        elif kind == "spectral_density":
            out[label] = draw.density(results)
        elif kind == "gradient_cosine":
            out[label] = draw.smoothed(results, "cosine of the two gradients")
        elif kind == "ascent_loss":
            out[label] = draw.smoothed(results, "loss after the ascent step", logarithmic=True)
        elif kind == "extrema":
            out[label] = draw.extrema(results)
        elif kind == "loss_line":
            out[label] = draw.line(results)
        elif kind == "loss_plane":
            out[f"{label}_contours"], out[f"{label}_surfaces"] = draw.contours(results), draw.surfaces(results)
        elif kind == "loss_between":
            out[label] = draw.between(results, {name: (name, _short(r["settings"])) for name, r in results.items()})
    return out


def with_traces(results: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Results with the trace of the same checkpoint, where some quantity has it."""
    traces = {name: r["values"]["trace"] for each in found.values() for name, r in each.items() if "trace" in r["values"]}
    return {
        name: result | {"values": result["values"] | ({"trace": traces[name]} if name in traces else {})}
        for name, result in results.items()
    }


def _short(settings: Mapping[str, Any]) -> str:
    return "/".join(Path(settings["checkpoint"]).parts[-2:])


def stages(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Results by stage and run, for names like SAM@100."""
    out: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        run, _, stage = name.partition("@")
        out.setdefault(stage, {})[run] = result
    return out


def write(found: Results, folder: Path) -> None:
    """Writes and prints tables, and draws figures."""
    for split, results in found.items():
        text = table(results)
        put(folder / f"table_{split}.md", lambda part, text=text: part.write_text(text + "\n", encoding="utf-8"))
        print(f"\n{split}\n\n{text}")
        for name, figure in figures(results).items():
            draw.save(figure, folder / f"{name}_{split}")
    print(f"\nNumbers, tables and figures: {folder}", flush=True)


def main(given: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    args = arguments(given)
    if args.threads:
        torch.set_num_threads(args.threads)
    found, ranks = measure(args), Ranks.present()
    lines = missing(found)
    if ranks.rank == 0:
        write(found, args.output_dir)
        if lines:
            print("Not everything has a value:", *lines, sep="\n", file=sys.stderr, flush=True)
    if lines:
        PartialState().wait_for_everyone()  # a launcher ends all processes when one of them fails
        sys.exit(1)


if __name__ == "__main__":
    main()
    leave()
