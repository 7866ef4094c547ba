"""A small translation task that needs no download: numbers, in words."""

from __future__ import annotations

from hashlib import sha256

from datasets import Dataset, DatasetDict

LARGEST = 9_999
_SIZES = {"test": 1_000, "validation": 1_000}


def number_words() -> DatasetDict:
    """The numbers from 0 to 9,999 in German and English words, by num2words: 8,000 / 1,000 / 1,000 pairs.

    Which split a number is in depends on its hash alone.
    """
    from num2words import num2words

    ranked = sorted(range(LARGEST + 1), key=lambda number: sha256(str(number).encode()).digest())
    splits: dict[str, list[int]] = {}
    start = 0
    for name, size in _SIZES.items():
        splits[name] = ranked[start : start + size]
        start += size
    splits["train"] = ranked[start:]

    def pair(number: int) -> dict[str, dict[str, str]]:
        return {"translation": {language: num2words(number, lang=language) for language in ("de", "en")}}

    return DatasetDict({name: Dataset.from_list([pair(n) for n in splits[name]]) for name in ("train", *_SIZES)})
