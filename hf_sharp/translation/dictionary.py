"""fairseq's dictionaries: which number a symbol has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hf_sharp.translation.files import replaced

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNKNOWN = range(4)
_OVERWRITE = "#fairseq:overwrite"


@dataclass(frozen=True)
class Dictionary:
    """Symbols in the order of their numbers, with how often each was seen; the four special ones come first.

    >>> words = Dictionary.of(["ein hund", "ein haus"], multiple=1)
    >>> words.symbols
    ('<s>', '<pad>', '</s>', '<unk>', 'ein', 'haus', 'hund')
    >>> words.encode("ein boot"), words.decode([4, 2])
    ([4, 3, 2], 'ein')

    Attributes:
        symbols: all symbols, the special ones first.
        counts: of the other symbols.
    """

    symbols: tuple[str, ...]
    counts: tuple[int, ...]
    numbers: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Numbers the symbols."""
        object.__setattr__(self, "numbers", {symbol: number for number, symbol in enumerate(self.symbols)})

    def __len__(self) -> int:
        return len(self.symbols)

    @classmethod
    def of(cls, sentences: Iterable[str], *, multiple: int = 8) -> Dictionary:
        """All symbols of the sentences, the frequent ones first, equally frequent ones in alphabetical order.

        Args:
            sentences: symbols between blanks.
            multiple: the size is filled up to a multiple of it, as ``fairseq-preprocess`` does.
        """
        counted = Counter(symbol for sentence in sentences for symbol in sentence.split())
        ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        filling = -(len(SPECIAL) + len(ranked)) % multiple
        ranked += [(f"madeupword{number:04d}", 0) for number in range(filling)]
        return cls((*SPECIAL, *(symbol for symbol, _ in ranked)), tuple(count for _, count in ranked))

    @classmethod
    def load(cls, file: str | Path) -> Dictionary:
        """The dictionary in a ``dict.*.txt``.

        Raises:
            ValueError: a line is not ``symbol count``, or a symbol is there twice.
            FileNotFoundError: there is no such file.
        """
        file = Path(file)
        if not file.is_file():
            raise FileNotFoundError(
                f"A dictionary must be an existing file, got {str(file)!r}. Use the dict.*.txt of fairseq-preprocess."
            )
        symbols, counts = list(SPECIAL), []
        seen: dict[str, int] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            text = line.rstrip("\r").removesuffix(f" {_OVERWRITE}")
            symbol, _, count = text.rpartition(" ")
            if not symbol or not count.isdecimal():
                raise ValueError(
                    f"A dictionary's line must be 'symbol count', got {line!r} in line {number} of {file}. "
                    "Use the dict.*.txt that fairseq-preprocess wrote."
                )
            if symbol in seen:
                raise ValueError(
                    f"A dictionary must hold a symbol once, got {symbol!r} in lines {seen[symbol]} and {number} of {file}. "
                    "Delete one."
                )
            seen[symbol] = number
            if symbol in SPECIAL and text == line.rstrip("\r"):
                raise ValueError(
                    f"A dictionary must not hold the special symbol {symbol!r}, got it in line {number} of {file}. "
                    f"Delete the line, or end it with '{_OVERWRITE}' to read it as an ordinary word."
                )
            symbols.append(symbol)
            counts.append(int(count))
        return cls(tuple(symbols), tuple(counts))

    def save(self, file: str | Path) -> None:
        """Write a ``dict.*.txt`` that fairseq reads back with the same numbers."""
        marks = (f" {_OVERWRITE}" if symbol in SPECIAL else "" for symbol in self.symbols[len(SPECIAL) :])
        lines = zip(self.symbols[len(SPECIAL) :], self.counts, marks, strict=True)
        text = "".join(f"{symbol} {count}{mark}\n" for symbol, count, mark in lines)
        with replaced(file) as new:
            new.write_text(text, encoding="utf-8", newline="\n")

    def encode(self, sentence: str) -> list[int]:
        """The numbers of a sentence's symbols, and ``</s>``."""
        return [*(self.numbers.get(symbol, UNKNOWN) for symbol in sentence.split()), EOS]

    def decode(self, numbers: Iterable[int]) -> str:
        """The symbols between blanks; ``<s>``, ``<pad>`` and ``</s>`` are left out."""
        return " ".join(self.symbols[number] for number in numbers if number not in (BOS, PAD, EOS))
