"""Images per second of the plain SGD run beside a bare PyTorch loop, and of the loader alone.

    python examples/classification/speed.py
    python examples/classification/speed.py --model resnet50 --batch 256 --block 50 --workers 8

The Trainer decodes nothing (images of this size are kept decoded in memory) but flips, pads, crops, collates and normalises;
the bare loop has normalised tensors of the same images in memory. Both train in one process, a block of steps each in turn,
and the result is the median over pairs of neighbouring blocks: of the wall's time, and of the process's CPU time, which what
else the machine does disturbs less. On a GPU both use bfloat16 and channels-last; there a block should be much longer than
what the workers prefetch (two batches each). The loader alone is also timed on JPEG files of ImageNet's size.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from hf_sharp.vision.data.augmentation import AugmentationArguments, training_transform
from hf_sharp.vision.data.batches import Collator, ImageDataset
from hf_sharp.vision.data.images import EncodedImages, StoredImages
from hf_sharp.vision.data.preprocessing import Preprocessing
from hf_sharp.vision.data.sources import DataArguments, load_task
from hf_sharp.vision.data.splits import Split
from hf_sharp.vision.models import build
from hf_sharp.vision.training import ClassificationTrainer, OptimizationArguments

AUGMENTATIONS = [["none"], ["basic"], ["basic", "cutout"], ["basic", "randaugment"], ["basic", "autoaugment"]]
CLASSES = [str(i) for i in range(10)]
PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
LARGE = Preprocessing(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class BareLoop:
    """A model that trains on tensors in memory."""

    def __init__(self, model: PreTrainedModel, images: Tensor, labels: Tensor, batch: int) -> None:
        self.model, self.images, self.labels, self.batch, self.at = model, images, labels, batch, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step(self) -> None:
        """One step of SGD."""
        rows = slice(self.at, self.at + self.batch)
        self.at = (self.at + self.batch) % (len(self.images) - self.batch + 1)
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.images.is_cuda):
            loss = functional.cross_entropy(self.model(self.images[rows]).logits, self.labels[rows])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Turns(TrainerCallback):
    """Lets the bare loop have a block of steps after each block of the Trainer's, and takes the times of both."""

    def __init__(self, bare: BareLoop, block: int) -> None:
        self.bare, self.block = bare, block
        self.start = Moment.now()
        self.pairs: list[tuple[Moment, Moment]] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After a block: times it, runs the bare block and times that. The first pair warms up and does not count."""
        if state.global_step % self.block:
            return
        own = Moment.now() - self.start
        start = Moment.now()
        for _ in range(self.block):
            self.bare.step()
        bare = Moment.now() - start
        if state.global_step > self.block:
            self.pairs.append((own, bare))
            print(f"step {state.global_step}: {own.wall / self.block:.3f} s and {bare.wall / self.block:.3f} s", flush=True)
        self.start = Moment.now()


@dataclass(frozen=True)
class Moment:
    """Seconds of the wall's clock and of this process's work."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        """The time, when the device has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Moment) -> Moment:
        return Moment(self.wall - other.wall, self.cpu - other.cpu)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The ratio, its quartiles, and images per second."""
    split = images(args)
    cuda = torch.cuda.is_available()
    augmented = ImageDataset(split, training_transform(AugmentationArguments(["basic"]), 32, PREPROCESSING.fill))
    collator = Collator(PREPROCESSING, channels_last=cuda)
    set_seed(0)
    model, twin = build(args.model, CLASSES), build(args.model, CLASSES)
    device = torch.device("cuda" if cuda else "cpu")
    for one in (model, twin):
        one.to(device, memory_format=torch.channels_last if cuda else torch.contiguous_format)
    ready = PREPROCESSING.normalised(torch.stack([split.images[i] for i in range(len(split.images))])).to(device)
    if cuda:
        ready = ready.contiguous(memory_format=torch.channels_last)
    turns = Turns(BareLoop(twin.train(), ready, split.labels.to(device), args.batch), args.block)
    settings = TrainingArguments(
        output_dir=str(args.output_dir),
        max_steps=args.block * (args.pairs + 1),
        per_device_train_batch_size=args.batch,
        learning_rate=0.1,
        weight_decay=5e-4,
        max_grad_norm=0,
        bf16=cuda,
        dataloader_num_workers=args.workers,
        dataloader_pin_memory=cuda,
        dataloader_drop_last=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = ClassificationTrainer(
        model=model,
        args=settings,
        train_dataset=augmented,
        data_collator=collator,
        training_collator=collator,
        optimization=OptimizationArguments(),
        callbacks=[turns],
    )
    trainer.train()
    per_block = args.block * args.batch
    return {
        "speed in ratio to the bare loop": spread([bare.wall / own.wall for own, bare in turns.pairs]),
        "the same in CPU time": spread([bare.cpu / own.cpu for own, bare in turns.pairs]),
        "images per second": median(per_block / own.wall for own, _ in turns.pairs),
        "bare loop's": median(per_block / bare.wall for _, bare in turns.pairs),
        "loader's, in one process": {
            **{" ".join(names): loader_speed(split, names, args.batch, PREPROCESSING) for names in AUGMENTATIONS},
            "decoding, inception": loader_speed(photographs(args.images), ["inception"], args.batch, LARGE),
        },
        "model": args.model,
        "batch": args.batch,
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
    }


def spread(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = quantiles(ratios, n=4)
    return {"median": round(middle, 3), "lower quartile": round(low, 3), "upper quartile": round(high, 3)}


def loader_speed(split: Split, names: list[str], batch: int, preprocessing: Preprocessing) -> float:
    """Images per second of CPU time of decoding, where they are encoded, augmentation, collation and normalisation."""
    data = ImageDataset(split, training_transform(AugmentationArguments(names), preprocessing.size, preprocessing.fill))
    loader = DataLoader(data, batch, shuffle=True, collate_fn=Collator(preprocessing))
    start = time.process_time()
    for _ in loader:
        pass
    return round(len(data) / (time.process_time() - start))


def images(args: argparse.Namespace) -> Split:
    """The first training images of a data set, or random ones."""
    if args.dataset_name is not None:
        return load_task(DataArguments(dataset_name=args.dataset_name, train_limit=args.images)).train
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (args.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(StoredImages(pixels), torch.randint(10, (args.images,), generator=generator), "train")


def photographs(number: int) -> Split:
    """As many JPEG files of ImageNet's usual size, 500x375, of eight blurred random images."""
    coarse = torch.rand((8, 3, 24, 32), generator=torch.Generator().manual_seed(0))
    pixels = functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1)
    files = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=90)
        files.append({"bytes": file.getvalue(), "path": None})
    rows = Dataset.from_dict({"image": [files[i % len(files)] for i in range(number)]})
    return Split(EncodedImages(rows, "image", "train"), torch.zeros(number, dtype=torch.long), "train")


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name of the catalogue (%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images per step (%(default)s)")
    parser.add_argument("--block", type=int, default=2, help="steps in turn (%(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of blocks (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that augment; 0: the training process (0)")
    parser.add_argument("--images", type=int, default=2048, help="how many images (%(default)s)")
    parser.add_argument("--dataset_name", help="a data set with images of 32x32 pixels (random images)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own number)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/speed"), help="where the result goes (%(default)s)")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    found = measure(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "speed.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
