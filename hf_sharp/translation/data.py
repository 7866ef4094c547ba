"""Data and tokenizer of a run, from whatever they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_sharp.translation.pairs import SPLITS, TextSettings, check_text, encoded, learnt_tokenizer, load_pairs
from hf_sharp.translation.preprocessed import load_preprocessed
from hf_sharp.translation.tokenizer import TranslationTokenizer


@dataclass(frozen=True)
class TranslationData:
    """Pairs as text and as numbers, with the tokenizer that joins the two.

    Attributes:
        pairs: splits with a column ``translation`` of ``{language: text}``.
        numbers: the same pairs, with columns ``input_ids``, ``labels``, ``source`` and ``target``, the tokens.
        tokenizer: the model's.
        binarized: whether `fairseq-preprocess` made the data, so that there is no text but the tokens.
    """

    pairs: DatasetDict
    numbers: DatasetDict
    tokenizer: TranslationTokenizer
    binarized: bool

    def sources(self, split: str) -> list[str]:
        """The sentences to translate, as they are given."""
        return [pair[self.tokenizer.languages[0]] for pair in self.pairs[split]["translation"]]

    def references(self, split: str) -> list[str]:
        """Their translations as sacreBLEU and chrF take them: as people write them, in the tokenizer's case."""
        if self.binarized:
            return [self.tokenizer.text(words) for words in self.numbers[split]["target"]]
        return [self.tokenizer.reference(pair[self.tokenizer.languages[1]]) for pair in self.pairs[split]["translation"]]


def load_data(
    data: str,
    settings: TextSettings,
    longest: int,
    *,
    tokenizer: TranslationTokenizer | None = None,
    name: str | None = None,
    splits: Sequence[str] = SPLITS,
) -> TranslationData:
    """The data of a run.

    Args:
        data: a folder of ``fairseq-preprocess``, or what `load_pairs` takes.
        settings: languages, and how text becomes symbols where the tokenizer is learnt.
        longest: symbols of the longest sentence: the model's positions.
        tokenizer: the model's; without it one is learnt on the training pairs, or has the folder's dictionaries.
        name: the data set's configuration, where it has several.
        splits: which ones there must be.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the data are damaged, have other languages, sentences that the model cannot take, or another dictionary.
    """
    languages = settings.source, settings.target
    if not (Path(data) / f"dict.{settings.source}.txt").is_file():
        pairs = load_pairs(data, settings, name=name, splits=splits)
        if tokenizer is None:
            check_text(pairs["train"], languages, f"{data}, split train")
        chosen = learnt_tokenizer(pairs["train"], settings) if tokenizer is None else tokenizer
        rows = {split: encoded(pairs[split], chosen, longest, f"{data}, split {split}") for split in pairs}
        return TranslationData(pairs, DatasetDict(rows), chosen, binarized=False)
    pairs, numbers, read = load_preprocessed(data, *languages, longest, splits=splits, detokenize=settings.detokenize)
    if tokenizer is not None:
        sides = zip(languages, (read.source, read.target), (tokenizer.source, tokenizer.target), strict=True)
        for language, here, there in sides:
            if here.symbols != there.symbols:
                raise ValueError(
                    f"The data must have the tokenizer's dictionaries, got another in {data}/dict.{language}.txt. "
                    "Run fairseq-preprocess with --srcdict and --tgtdict."
                )
    return TranslationData(pairs, numbers, tokenizer or read, binarized=True)


def load_tokenizer(folder: str, *, moses: bool | None = None, detokenize: bool | None = None) -> TranslationTokenizer:
    """The tokenizer of a model.

    Args:
        folder: the model's, or a name on the Hub.
        moses: whether it shall tokenise; by default as it did.
        detokenize: whether it shall make text of tokens; by default as it did.

    Raises:
        ValueError: there is none.
    """
    settings = {"moses": moses, "detokenize": detokenize}
    chosen: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    try:
        return TranslationTokenizer.from_pretrained(folder, **chosen)
    except (OSError, TypeError) as error:  # Transformers calls the class without the files that it does not find
        raise ValueError(
            f"A tokenizer must be a folder with dict.source.txt and dict.target.txt, or on the Hub, got {folder!r}. "
            "Use the folder of a trained model."
        ) from error


def check_tokenizer(
    tokenizer: TranslationTokenizer, where: str, settings: TextSettings, given: Mapping[str, object]
) -> None:
    """Raises ValueError where a tokenizer is for other languages, or otherwise than it is said to be.

    Args:
        tokenizer: to be used instead of one that is learnt.
        where: its folder.
        settings: the languages that are wanted.
        given: those of the other settings that somebody chose.
    """
    languages = (settings.source, settings.target)
    if tokenizer.languages != languages:
        raise ValueError(
            f"The tokenizer must be for {languages[0]} to {languages[1]}, got one for {tokenizer.languages[0]} to "
            f"{tokenizer.languages[1]} in {where}. Leave tokenizer out to learn one, or change source and target."
        )
    rows = [] if tokenizer.subwords is None else tokenizer.subwords.merges.split("\n")
    learnt = sum(bool(row.strip()) and not row.startswith("#version") for row in rows)
    has = {
        "moses": tokenizer.moses,
        "lower": tokenizer.lower,
        "detokenize": tokenizer.detokenize,
        "joint": tokenizer.source == tokenizer.target,
        "merges": learnt,
    }
    for name, value in given.items():
        fits = learnt <= value and bool(learnt) == bool(value) if name == "merges" else has[name] == value  # type: ignore[operator]
        if not fits:
            raise ValueError(
                f"{name} comes from the tokenizer, which has {has[name]} in {where}, got {value}. Leave one of the two out."
            )
