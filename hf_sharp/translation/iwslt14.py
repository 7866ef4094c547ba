"""IWSLT'14 as fairseq prepares it."""

from __future__ import annotations

import re
import tarfile
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from hf_sharp.translation.text import Moses, kept

PUBLISHED = "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"
COUNTS = {"train": 160_239, "validation": 7_283, "test": 6_750}
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
EVERY = 23
_NAMES = ("train.tags.de-en.{}", *(f"IWSLT14.{name}.de-en.{{}}.xml" for name in TESTS))
_DROPPED = ("<url>", "<talkid>", "<keywords>")
_TAGS = re.compile(r"</?(?:title|description)>")
_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*|\s*</seg>\s*')


def load_iwslt14(archive: str | Path, source: str = "de", target: str = "en", *, progress: bool = False) -> DatasetDict:
    """The tokenised, lower-cased pairs of the archive.

    The training text is tokenised by Moses, pairs are dropped by length (1 to 175 tokens, ratio 1.5), and every 23rd pair
    is kept for validation. The test set is dev2010, dev2012 and tst2010 to tst2012, all pairs of them.

    Args:
        archive: ``de-en.tgz``, or a folder with what is in it.
        source: ``"de"`` or ``"en"``.
        target: the other one.
        progress: whether to show bars.

    Returns:
        Splits ``train``, ``validation`` and ``test`` with a column ``translation``. Counts other than fairseq's are a
        warning: sacremoses is not Moses to the last character.

    Raises:
        FileNotFoundError: the archive, or a file in it, is missing.
        ValueError: the archive is damaged, or the sides have unequal numbers of lines.
    """
    read = _reader(Path(archive), {name.format(language) for name in _NAMES for language in (source, target)})
    moses = {language: Moses(language, lower=False) for language in (source, target)}

    def tokenized(lines: Sequence[str], language: str, what: str) -> list[str]:
        bar = tqdm(lines, desc=f"{what}, {language}", disable=not progress)
        return [moses[language].tokenize(line) for line in bar]

    sides = {}
    for language in (source, target):
        sides[language] = tokenized(list(_training_lines(read(f"train.tags.de-en.{language}"))), language, "train")
    pairs = _paired(sides, source, target, "train.tags.de-en")
    pairs = [pair for pair, stays in zip(pairs, kept(pairs), strict=True) if stays]
    tests: list[tuple[str, str]] = []
    for name in TESTS:
        for language in (source, target):
            lines = list(_test_lines(read(f"IWSLT14.{name}.de-en.{language}.xml")))
            sides[language] = tokenized(lines, language, name)
        tests += _paired(sides, source, target, name)
    splits = {
        "train": [pair for number, pair in enumerate(pairs, 1) if number % EVERY],
        "validation": pairs[EVERY - 1 :: EVERY],
        "test": tests,
    }
    for split, found in splits.items():
        if len(found) != COUNTS[split]:
            warnings.warn(f"fairseq's {split} set has {COUNTS[split]} pairs, got {len(found)}.", stacklevel=2)
    return DatasetDict({split: _dataset(found, source, target) for split, found in splits.items()})


def _dataset(pairs: list[tuple[str, str]], source: str, target: str) -> Dataset:
    return Dataset.from_dict({"translation": [{source: s.lower(), target: t.lower()} for s, t in pairs]})


def _paired(sides: dict[str, list[str]], source: str, target: str, what: str) -> list[tuple[str, str]]:
    lengths = len(sides[source]), len(sides[target])
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"Both sides must have as many lines, got {lengths[0]} and {lengths[1]} in {what}. Fetch the archive anew."
        )
    return list(zip(sides[source], sides[target], strict=True))


def _training_lines(text: str) -> Iterator[str]:
    for line in _lines(text):
        if not any(tag in line for tag in _DROPPED):
            yield _TAGS.sub("", line)


def _test_lines(text: str) -> Iterator[str]:
    for line in _lines(text):
        if "<seg id" in line:
            yield _SEGMENT.sub("", line).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _lines(text: str) -> list[str]:
    """What grep and sed take for lines; ``splitlines`` would cut within sentences, at U+2028 or U+0085."""
    return text.removesuffix("\n").split("\n")


def _reader(archive: Path, names: Collection[str]) -> Callable[[str], str]:
    """A function from a file's name in the archive to its text; other files than these are not looked at."""
    if archive.is_dir():
        files = {path.name: path for path in sorted(archive.rglob("*")) if path.name in names and path.is_file()}
        return lambda name: _text({key: path.read_bytes() for key, path in files.items() if key == name}, name, archive)
    if not archive.is_file():
        raise FileNotFoundError(
            f"The IWSLT'14 archive must be an existing file or folder, got {str(archive)!r}. Fetch it from {PUBLISHED}."
        )
    try:
        with tarfile.open(archive) as packed:
            contents = {
                Path(member.name).name: stream.read()
                for member in packed
                if Path(member.name).name in names and member.isfile() and (stream := packed.extractfile(member)) is not None
            }
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(
            f"The IWSLT'14 archive must be a whole .tgz, got one that cannot be read in {archive}: {error}. "
            f"Fetch it anew from {PUBLISHED}."
        ) from error
    return lambda name: _text(contents, name, archive)


def _text(contents: dict[str, bytes], name: str, archive: Path) -> str:
    if name not in contents:
        raise FileNotFoundError(f"The IWSLT'14 archive must hold {name}, got none in {archive}. Fetch it from {PUBLISHED}.")
    try:
        return contents[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The IWSLT'14 files must be UTF-8, got byte {error.start} of {name} in {archive}: {error.reason}. "
            f"Fetch the archive anew from {PUBLISHED}."
        ) from error
