"""A tokenizer with fairseq's dictionaries, one per language."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizer

from hf_sharp.translation.dictionary import EOS, SPECIAL, Dictionary
from hf_sharp.translation.model import FairseqTransformerConfig
from hf_sharp.translation.text import Moses, Subwords

_FILES = {"source_file": "dict.source.txt", "target_file": "dict.target.txt", "merges_file": "merges.txt"}


class TranslationTokenizer(PreTrainedTokenizer):
    """From text to numbers and back: Moses, lower case, subwords, and fairseq's dictionaries.

    ``tokenizer(texts, text_target=translations)`` and ``tokenizer.decode`` work as with other translation tokenizers: text
    is source language, ``text_target`` and what is decoded are target language. Every sequence ends with ``</s>``.

    Args:
        source_file, target_file: the dictionaries, ``dict.*.txt``.
        merges_file: subword-nmt's merges; without it words are symbols.
        languages: source and target.
        moses: whether text is to be tokenised; otherwise tokens stand between blanks already.
        lower: whether text is to be lower-cased.
        detokenize: whether what is decoded is made text as people write it, from the tokens of Moses.

    A tokenizer that was learnt on tokenised text takes raw text once it is loaded with ``moses=True``.

    Raises:
        FileNotFoundError: a dictionary or the merges are not there.
        ValueError: they are damaged.
    """

    vocab_files_names = _FILES
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        source_file: str,
        target_file: str,
        merges_file: str | None = None,
        languages: tuple[str, str] = ("de", "en"),
        moses: bool = True,
        lower: bool = True,
        detokenize: bool = True,
        **kwargs: Any,
    ) -> None:
        self.source, self.target = Dictionary.load(source_file), Dictionary.load(target_file)
        self.subwords = None if merges_file is None else Subwords.load(merges_file)
        self.languages = (languages[0], languages[1])
        self.moses, self.lower, self.detokenize = moses, lower, detokenize
        self._moses: dict[str, Moses] = {}
        self._reading = self.source
        kwargs.pop("name_or_path", None)
        named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
        settings = {"languages": self.languages, "moses": moses, "lower": lower, "detokenize": detokenize}
        # "</s>" in a text is text, as it is to fairseq; the mask of special tokens counts the one at the end.
        special = {"split_special_tokens": True, "special_tokens_pattern": "eos"}
        super().__init__(**(kwargs | named | settings | special))

    @classmethod
    def of(
        cls,
        folder: str | Path,
        source: Dictionary,
        target: Dictionary,
        subwords: Subwords | None,
        *,
        languages: tuple[str, str],
        moses: bool,
        lower: bool,
        detokenize: bool = True,
    ) -> TranslationTokenizer:
        """The tokenizer of these parts, which it writes into the folder."""
        folder = Path(folder)
        files = {key: folder / name for key, name in _FILES.items()}
        source.save(files["source_file"])
        target.save(files["target_file"])
        if subwords is None:
            del files["merges_file"]
        else:
            subwords.save(files["merges_file"])
        paths = {key: str(file) for key, file in files.items()}
        return cls(**paths, languages=languages, moses=moses, lower=lower, detokenize=detokenize)

    @property
    def vocab_size(self) -> int:
        """Symbols in the source dictionary."""
        return len(self.source)

    def get_vocab(self) -> dict[str, int]:
        """The source dictionary."""
        return dict(self.source.numbers)

    @property
    def fingerprint(self) -> str:
        """A hash of both dictionaries' symbols in their order, to know the model's tokenizer by."""
        symbols = json.dumps([self.source.symbols, self.target.symbols])
        return hashlib.sha256(symbols.encode()).hexdigest()[:16]

    def check(self, config: FairseqTransformerConfig, where: str | Path) -> None:
        """Raises ValueError unless a model, which is in ``where``, has this tokenizer's dictionaries, as far as it says."""
        has, fits = (config.src_vocab_size, config.tgt_vocab_size), (len(self.source), len(self.target))
        if has != fits:
            raise ValueError(
                f"Tokenizer and model must have the same dictionaries, got {fits[0]} and {fits[1]} symbols for a model of "
                f"{has[0]} and {has[1]} in {where}. Load the tokenizer from the model's own folder."
            )
        if config.dictionaries not in (None, self.fingerprint):
            raise ValueError(
                f"Tokenizer and model must have the same dictionaries, got other symbols than the model's in {where}. "
                "Load the tokenizer from the model's own folder."
            )

    def words(self, text: str, language: str) -> str:
        """Text to tokens between blanks, lower-cased where the tokenizer is."""
        if self.moses:
            return self._moses_of(language).tokenize(text)
        return " ".join(text.lower().split() if self.lower else text.split())

    def symbols(self, words: str) -> str:
        """Tokens to subwords, both between blanks."""
        return words if self.subwords is None else self.subwords.split(words)

    def decoded(self, numbers: list[int]) -> str:
        """Target numbers to tokens between blanks, with subwords joined: what fairseq scores."""
        return self.joined(self.target.decode(numbers))

    def joined(self, symbols: str) -> str:
        """Subwords to tokens, both between blanks."""
        return Subwords.join(symbols)

    def text(self, words: str) -> str:
        """Target tokens to text as people write it."""
        return self._moses_of(self.languages[1]).detokenize(words) if self.detokenize else words

    def reference(self, given: str) -> str:
        """A translation from the data as it is scored beside `text`: in the same case, and as people write it."""
        cased = given.lower() if self.lower else given
        return cased if self.moses else self.text(cased)

    def _moses_of(self, language: str) -> Moses:
        if language not in self._moses:
            self._moses[language] = Moses(language, lower=self.lower)
        return self._moses[language]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        language = self.languages[0 if self._reading is self.source else 1]
        return self.symbols(self.words(text, language)).split()

    def _convert_token_to_id(self, token: str) -> int:
        return self._reading.numbers.get(token, self._reading.numbers[SPECIAL[3]])

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self.target):
            raise ValueError(
                f"A number must be a target symbol's, 0 to {len(self.target) - 1}, got {index}. "
                f"Put pad_token_id, {self.pad_token_id}, where labels have -100."
            )
        return self.target.symbols[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Target symbols to text."""
        return self.text(self.joined(" ".join(tokens)))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, **kwargs: Any
    ) -> list[int]:
        """The sequence and ``</s>``."""
        if token_ids_1 is not None:
            raise ValueError("A source must be one text, got a pair of them. Pass the translation as text_target.")
        return [*token_ids_0, EOS]

    def _switch_to_input_mode(self) -> None:
        self._reading = self.source

    def _switch_to_target_mode(self) -> None:
        self._reading = self.target

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the dictionaries and the merges into a folder."""
        prefix = "" if filename_prefix is None else f"{filename_prefix}-"
        files = {key: Path(save_directory) / f"{prefix}{name}" for key, name in _FILES.items()}
        self.source.save(files["source_file"])
        self.target.save(files["target_file"])
        if self.subwords is None:
            del files["merges_file"]
        else:
            self.subwords.save(files["merges_file"])
        return tuple(str(file) for file in files.values())


AutoTokenizer.register(FairseqTransformerConfig, slow_tokenizer_class=TranslationTokenizer, exist_ok=True)
