"""Augmentation: shapes, what may move, and what labels become."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchvision")

from hf_sharp.vision.data.augmentation import AugmentationArguments, Cutout, mixing, training_transform
from hf_sharp.vision.data.batches import Collator
from hf_sharp.vision.data.images import StoredImages
from hf_sharp.vision.data.preprocessing import Preprocessing, moments, preprocessing_for
from hf_sharp.vision.data.processing import model_size, normalisation

GREY = (100, 110, 120)
PLAIN = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def noise(size: int) -> torch.Tensor:
    return torch.randint(256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "names",
    [
        ["none"],
        ["basic"],
        ["resize"],
        ["inception"],
        ["basic", "cutout"],
        ["basic", "randaugment"],
        ["basic", "autoaugment"],
        ["inception", "randaugment", "mixup"],
        ["basic", "autoaugment", "cutmix"],
    ],
)
@pytest.mark.parametrize("given", [24, 32, 40])
def test_every_image_becomes_one_of_the_models_size(names: list[str], given: int) -> None:
    transform = training_transform(AugmentationArguments(names), 32, GREY)
    for _ in range(3):
        image = transform(noise(given))
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.uint8


def test_without_augmentation_an_image_stays_as_it_is() -> None:
    assert torch.equal(training_transform(AugmentationArguments(), 32, GREY)(noise(32)), noise(32))


def test_basic_is_a_flip_and_a_crop_of_the_padded_image() -> None:
    torch.manual_seed(0)
    image, seen = noise(8), set()
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    crops = {}
    for flipped in (False, True):
        source = padded.flip(2) if flipped else padded
        for y in range(9):
            for x in range(9):
                crops[source[:, y : y + 8, x : x + 8].numpy().tobytes()] = (flipped, y, x)
    transform = training_transform(AugmentationArguments(["basic"]), 8, GREY)
    for _ in range(2000):
        seen.add(crops[transform(image).numpy().tobytes()])
    assert len(seen) == 162  # all of them, flipped and not


def test_cutout_is_a_square_cut_off_at_the_edges() -> None:
    torch.manual_seed(0)
    areas = set()
    for _ in range(300):
        image = Cutout(4, GREY)(torch.zeros(3, 8, 8, dtype=torch.uint8))
        inside = (image == torch.tensor(GREY, dtype=torch.uint8).view(3, 1, 1)).all(0)
        assert (image[:, ~inside] == 0).all()
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        assert inside.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1 <= 4
        areas.add((len(rows), len(columns)))
    assert (4, 4) in areas
    assert (2, 2) in areas


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_images(kind: str) -> None:
    torch.manual_seed(0)
    mixed = mixing(AugmentationArguments([kind], mixup_alpha=1.0), classes=4)
    assert mixed is not None
    items = [{"pixel_values": torch.full((3, 8, 8), 60 * i, dtype=torch.uint8), "labels": i} for i in range(4)]
    batch = Collator(PLAIN, mixed, classes=4)(items)
    images, labels = batch["pixel_values"], batch["labels"]
    assert labels.shape == (4, 4)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    level = PLAIN.normalised(torch.stack([item["pixel_values"] for item in items]))[:, 0, 0, 0]
    torch.testing.assert_close(images.mean((1, 2, 3)), labels @ level)  # so many parts of each image as of its label
    assert ((labels > 0) & (labels < 1)).any()


def test_share_of_mixed_batches() -> None:
    torch.manual_seed(0)
    args = AugmentationArguments(["mixup"], mixup_alpha=1.0)
    collate = Collator(PLAIN, mixing(args, 2), probability=0.25, classes=2)
    items = [{"pixel_values": torch.zeros(3, 8, 8, dtype=torch.uint8), "labels": i} for i in range(2)]
    found = [collate(items)["labels"] for _ in range(400)]
    assert all(x.shape == (2, 2) for x in found)
    assert sum(bool(((x > 0) & (x < 1)).any()) for x in found) / 400 == pytest.approx(0.25, abs=0.07)


def test_normalisation_has_mean_0_and_deviation_1() -> None:
    images = StoredImages(torch.stack([noise(16).clamp(max=60 * (i + 1)) for i in range(4)]))
    mean, std = moments(images)
    normal = Preprocessing(16, mean, std).normalised(torch.stack([images[i] for i in range(4)]))
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    found = preprocessing_for(AugmentationArguments(), images)
    assert (found.size, found.mean, found.resize) == (16, mean, None)
    assert preprocessing_for(AugmentationArguments(image_size=8), images).size == 8


@pytest.mark.parametrize("resize", [None, 36])
def test_image_processor_does_the_same(resize: int | None) -> None:
    preprocessing = Preprocessing(32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), resize)
    assert model_size(preprocessing.processor()) == 32
    assert normalisation(preprocessing.processor()) == (preprocessing.mean, preprocessing.std)
    image = noise(32 if resize is None else 36)
    ours = preprocessing.normalised(preprocessing.test_transform()(image)[None])
    theirs = preprocessing.processor()(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
