"""Bad input gets an error that names the rule, the value and the fix, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.bad_inputs import core
from tests.bad_inputs.cases import Cases

EXTRAS = {
    "comparison": ("matplotlib",),
    "measure": ("curvlinops", "datasets", "PIL", "scipy", "sklearn", "torchvision"),
    "scripts": ("curvlinops", "datasets", "matplotlib", "PIL", "sacrebleu", "sacremoses", "sklearn", "torchvision"),
    "translation": ("datasets", "sacrebleu", "sacremoses", "subword_nmt"),
    "vision": ("datasets", "PIL", "torchvision"),
}
"""What the rows of an area import."""


def cases() -> Cases:
    """The table, without the areas whose extras are not installed."""
    there = [area for area, names in EXTRAS.items() if all(map(find_spec, names))]
    return [*core.CASES, *(row for area in there for row in import_module(f"tests.bad_inputs.{area}").CASES)]


CASES = cases()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message[:50] for _, message in CASES])
def test_refused(
    call: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exact message, and the output folder, where everything here would write, is as it was."""
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    out.mkdir()
    (out / "results.json").write_text("of an earlier run")
    monkeypatch.chdir(out)
    before = contents(out)
    with pytest.raises((ValueError, FileNotFoundError, ImportError, SystemExit)) as error:
        call(given)
    said = capsys.readouterr().err.rpartition("error: ")[2].rstrip() if error.type is SystemExit else str(error.value)
    assert said == message.replace("{f}", str(given))
    assert contents(out) == before


@pytest.mark.parametrize("area", EXTRAS)
def test_every_area_is_in_the_table(area: str) -> None:
    for name in EXTRAS[area]:
        pytest.importorskip(name)
    assert set(import_module(f"tests.bad_inputs.{area}").CASES) <= set(CASES)
    assert len(CASES) >= 60
