"""Sentence pairs: where they come from, and how they become numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset, DatasetDict, Translation, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_sharp.translation.batches import check_length
from hf_sharp.translation.dictionary import Dictionary
from hf_sharp.translation.number_words import number_words
from hf_sharp.translation.text import Subwords
from hf_sharp.translation.tokenizer import TranslationTokenizer

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TextSettings:
    """How text becomes symbols.

    Attributes:
        source: the language to translate from, a code of two or three letters, also with a region or script: ``zh_CN``.
        target: the language to translate to.
        moses: whether the text is to be tokenised; False where tokens stand between blanks already.
        lower: whether it is to be lower-cased.
        merges: of the subwords, learnt on both languages together; 0 for whole words.
        joint: whether both languages have one dictionary.
        detokenize: whether translations are made text again, from the tokens of Moses.
    """

    source: str = "de"
    target: str = "en"
    moses: bool = True
    lower: bool = True
    merges: int = 10_000
    joint: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, language in (("source", self.source), ("target", self.target)):
            if not re.fullmatch(r"[a-z]{2,3}([_-]\w+)?", language):  # of two letters, three, or with a region: pt_BR
                raise ValueError(f"{name} must be a language code of two or three letters, got {language!r}. Use e.g. 'de'.")
        if self.merges < 0:
            raise ValueError(f"merges must be >= 0, got {self.merges}. Use 0 for whole words.")


def load_pairs(data: str, settings: TextSettings, *, name: str | None = None, splits: Sequence[str] = SPLITS) -> DatasetDict:
    """Training, validation and test pairs, in a column ``translation`` of ``{language: text}``.

    Args:
        data: ``"numbers"`` for German and English number words, or what ``datasets.load_dataset`` takes: a name on the Hub
            or a local folder.
        settings: which languages.
        name: the data set's configuration, where it has several: ``"de-en"`` of ``wmt16``.
        splits: which ones there must be.

    Raises:
        ValueError: the folder, a split, the column or a language is missing, or a split is empty.
    """
    if data == "numbers":
        _check_languages({"de": "", "en": ""}, settings, data)
        words = number_words()
        return DatasetDict({split: words[split] for split in splits})
    if data.startswith((".", "/", "~")) and not Path(data).expanduser().is_dir():
        raise ValueError(
            f"data must be 'numbers', an existing folder or a data set of the Hub, got {data!r}. Check the path."
        )
    loaded = _loaded(data, name)
    for split in splits:
        if split not in loaded:
            raise ValueError(
                f"The data must have the splits {', '.join(splits)}, got {', '.join(loaded)} in {data}. Add it."
            )
        columns = loaded[split].column_names
        if "translation" not in columns:
            raise ValueError(
                f"The data must have a column 'translation' of {{language: text}}, got {', '.join(columns)} in {data}, "
                f"split {split}. Make one with datasets' map."
            )
        if not len(loaded[split]):
            raise ValueError(f"A split must have pairs, got none in {data}, split {split}. Fill it.")
        kind = loaded[split].features["translation"]
        if not isinstance(kind, Mapping | Translation):
            raise ValueError(
                f"The column 'translation' must be of {{language: text}}, got {kind} in {data}, split {split}. "
                "Make one with datasets' map."
            )
        _check_languages(kind.languages if isinstance(kind, Translation) else kind, settings, f"{data}, split {split}")
    return DatasetDict({split: loaded[split] for split in splits})


def _loaded(data: str, name: str | None) -> DatasetDict:
    try:
        loaded = load_dataset(str(Path(data).expanduser()), name)
    except (OSError, ValueError, DatasetGenerationError) as error:
        if isinstance(error, OSError) and not Path(data).expanduser().is_dir():
            raise ValueError(
                f"data must be 'numbers', an existing folder or a data set of the Hub, got {data!r}, which is not here and "
                "cannot be fetched. Name your copy with --data, or make data/iwslt14 with prepare_iwslt14.py."
            ) from error
        said = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"The data must be what datasets.load_dataset reads, got {data!r}: {said}. "
            "Try load_dataset on it, and --data_config where it has several parts."
        ) from error
    if not isinstance(loaded, DatasetDict):
        raise ValueError(f"The data must be split, got {type(loaded).__name__} in {data}. Save a DatasetDict.")
    return loaded


def _check_languages(present: Iterable[str], settings: TextSettings, where: str) -> None:
    for language in (settings.source, settings.target):
        if language not in present:
            raise ValueError(
                f"The data must have the languages {settings.source} and {settings.target}, got "
                f"{', '.join(present)} in {where}. Choose from these."
            )


def learnt_tokenizer(pairs: Dataset, settings: TextSettings) -> TranslationTokenizer:
    """The tokenizer whose subwords and dictionaries are learnt on the training pairs, as fairseq's recipes do."""
    with TemporaryDirectory() as folder:
        languages = (settings.source, settings.target)
        empty = Dictionary.of([])
        reader = TranslationTokenizer.of(
            folder, empty, empty, None, languages=languages, moses=settings.moses, lower=settings.lower
        )
        sides = [[reader.words(row[language], language) for row in pairs["translation"]] for language in languages]
        subwords = Subwords.learnt([*sides[0], *sides[1]], settings.merges) if settings.merges else None
        if subwords is not None:
            sides = [[subwords.split(words) for words in side] for side in sides]
        if settings.joint:
            source = target = Dictionary.of([*sides[0], *sides[1]])
        else:
            source, target = (Dictionary.of(side) for side in sides)
        return TranslationTokenizer.of(
            folder,
            source,
            target,
            subwords,
            languages=languages,
            moses=settings.moses,
            lower=settings.lower,
            detokenize=settings.detokenize,
        )


def encoded(pairs: Dataset, tokenizer: TranslationTokenizer, longest: int, where: str) -> Dataset:
    """The pairs as numbers: columns ``input_ids`` and ``labels`` beside ``source`` and ``target``, the tokens.

    Args:
        pairs: with a column ``translation``.
        tokenizer: the model's.
        longest: the model's positions; no sentence may have more symbols.
        where: what the pairs are called in an error, e.g. ``"data/, split train"``.

    Raises:
        ValueError: a side is no text, empty, or longer than the positions.
    """
    check_text(pairs, tokenizer.languages, where)
    return Dataset.from_list(list(_rows(pairs, tokenizer, longest, where)))


def check_text(pairs: Dataset, languages: Sequence[str], where: str) -> None:
    """Raises ValueError unless every side is text; see `encoded` for ``where``."""
    for number, pair in enumerate(pairs["translation"]):
        for language in languages:
            text = pair.get(language) if isinstance(pair, Mapping) else pair
            if not isinstance(text, str):
                raise ValueError(
                    f"A sentence must be text, got {text!r} in {where}, row {number}, {language}. Remove the pair."
                )


def _rows(pairs: Dataset, tokenizer: TranslationTokenizer, longest: int, where: str) -> Iterator[dict]:
    names = zip(tokenizer.languages, ("source", "target"), (tokenizer.source, tokenizer.target), strict=True)
    sides = list(names)
    for number, pair in enumerate(pairs["translation"]):
        row: dict[str, object] = {}
        for (language, side, dictionary), column in zip(sides, ("input_ids", "labels"), strict=True):
            words = tokenizer.words(pair[language], language)
            numbers = dictionary.encode(tokenizer.symbols(words))
            check_length(len(numbers), longest, f"{where}, row {number}, {language}")
            row |= {side: words, column: numbers}
        yield row
