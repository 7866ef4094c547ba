"""Damaged files. Bad input in general: `tests.bad_inputs`."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from hf_sharp.translation.checkpoint import load_checkpoint
from hf_sharp.translation.iwslt14 import load_iwslt14
from tests.bad_inputs.cases import written
from tests.translation.cases import DATA


def test_damaged_archive(tmp_path: Path) -> None:
    file = tmp_path / "de-en.tgz"
    with tarfile.open(file, "w:gz") as packed:
        packed.add(written(tmp_path / "x", "x" * 9999))
    written(file, file.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"must be a whole .tgz, got one that cannot be read in {file}"):
        load_iwslt14(file)


def test_cut_checkpoint_names_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "c.pt", (DATA / "all" / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"in {file}"):
        load_checkpoint(file)
