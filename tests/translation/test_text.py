"""From text to numbers and back, and IWSLT'14's preparation."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer

from hf_sharp.translation.data import load_tokenizer
from hf_sharp.translation.iwslt14 import COUNTS, TESTS, load_iwslt14
from hf_sharp.translation.number_words import number_words
from hf_sharp.translation.pairs import TextSettings, encoded, learnt_tokenizer, load_pairs
from hf_sharp.translation.text import Moses, Subwords, kept
from hf_sharp.translation.tokenizer import TranslationTokenizer
from tests.translation.cases import small_model

TEXT = ["Der Hund läuft, und die Hunde laufen.", "Die Katze schläft.", "Ein Hund schläft nicht!", "Das ist's."]


def test_moses_tokenises_escapes_and_lowers() -> None:
    words = Moses("en").tokenize("It's \"fine\", isn't it?")
    assert words == "it &apos;s &quot; fine &quot; , isn &apos;t it ?"
    assert Moses("en").detokenize(words) == "it's \"fine\", isn't it?"


def test_subwords_are_subword_nmts() -> None:
    from subword_nmt.apply_bpe import BPE

    words = [Moses("de").tokenize(line) for line in TEXT]
    subwords = Subwords.learnt(words, 12)
    bpe = BPE(io.StringIO(subwords.merges))
    for line in words:
        assert subwords.split(line) == bpe.process_line(line)
        assert Subwords.join(subwords.split(line)) == line


@pytest.mark.parametrize(
    ("source", "target", "stays"),
    [("a", "b", True), ("a b", "c d e", True), ("a b", "c d e f", False), ("", "b", False), ("a " * 176, "b " * 176, False)],
)
def test_pairs_are_dropped_by_length_and_ratio(source: str, target: str, stays: bool) -> None:
    assert kept([(source, target)]) == [stays]


def test_number_words_have_no_reference_twice() -> None:
    data = number_words()
    assert {split: len(pairs) for split, pairs in data.items()} == {"train": 8000, "validation": 1000, "test": 1000}
    texts = {split: {pair["en"] for pair in pairs["translation"]} for split, pairs in data.items()}
    assert not texts["train"] & texts["test"]
    assert len(set.union(*texts.values())) == 10_000


@pytest.mark.parametrize("joint", [True, False])
def test_tokenizer_comes_back_from_its_folder(joint: bool, tmp_path: Path) -> None:
    data = number_words()["validation"].select(range(200))
    tokenizer = learnt_tokenizer(data, TextSettings(merges=50, joint=joint))
    assert (tokenizer.source == tokenizer.target) == joint
    small_model(share_embeddings="none").config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is TranslationTokenizer
    rows = encoded(data.select(range(5)), again, 100, "data")
    for row, pair in zip(rows, data["translation"], strict=False):
        both = again(pair["de"], text_target=pair["en"])
        assert (both["input_ids"], both["labels"]) == (row["input_ids"], row["labels"])
        assert again.decode(row["labels"], skip_special_tokens=True) == pair["en"]
        assert again.decoded(row["labels"]) == row["target"]


def test_special_tokens_in_a_text_are_text_and_the_last_one_is_special() -> None:
    tokenizer = learnt_tokenizer(number_words()["validation"].select(range(50)), TextSettings(merges=0))
    pair = {"de": "</s> eins <pad>", "en": "<s> one"}
    (row,) = encoded(Dataset.from_list([{"translation": pair}]), tokenizer, 100, "data")
    both = tokenizer(pair["de"], text_target=pair["en"])
    assert (both["input_ids"], both["labels"]) == (row["input_ids"], row["labels"])
    assert both["input_ids"].count(2) == 1
    mask = tokenizer("eins zwei", return_special_tokens_mask=True)["special_tokens_mask"]
    assert mask == [0, 0, 1]


def archive(folder: Path, lines: int) -> Path:
    """An archive with IWSLT'14's files, made up; a tenth of the pairs is too unequal in length."""
    texts = {}
    for language, word in (("de", "Wort"), ("en", "word")):
        rows = ["<url>http://example.org</url>", "<title>A Title</title>"]
        rows += [f"{word} {i}, {word}." + (" und" * 20 if language == "de" and i % 10 == 0 else "") for i in range(lines)]
        texts[f"train.tags.de-en.{language}"] = "\n".join(rows) + "\n"
        for name in TESTS:
            segments = "".join(f'<seg id="{i}"> {word} {i}\u2019s </seg>\n' for i in range(1, 4))
            texts[f"IWSLT14.{name}.de-en.{language}.xml"] = f"<doc>\n{segments}</doc>\n"
    file = folder / "de-en.tgz"
    with tarfile.open(file, "w:gz") as packed:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"de-en/{name}")
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    return file


def test_iwslt14_is_prepared_as_fairseq_does(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_iwslt14(archive(tmp_path, 100))
    # a title and 90 pairs of nearly equal length; every 23rd is for validation
    assert {split: len(pairs) for split, pairs in data.items()} == {"train": 88, "validation": 3, "test": 15}
    assert data["train"][0]["translation"] == {"de": "a title", "en": "a title"}
    assert data["train"][1]["translation"] == {"de": "wort 1 , wort .", "en": "word 1 , word ."}
    assert data["test"][0]["translation"]["en"] == "word 1 &apos;s"
    messages = {str(warning.message) for warning in caught}
    assert {f"fairseq's train set has {COUNTS['train']} pairs, got 88."} <= messages


def test_lines_end_where_sed_ends_them_and_other_files_do_not_matter(tmp_path: Path) -> None:
    """In a sentence there may be a line separator, and in the archive notes in other encodings."""
    file = archive(tmp_path, 30)
    with tarfile.open(file) as packed:
        packed.extractall(tmp_path / "set", filter="data")
    (tmp_path / "set" / "de-en" / "README").write_bytes("Übersetzung".encode("latin-1"))
    text = tmp_path / "set" / "de-en" / "train.tags.de-en.en"
    text.write_bytes(text.read_bytes().replace(b"word 1, ", "word\u2028and\u00851, ".encode()))
    again = tmp_path / "again.tgz"
    with tarfile.open(again, "w:gz") as packed:
        packed.add(tmp_path / "set" / "de-en", "de-en")
    for given in (tmp_path / "set", again):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pairs = load_iwslt14(given)["train"]["translation"]
        assert pairs[1]["de"] == "wort 1 , wort ."
        assert pairs[2] == {"de": "wort 2 , wort .", "en": "word 2 , word ."}


def test_tokenised_data_are_scored_as_people_write_them(tmp_path: Path) -> None:
    settings = TextSettings(moses=False, merges=0)
    words = "it &apos;s &quot; fine &quot; , isn &apos;t it ?"
    pairs = Dataset.from_list([{"translation": {"de": "das ist gut .", "en": words}}])
    tokenizer = learnt_tokenizer(pairs, settings)
    assert tokenizer.words(words, "en") == words
    assert tokenizer.reference(words) == tokenizer.text(words) == "it's \"fine\", isn't it?"
    tokenizer.save_pretrained(tmp_path)
    raw = load_tokenizer(str(tmp_path), moses=True)
    assert raw("Das ist gut.")["input_ids"] == encoded(pairs, tokenizer, 20, "data")[0]["input_ids"]
    assert raw.reference("It's Fine") == "it's fine"
    plain = load_tokenizer(str(tmp_path), detokenize=False)
    assert plain.reference(words) == words


def test_prepared_folder_loads_by_load_dataset(tmp_path: Path) -> None:
    data = load_iwslt14(archive(tmp_path, 60))
    for split, pairs in data.items():
        pairs.to_parquet(tmp_path / "set" / f"{split}.parquet")
    loaded = load_pairs(str(tmp_path / "set"), TextSettings(moses=False))
    assert loaded["train"][:] == load_dataset(str(tmp_path / "set"))["train"][:] == data["train"][:]
