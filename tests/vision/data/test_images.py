"""Images of every kind, readable or not."""

from __future__ import annotations

import io

import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from hf_sharp.vision.data.images import StoredImages, decoded


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def picture(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (5, 3), color)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (picture("RGB", (10, 20, 30)), "PNG", (10, 20, 30)),
        (picture("L", 77), "PNG", (77, 77, 77)),
        (picture("LA", (77, 0)), "PNG", (77, 77, 77)),
        (picture("RGBA", (10, 20, 30, 0)), "PNG", (10, 20, 30)),
        (picture("1", 1), "PNG", (255, 255, 255)),
        (picture("CMYK", (255, 0, 0, 0)), "TIFF", (0, 255, 255)),
        (picture("RGB", (10, 200, 30)).quantize(4), "PNG", (10, 200, 30)),
        (picture("L", 120), "JPEG", (120, 120, 120)),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, kind: str, expected: tuple[int, int, int]) -> None:
    pixels = decoded({"bytes": encoded(image, kind), "path": None}, "row 0 of 'train'")
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 3, 5)
    assert pixels.is_contiguous()
    assert tuple(pixels[:, 1, 2].tolist()) == expected


def test_rows_and_columns_are_where_they_were() -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((3, 1), (1, 2, 3))
    pixels = decoded({"bytes": encoded(image), "path": None}, "")
    assert pixels[:, 1, 3].tolist() == [1, 2, 3]
    assert pixels.sum() == 6


CUT = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")[:700]


def test_an_image_that_is_cut_off() -> None:
    with pytest.raises(ValueError, match=r"got 'image file is truncated .* in row 7, file cat\.jpg\. Replace or drop it\."):
        decoded({"bytes": CUT, "path": "cat.jpg"}, "row 7")


def test_stored_images_of_one_size_and_of_several() -> None:
    one = [torch.full((3, 4, 4), i, dtype=torch.uint8) for i in range(3)]
    same = StoredImages.of(iter(one), 3, "images")
    assert isinstance(same.pixels, torch.Tensor)
    assert torch.equal(same.chosen([2, 0])[0], one[2])
    several = StoredImages.of(iter([*one, torch.zeros(3, 5, 5, dtype=torch.uint8)]), 4, "images")
    assert isinstance(several.pixels, list)
    assert several.chosen([3])[0].shape == (3, 5, 5)
    assert len(several) == 4


def test_a_photograph_is_turned_as_its_orientation_says() -> None:
    pixels = torch.zeros(3, 8, 16, dtype=torch.uint8)
    pixels[:, :, :8] = 255  # bright on the left
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    turned = decoded({"bytes": stream.getvalue(), "path": None}, "row 0")
    assert turned.shape == (3, 16, 8)
    assert int(turned[0, 0, 0]) == 255
    assert int(turned[0, 15, 0]) == 0


def test_too_large_an_image_is_refused_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (100, 100)).save(stream, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"could be decompression bomb.* in row 7 of 'train', file big\.png"):
        decoded({"bytes": stream.getvalue(), "path": "big.png"}, "row 7 of 'train'")
