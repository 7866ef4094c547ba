"""Images as other checkpoints' processors make them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("PIL")

from torchvision.transforms.functional import to_pil_image
from transformers import BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

from hf_sharp.vision.data.augmentation import AugmentationArguments
from hf_sharp.vision.data.images import StoredImages
from hf_sharp.vision.data.preprocessing import Preprocessing, preprocessing_for
from hf_sharp.vision.data.processing import ProcessedImages, model_size, normalisation
from hf_sharp.vision.data.splits import Split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROCESSORS = [
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, image_mean=MEAN, image_std=STD),
    BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
    ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
]


def split(height: int, width: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    return Split(StoredImages(pixels), torch.zeros(2, dtype=torch.long), "test")


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: type(p).__name__)
def test_images_are_the_processors(processor: Any) -> None:
    images = split(50, 40)
    made = ProcessedImages(images, processor)[1]["pixel_values"]
    assert made.shape == (3, 32, 32)
    picture = to_pil_image(images.images[1])
    assert torch.equal(made, processor(picture, return_tensors="pt")["pixel_values"][0])
    assert model_size(processor) == 32


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: type(p).__name__)
def test_images_of_the_models_size_are_not_resized_where_they_come_cut_out(processor: Any) -> None:
    images = split(32, 32)
    made = ProcessedImages(images, processor, ready=True)[0]["pixel_values"]
    mean, std = normalisation(processor)
    expected = Preprocessing(32, mean, std).normalised(images.images[0][None])[0]
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    other = ProcessedImages(split(50, 40), processor, ready=True)[0]["pixel_values"]
    assert other.shape == (3, 32, 32)


def test_images_of_timms_processor() -> None:
    pytest.importorskip("timm")
    from transformers import TimmWrapperImageProcessor

    config = {"input_size": (3, 32, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 0.8}
    processor = TimmWrapperImageProcessor({**config, "interpolation": "bicubic", "crop_mode": "center"})
    images = split(32, 32)
    picture = to_pil_image(images.images[0])
    made, ready = (ProcessedImages(images, processor, ready=ready)[0]["pixel_values"] for ready in (False, True))
    assert torch.equal(made, processor(picture, return_tensors="pt")["pixel_values"][0])
    assert normalisation(processor) == (config["mean"], config["std"])
    expected = Preprocessing(32, config["mean"], config["std"]).normalised(images.images[0][None])[0]
    torch.testing.assert_close(ready, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made, ready, atol=0.1)  # without the protocol's exception the centre is blown up


def test_a_checkpoints_size_and_normalisation_are_the_default() -> None:
    images = split(8, 8).images
    found = preprocessing_for(AugmentationArguments(), images, PROCESSORS[0])
    assert found == Preprocessing(32, MEAN, STD)
    own = AugmentationArguments(image_size=16, image_mean=[0.5, 0.5, 0.5])
    found = preprocessing_for(own, images, PROCESSORS[2])
    assert found == Preprocessing(16, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def test_the_saved_processor_resizes_as_the_test_transform() -> None:
    preprocessing = Preprocessing(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resize=20)
    images = split(50, 40)
    ours = preprocessing.normalised(preprocessing.test_transform()(images.images[0])[None])[0]
    theirs = ProcessedImages(images, preprocessing.processor())[0]["pixel_values"]
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
