"""Text as the model sees it: Moses tokens, and subwords."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_sharp.translation.files import replaced

if TYPE_CHECKING:
    from subword_nmt.apply_bpe import BPE

JOINT = "@@"


class Moses:
    """Moses tokenisation of one language, by sacremoses, as ``tokenizer.perl`` does it without further flags.

    Args:
        language: two letters, e.g. ``"de"``.
        lower: whether to lower-case as well.
    """

    def __init__(self, language: str, *, lower: bool = True) -> None:
        from sacremoses import MosesDetokenizer, MosesTokenizer

        self.language, self.lower = language, lower
        self._tokenizer, self._detokenizer = MosesTokenizer(lang=language), MosesDetokenizer(lang=language)

    def tokenize(self, text: str) -> str:
        """Tokens between blanks, with ``&apos;`` and the like as Moses escapes them."""
        tokens = self._tokenizer.tokenize(text, return_str=True)
        return tokens.lower() if self.lower else tokens

    def detokenize(self, tokens: str) -> str:
        """Text as people write it."""
        return self._detokenizer.detokenize(tokens.split())


class Subwords:
    """Byte-pair encoding of tokens as subword-nmt does it: ``unbe@@ kannt``.

    Args:
        merges: what subword-nmt's ``learn-bpe`` writes, the version line and one merge per line.

    Raises:
        ValueError: a line is not a merge.
    """

    def __init__(self, merges: str) -> None:
        from subword_nmt.apply_bpe import BPE

        lines = [line.split() for line in merges.split("\n") if line.strip()]
        if lines and not merges.startswith("#version") and all(line[-1].isdecimal() for line in lines):
            raise ValueError(
                f"Merges must be subword-nmt's, two symbols a line, got a dictionary's, {merges[:40]!r}. "
                "Use the file of learn-bpe, often called code."
            )
        self.merges = merges
        try:
            self._bpe: BPE = BPE(io.StringIO(merges))
        except SystemExit as error:  # subword-nmt ends the process over a line that is not two symbols
            raise ValueError(
                f"Merges must be subword-nmt's, two symbols a line, got {merges[:40]!r}. Write them with learn-bpe."
            ) from error

    @classmethod
    def learnt(cls, sentences: Iterable[str], merges: int) -> Subwords:
        """Learnt on tokenised sentences (of both languages together, for joint subwords)."""
        from subword_nmt.learn_bpe import learn_bpe

        out = io.StringIO()
        learn_bpe([f"{sentence}\n" for sentence in sentences], out, merges)
        return cls(out.getvalue())

    @classmethod
    def load(cls, file: str | Path) -> Subwords:
        """From a file of merges.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is not a merge.
        """
        if not Path(file).is_file():
            raise FileNotFoundError(f"Merges must be an existing file, got {str(file)!r}. Write it with learn-bpe.")
        return cls(Path(file).read_text(encoding="utf-8"))

    def save(self, file: str | Path) -> None:
        """Write the merges."""
        with replaced(file) as new:
            new.write_text(self.merges, encoding="utf-8", newline="\n")

    def split(self, tokens: str) -> str:
        """The tokens' subwords, between blanks."""
        return self._bpe.process_line(tokens)

    @staticmethod
    def join(subwords: str) -> str:
        """The tokens again.

        >>> Subwords.join("un@@ be@@ kannt ist")
        'unbekannt ist'
        """
        return f"{subwords} ".replace(f"{JOINT} ", "").rstrip(" ")


def kept(pairs: Sequence[tuple[str, str]], *, shortest: int = 1, longest: int = 175, ratio: float = 1.5) -> list[bool]:
    """Which pairs of tokenised sentences stay in the training data, as Moses' ``clean-corpus-n`` decides.

    Args:
        pairs: (source, target), tokens between blanks.
        shortest: tokens, on both sides.
        longest: tokens, on both sides.
        ratio: of the longer to the shorter side, at most.
    """
    lengths = [(len(source.split()), len(target.split())) for source, target in pairs]
    return [shortest <= min(n) and max(n) <= longest and max(n) <= ratio * min(n) for n in lengths]
