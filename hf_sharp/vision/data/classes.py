"""Which classes a data set has, and whether all its parts mean the same by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_sharp.vision.data.labels import check_whole

if TYPE_CHECKING:
    from datasets import Dataset


def class_names(rows: Dataset, label: str, split: str, dataset: str) -> list[str]:
    """The names of the classes in order; numbers where the data set has no names.

    Raises:
        ValueError: the column does not hold class numbers.
    """
    from datasets import ClassLabel, Value

    kind = rows.features[label]
    if isinstance(kind, ClassLabel):
        return list(kind.names)
    if not isinstance(kind, Value) or not str(kind.dtype).startswith(("int", "uint")):
        found = f"{kind.dtype if isinstance(kind, Value) else 'a list'} in column {label!r} of {split!r} in {dataset!r}"
        raise ValueError(f"Labels must be class numbers, got {found}. Set label_column.")
    numbers = rows[label][:]
    check_whole(numbers, label, split, dataset)
    return [str(i) for i in range(max(numbers) + 1)]


def check_same_names(one: list[str], name: str, other: list[str], other_name: str) -> None:
    """Raises ValueError where two parts of a data set have different classes."""
    if one == other:
        return
    differing = sorted(set(one) ^ set(other)) or [a for a, b in zip(one, other, strict=True) if a != b]
    raise ValueError(
        f"{name!r} and {other_name!r} must have the same classes in the same order, got {len(one)} and {len(other)}, which "
        f"differ in {differing[0]!r}. Give both the same classes, or choose another test_split."
    )


def check_files(folder: Path, label: str) -> None:
    """Raises ValueError where the Parquet files of a folder name their classes differently.

    ``load_dataset`` would read all of them with the names of the first one.
    """
    import pyarrow.parquet
    from datasets import ClassLabel, Features

    first: tuple[str, list[str]] | None = None
    for file in sorted(folder.rglob("*.parquet")):
        kind = Features.from_arrow_schema(pyarrow.parquet.read_schema(file)).get(label)
        if isinstance(kind, ClassLabel):
            first = first or (file.name, list(kind.names))
            check_same_names(list(kind.names), file.name, first[1], first[0])


def check_first(labels: Tensor, limit: int | None, classes: list[str], split: str, name: str) -> None:
    """Raises ValueError where the first rows of a split miss a class that others have, as in data sorted by class.

    Args:
        labels: all class numbers of the split (number).
        limit: how many of the first rows are used; None: all.
        classes: the names.
        split: the split's name.
        name: the limit's.
    """
    there = torch.unique(labels).tolist()
    missing = sorted(set(there) - set(torch.unique(labels[:limit]).tolist()))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        named = ", ".join(repr(classes[i]) for i in missing[:3]) + more
        enough = 1 + max(int((labels == i).nonzero()[0]) for i in there)
        raise ValueError(
            f"The first rows must have images of all classes, got {name}={limit} of {split!r} without {named}. "
            f"Pass {name}={enough} or more, or shuffle the data set once."
        )


def check_trained(train: Tensor, test: Tensor, classes: list[str]) -> None:
    """Raises ValueError where a class has test images and no training images."""
    strangers = sorted(set(torch.unique(test).tolist()) - set(torch.unique(train).tolist()))
    if strangers:
        raise ValueError(
            f"Each class of the test images must have training images, got none of {classes[strangers[0]]!r}. "
            "Give both the same classes, or choose another test_split."
        )
