"""Which rows of a data set are measured, and which of a model's classes theirs are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def numbers_of(names: Sequence[str], config: Any) -> list[int]:
    """A model's number for each class of a data set: by name, or its own where the model's classes have no names.

    Args:
        names: the data set's classes in order.
        config: the model's, with ``id2label``.

    Raises:
        ValueError: the model lacks a class.
    """
    from hf_sharp.evaluation.robustness import class_numbers

    known = [str(config.id2label[i]) for i in range(config.num_labels)]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in known) and len(names) <= len(known):
        return list(range(len(names)))
    return class_numbers(names, known)


def first_rows(labels: Sequence[int], names: Sequence[str], samples: int, split: str) -> range:
    """The first so many rows.

    Raises:
        ValueError: the rows are sorted by class, and so the first ones miss some.
    """
    there, first = set(labels), set(labels[:samples])
    is_sorted = sum(a != b for a, b in pairwise(labels)) == len(there) - 1
    if is_sorted and first != there:
        missing = [names[i] for i in sorted(there - first)]
        listed = ", ".join(repr(name) for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"samples must reach every class of {split!r}, whose rows are sorted by class, got {samples}, which leave out "
            f"{listed}. Pass samples={len(labels)}, or a data set whose rows are mixed."
        )
    return range(min(samples, len(labels)))
