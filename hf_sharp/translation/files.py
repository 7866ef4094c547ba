"""Outputs: they appear whole or not at all, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replaced(file: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the file's place at the end; after an exception the file is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replaced(Path(folder) / "text") as new:
    ...         _ = new.write_text("whole")
    ...     [path.name for path in Path(folder).iterdir()]
    ['text']

    Raises:
        ValueError: there is a folder of this name.
    """
    check_file(file)
    target = Path(file).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        new = Path(folder) / target.name
        yield new
        new.replace(target)


@contextmanager
def new_folder(folder: str | Path, name: str = "output_dir") -> Iterator[Path]:
    """An empty folder to write into, whose contents are in the new folder at the end; after an exception none are.

    Args:
        folder: must be new or empty.
        name: what it is called in an error.

    Raises:
        ValueError: it is neither.
    """
    check_new_folder(folder, name)
    with added(folder) as new:
        yield new


@contextmanager
def added(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write into, whose contents are in the folder at the end, beside what it holds; after an exception
    none are.
    """
    target = Path(folder).resolve()
    there = target.is_dir()
    beside = target if there else target.parent
    beside.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".new.", dir=beside) as own:
        new = Path(own) / "new"
        new.mkdir()
        yield new
        if there:  # it may be the current folder, or a mounted one: neither is to be renamed
            for part in sorted(new.iterdir()):
                part.rename(target / part.name)
        else:
            new.rename(target)


def check_new_folder(folder: str | Path, name: str = "output_dir") -> None:
    """Raises ValueError unless a folder is new or empty; to be asked before the work that it is for."""
    target = Path(folder).resolve()
    _check_above(target, name, folder)
    if target.is_dir():
        held = min((path.name for path in target.iterdir()), default=None)
        if held is not None:
            raise ValueError(f"{name} must be new or empty, got {str(folder)!r}, which holds {held!r}. Name another folder.")
    elif target.exists():
        raise ValueError(f"{name} must be new or empty, got the file {str(folder)!r}. Name another folder.")


def check_new_file(file: str | Path, name: str) -> None:
    """Raises ValueError where there is something of this name."""
    target = Path(file).resolve()
    _check_above(target, name, file)
    if target.exists():
        raise ValueError(f"{name} must be a new file, got {str(file)!r}, which is there. Name another, or delete it.")


def check_file(file: str | Path, name: str = "A file") -> None:
    """Raises ValueError where a file cannot be: at a folder's place, or below a file."""
    target = Path(file).resolve()
    _check_above(target, name, file)
    if target.is_dir():
        raise ValueError(f"{name} must not take a folder's place, got {str(file)!r}. Name a file in it.")


def _check_above(target: Path, name: str, given: str | Path) -> None:
    above = next(path for path in target.parents if path.exists())
    if not above.is_dir():
        raise ValueError(
            f"{name} must be in a folder, got {str(given)!r} below the file {str(above)!r}. Name another place."
        )
