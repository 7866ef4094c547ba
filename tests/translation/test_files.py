"""Outputs appear whole or not at all, and what was there before stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_sharp.translation.files import new_folder, replaced


def contents(folder: Path) -> dict[str, str | None]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def write_folder(folder: Path, *, failing: bool = False) -> None:
    with new_folder(folder) as new:
        (new / "a").write_text("new")
        (new / "b").mkdir()
        (new / "b" / "c").write_text("new")
        if failing:
            raise RuntimeError


def write_file(file: Path, *, failing: bool = False) -> None:
    with replaced(file) as new:
        new.write_text("new")
        if failing:
            raise RuntimeError


def test_file_stays_as_it_was_when_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(RuntimeError):
        write_file(file, failing=True)
    assert contents(tmp_path) == {"file": "old"}
    write_file(file)
    assert contents(tmp_path) == {"file": "new"}


@pytest.mark.parametrize("there", [True, False])
def test_folder_is_whole_or_as_it_was(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if there:
        folder.mkdir()
    before = contents(tmp_path)
    with pytest.raises(RuntimeError):
        write_folder(folder, failing=True)
    assert contents(tmp_path) == before
    write_folder(folder)
    assert contents(folder) == {"a": "new", "b": None, "b/c": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_full_folder_is_refused_and_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder")
    with pytest.raises(ValueError, match="output_dir must be new or empty"):
        write_folder(tmp_path / "folder", failing=True)
    with pytest.raises(ValueError, match="must not take a folder's place"):
        write_file(tmp_path / "folder")
    assert contents(tmp_path / "folder") == {"a": "new", "b": None, "b/c": "new"}


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_folder(tmp_path / "link")
    (tmp_path / "text").write_text("old")
    (tmp_path / "alias").symlink_to(tmp_path / "text")
    write_file(tmp_path / "alias")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "alias").is_symlink()
    assert (tmp_path / "text").read_text() == (tmp_path / "real" / "a").read_text() == "new"


def test_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path())
    assert contents(tmp_path) == {"a": "new", "b": None, "b/c": "new"}
