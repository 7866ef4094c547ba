"""Data sets that ``fairseq-preprocess`` wrote."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from datasets import Dataset, DatasetDict

from hf_sharp.translation.dictionary import Dictionary

_TYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2", 9: "u4", 10: "u8"}
_MEMORY_MAPPED, _PLAIN = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class IndexedTokens(Sequence[np.ndarray]):
    """The sentences of one ``.bin`` and ``.idx`` pair, as arrays of numbers, each with its ``</s>``.

    Reads what ``--dataset-impl mmap`` (the default), ``cached`` and ``lazy`` write.

    Args:
        prefix: the path without ``.bin``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be; the message names it.
    """

    def __init__(self, prefix: str | Path) -> None:
        self._index, self._data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for file in (self._index, self._data):
            if not file.is_file():
                raise FileNotFoundError(
                    f"A binarised data set needs a .bin and an .idx file, got no {file}. Run fairseq-preprocess again."
                )
        raw = self._index.read_bytes()
        if raw.startswith(_MEMORY_MAPPED):
            self._read_memory_mapped(raw)
        elif raw.startswith(_PLAIN):
            self._read_plain(raw)
        else:
            raise ValueError(
                f"An .idx file must be fairseq's mmap, cached or lazy format, got one that starts with {raw[:9]!r} in "
                f"{self._index}. Run fairseq-preprocess with --dataset-impl mmap."
            )
        size = self._data.stat().st_size
        ends = self._starts + self.sizes
        needed = int(ends.max()) * self._type.itemsize if len(ends) else 0
        if size < needed or (self._starts < 0).any() or (self.sizes < 0).any():
            raise ValueError(
                f"A .bin file must hold what its index says, got {size} bytes of {needed} in {self._data}. "
                "Copy both files anew, or run fairseq-preprocess again."
            )
        self._numbers = np.memmap(self._data, self._type, "r") if size >= self._type.itemsize else np.empty(0, self._type)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, number: slice) -> list[np.ndarray]: ...
    def __getitem__(self, number: int | slice) -> np.ndarray | list[np.ndarray]:
        """One sentence's numbers, (length), or several sentences'."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        start = int(self._starts[number])
        return np.asarray(self._numbers[start : start + int(self.sizes[number])], dtype=np.int64) - self._first

    def _read_memory_mapped(self, raw: bytes) -> None:
        self._first = 0
        version, code, count = struct.unpack("<QBQ", self._piece(raw, 9, 17))
        self._check_head(version, code, count)
        self._type = np.dtype(f"<{_TYPES[code]}")
        self.sizes = np.frombuffer(self._piece(raw, 26, 4 * count), "<i4").astype(np.int64)
        offsets = np.frombuffer(self._piece(raw, 26 + 4 * count, 8 * count), "<i8")
        self._starts = offsets // self._type.itemsize

    def _read_plain(self, raw: bytes) -> None:
        self._first = 1  # as Lua counts, for which the format was made
        version, code, _, count, total = struct.unpack("<QQQQQ", self._piece(raw, 8, 40))
        self._check_head(version, code, count)
        self._type = np.dtype(f"<{_TYPES[code]}")
        width = 8 * (count + 1)
        self._starts = np.frombuffer(self._piece(raw, 48 + width, width), "<i8")[:-1]
        self.sizes = np.frombuffer(self._piece(raw, 48 + 2 * width, 8 * total), "<i8")
        if total != count:
            raise ValueError(f"Sentences must be rows of numbers, got other shapes in {self._index}. Use text data.")

    def _check_head(self, version: int, code: int, count: int) -> None:
        if version != 1 or code not in _TYPES or count > self._index.stat().st_size:
            raise ValueError(
                f"An .idx file must be of version 1 with numbers of a known type, got version {version}, type {code} and "
                f"{count} sentences in {self._index}. Run fairseq-preprocess again."
            )

    def _piece(self, raw: bytes, start: int, size: int) -> bytes:
        if start + size > len(raw):
            raise ValueError(
                f"An .idx file must be whole, got {len(raw)} bytes of at least {start + size} in {self._index}. "
                "Copy it anew, or run fairseq-preprocess again."
            )
        return raw[start : start + size]


def load_binarized(folder: str | Path, source: str, target: str) -> tuple[DatasetDict, Dictionary, Dictionary]:
    """What ``fairseq-preprocess --source-lang .. --target-lang ..`` wrote.

    Args:
        folder: its ``--destdir``.
        source: the source language.
        target: the target language.

    Returns:
        Splits ``train``, ``validation`` and ``test``, those that there are, with columns ``input_ids`` and ``labels``; and
        the two dictionaries.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, does not fit its dictionary, or the sides have unequal numbers of sentences.
    """
    folder = Path(folder)
    dictionaries = [Dictionary.load(folder / f"dict.{language}.txt") for language in (source, target)]
    splits = {}
    for name, ours in _SPLITS.items():
        prefixes = [folder / f"{name}.{source}-{target}.{language}" for language in (source, target)]
        if not Path(f"{prefixes[0]}.idx").exists():
            continue
        sides = [IndexedTokens(prefix) for prefix in prefixes]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"Both sides must have as many sentences, got {len(sides[0])} and {len(sides[1])} in {prefixes[0]} and "
                f"{prefixes[1]}. Run fairseq-preprocess again."
            )
        rows = [[tokens.tolist() for tokens in side] for side in sides]
        for side, dictionary, prefix in zip(rows, dictionaries, prefixes, strict=True):
            _check_numbers(side, dictionary, prefix)
        splits[ours] = Dataset.from_dict({"input_ids": rows[0], "labels": rows[1]})
    if not splits:
        raise FileNotFoundError(
            f"A binarised data set must have train, valid or test files for {source}-{target}, got none in {folder}. "
            "Check the languages and the folder."
        )
    return DatasetDict(splits), dictionaries[0], dictionaries[1]


def _check_numbers(rows: list[list[int]], dictionary: Dictionary, prefix: Path) -> None:
    largest = max((max(row) for row in rows if row), default=0)
    if largest >= len(dictionary):
        raise ValueError(
            f"A data set must fit its dictionary, got the number {largest} for {len(dictionary)} symbols in {prefix}.bin. "
            "Use the dict.*.txt from the same folder."
        )
