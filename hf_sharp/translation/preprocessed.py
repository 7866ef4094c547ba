"""A folder of ``fairseq-preprocess`` as training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset, DatasetDict

from hf_sharp.translation.batches import check_length
from hf_sharp.translation.binarized import load_binarized
from hf_sharp.translation.dictionary import Dictionary
from hf_sharp.translation.pairs import SPLITS
from hf_sharp.translation.text import Subwords
from hf_sharp.translation.tokenizer import TranslationTokenizer


def load_preprocessed(
    folder: str | Path,
    source: str,
    target: str,
    longest: int = 1024,
    *,
    splits: Sequence[str] = SPLITS,
    detokenize: bool = True,
) -> tuple[DatasetDict, DatasetDict, TranslationTokenizer]:
    """What ``fairseq-preprocess`` wrote, as text, as numbers, and its tokenizer.

    Args:
        folder: its ``--destdir``.
        source: the source language.
        target: the target language.
        longest: the model's positions; no sentence may have more symbols.
        splits: which ones there must be.
        detokenize: whether the tokens are those of Moses, to be made text where translations are scored.

    Returns:
        Pairs with a column ``translation``, whose text is tokens between blanks; the same with ``input_ids``, ``labels``,
        ``source`` and ``target``; and the tokenizer, which takes text that is split into subwords already.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or missing, or a sentence is empty or too long.
    """
    numbers, first, second = load_binarized(folder, source, target)
    for split in splits:
        if split not in numbers:
            raise ValueError(
                f"The data must have the splits {', '.join(splits)}, got {', '.join(numbers)} in {folder}. "
                "Run fairseq-preprocess with --trainpref, --validpref and --testpref."
            )
    with TemporaryDirectory() as written:
        tokenizer = TranslationTokenizer.of(
            written, first, second, None, languages=(source, target), moses=False, lower=False, detokenize=detokenize
        )
    pairs, with_text = {}, {}
    for split in splits:
        texts = []
        for language, column, dictionary in ((source, "input_ids", first), (target, "labels", second)):
            rows = numbers[split][column][:]
            for row, symbols in enumerate(rows):
                check_length(len(symbols), longest, f"{folder}, split {split}, row {row}, {language}")
            texts.append(_texts(rows, dictionary))
        with_text[split] = Dataset.from_dict(numbers[split].to_dict() | {"source": texts[0], "target": texts[1]})
        pairs[split] = Dataset.from_dict(
            {"translation": [{source: s, target: t} for s, t in zip(texts[0], texts[1], strict=True)]}
        )
    return DatasetDict(pairs), DatasetDict(with_text), tokenizer


def _texts(rows: list[list[int]], dictionary: Dictionary) -> list[str]:
    return [Subwords.join(dictionary.decode(row)) for row in rows]
