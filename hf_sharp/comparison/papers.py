"""The tables of papers as rows of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_sharp.descriptions import read_yaml

_KEYS = ("dataset", "model", "augmentation", "method")
_ROW = ("table", *_KEYS, "published", "overrides")


@dataclass(frozen=True)
class Row:
    """One cell or several of a paper's table: what was trained, how, and what came out.

    Attributes:
        number: the row in the file, from 1.
        table: the table's number in the paper.
        dataset, model, augmentation, method: names as in the file.
        settings: the training script's settings.
        published: metric to mean, or to mean and standard deviation, in %.
    """

    number: int
    table: int
    dataset: str
    model: str
    augmentation: str
    method: str
    settings: dict[str, Any]
    published: dict[str, list[float]]


def read_rows(file: Path) -> list[Row]:
    """All rows of a file.

    The file maps each name that rows use to settings (under ``names``), has ``rules`` (settings for the rows that match
    ``when``, for all rows without it) and the rows; what comes later wins, a row's own ``overrides`` last.

    Raises:
        ValueError: the file is missing, or a row uses a name or a field that the file does not have.
    """
    if not file.is_file():
        listed = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml"))) or "none"
        raise ValueError(f"paper must be one of {listed}, got {file.stem!r}. Pass e.g. --paper asam.")
    read = read_yaml(file.read_text(encoding="utf-8"), "A paper's tables", "'rows: []'", str(file))
    return [_row(i, row, read) for i, row in enumerate(read["rows"], start=1)]


def read_row(file: Path, number: int) -> Row:
    """The row with this number.

    Raises:
        ValueError: there is none, or as `read_rows`.
    """
    rows = read_rows(file)
    if not 1 <= number <= len(rows):
        raise ValueError(f"row must be from 1 to {len(rows)} for the paper {file.stem!r}, got {number}. Pass e.g. --row 1.")
    return rows[number - 1]


def _row(number: int, row: Mapping[str, Any], read: Mapping[str, Any]) -> Row:
    unknown = next((key for key in row if key not in _ROW), None)
    if unknown is not None:
        raise ValueError(f"Row {number} has no field {unknown!r}. Its fields are {', '.join(_ROW)}.")
    settings: dict[str, Any] = {}
    for key in _KEYS:
        known = read["names"][key]
        if row[key] not in known:
            raise ValueError(f"Row {number} has an unknown {key}, {row[key]!r}. The file knows {', '.join(known)}.")
        settings |= known[row[key]] or {}
    for rule in read.get("rules", []):
        if all(_matches(row[key], wanted) for key, wanted in rule.get("when", {}).items()):
            settings |= rule["set"]
    settings |= row.get("overrides") or {}
    names = {key: row[key] for key in _KEYS}
    return Row(number, row["table"], settings=settings, published=row["published"], **names)


def _matches(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted
