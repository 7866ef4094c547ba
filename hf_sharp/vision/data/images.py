"""Images by their number: decoded in memory, or decoded when they are asked for."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from datasets import Dataset

_DEEP = ("I", "F", "I;16", "I;16B", "I;16L")


class AbstractImages(ABC):
    """Images (3, height, width) of type uint8, in RGB."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> Tensor: ...

    @abstractmethod
    def chosen(self, rows: Sequence[int]) -> AbstractImages:
        """The images of these rows, in this order."""


@dataclass(frozen=True)
class StoredImages(AbstractImages):
    """Images that lie in memory: one tensor (number, 3, height, width), or a list where their sizes differ."""

    pixels: Tensor | list[Tensor]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i]

    def chosen(self, rows: Sequence[int]) -> StoredImages:
        if isinstance(self.pixels, Tensor):
            return StoredImages(self.pixels[torch.as_tensor(rows, dtype=torch.long)])
        return StoredImages([self.pixels[i] for i in rows])

    @classmethod
    def of(cls, images: Iterable[Tensor], number: int, what: str) -> StoredImages:
        """The images, decoded now, behind a progress bar."""
        kept = list(tqdm(images, total=number, desc=f"Decoding {what}", unit=" images", leave=False))
        same = len({x.shape for x in kept}) == 1
        return cls(torch.stack(kept) if same else kept)


@dataclass(frozen=True)
class EncodedImages(AbstractImages):
    """Images in files, or in the rows of a data set, that are decoded each time.

    Args:
        rows: a data set whose image column is not decoded.
        column: that column.
        split: its split, for error messages.
    """

    rows: Dataset
    column: str
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return decoded(self.rows[int(i)][self.column], f"row {i} of {self.split!r}")

    def chosen(self, rows: Sequence[int]) -> EncodedImages:
        return EncodedImages(self.rows.select(list(rows)), self.column, self.split)

    def path(self, i: int) -> str:
        """The name of the image's file; empty where the data set does not keep it."""
        return (self.rows[int(i)][self.column] or {}).get("path") or ""

    def stored(self) -> StoredImages:
        """The same images in memory."""
        return StoredImages.of((self[i] for i in range(len(self))), len(self), f"the {self.split} split")


def decoded(given: dict[str, Any] | None, where: str) -> Tensor:
    """An encoded image as (3, height, width), uint8, RGB.

    Greyscale, palette, CMYK and images with transparency become RGB; more than 8 bits per channel are refused, since their
    range is not known. A photograph is turned as its EXIF orientation says.

    Args:
        given: ``{"bytes": ..., "path": ...}``, of which one may be None.
        where: the row, for error messages.

    Raises:
        ValueError: the image is missing, cut off, too large, of an unknown format, or deeper than 8 bits.
    """
    if given is None or (given.get("bytes") is None and not given.get("path")):
        raise ValueError(f"Each row must have an image, got none in {where}. Drop the row.")
    path = given.get("path")
    where = f"{where}, file {path}" if path else where
    try:
        image: Image.Image = Image.open(io.BytesIO(given["bytes"]) if given.get("bytes") is not None else str(path))
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Images must be whole and readable, got {_reason(error)!r} in {where}. Replace or drop it."
        ) from error
    if image.mode in _DEEP:
        raise ValueError(f"Images must have 8 bits per channel, got mode {image.mode!r} in {where}. Convert it to RGB.")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # where a palette has transparent entries, the way to RGB leads through RGBA
    if image.mode != "RGB":
        image = image.convert("RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def _reason(error: Exception) -> str:
    text = str(error)
    return "an unknown format" if text.startswith("cannot identify image file") else text
