"""Versions that are not supported are named at import, and the oldest ones that are pass the tests."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from packaging.requirements import Requirement

import hf_sharp
from hf_sharp.versions import SUPPORTED, check_installed

ROOT = Path(__file__).parents[1]
CORE = (
    *("methods", "test_accumulation.py", "test_arguments.py", "test_bare_loop.py", "test_faults.py", "test_neutral.py"),
    *("test_notes.py", "test_oracle.py", "test_resume.py", "test_telemetry.py", "test_trainer_features.py"),
    "test_vector.py",
)
"""What the oldest versions are tried with: golden values, the Trainer and the bare loop."""


def project() -> dict[str, Requirement]:
    """The requirements as ``pyproject.toml`` has them."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parsed = [Requirement(line) for line in read["project"]["dependencies"]]
    return {requirement.name: requirement for requirement in parsed}


def installed(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    """Let packages have other versions; None: let them be missing."""
    usual = metadata.version

    def version(name: str) -> str:
        found = changed[name] if name in changed else usual(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_the_bounds_are_those_of_the_project() -> None:
    required = project()
    for name, bounds in SUPPORTED.items():
        assert required[name].specifier == Requirement(f"{name}{bounds}").specifier


def test_the_readme_says_the_same() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, bounds in SUPPORTED.items():
        assert f"{name} {bounds.split(',')[0].removeprefix('>=')}" in text


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("torch", "2.7.1+cu126", "torch must be at least 2.8, got 2.7.1+cu126. Run pip install 'torch>=2.8'."),
        (
            "transformers",
            "4.57.6",
            "transformers must be at least 5.17 and below 6, got 4.57.6. Run pip install 'transformers>=5.17,<6'.",
        ),
        (
            "transformers",
            "6.0.0.dev0",
            "transformers must be at least 5.17 and below 6, got 6.0.0.dev0. Run pip install 'transformers>=5.17,<6'.",
        ),
        ("accelerate", "1.9.0", "accelerate must be at least 1.10, got 1.9.0. Run pip install 'accelerate>=1.10'."),
    ],
)
def test_unsupported(name: str, version: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, **{name: version})
    with pytest.raises(ImportError) as error:
        importlib.reload(hf_sharp)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "versions",
    [
        {"torch": "2.8.0", "transformers": "5.17.0", "accelerate": "1.10.0"},
        {"torch": "2.11.0a0+5228986c39.nv26.2", "transformers": "5.17.0.dev0", "accelerate": "1.15.0"},
        {"torch": "3.0.0+cpu", "transformers": "5.99.1", "accelerate": "2.0.0"},
    ],
)
def test_supported(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-releases and builds count as their release."""
    installed(monkeypatch, **versions)
    check_installed()


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, accelerate=None)
    check_installed()  # it can be imported all the same
    monkeypatch.setattr("hf_sharp.versions.find_spec", lambda name: None)
    with pytest.raises(ImportError) as error:
        check_installed()
    assert str(error.value) == "hf_sharp needs accelerate, which is not installed. Run pip install 'accelerate>=1.10'."


def test_it_is_said_before_anything_is_imported(tmp_path: Path) -> None:
    """An old version may lack the names that are imported from it; this one lacks all of them."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").touch()
    (tmp_path / "transformers-5.16.1.dist-info").mkdir()
    (tmp_path / "transformers-5.16.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 5.16.1\n"
    )
    code = "try:\n import hf_sharp.measure\nexcept ImportError as error:\n import sys; print(error, 'torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    bounds = "transformers must be at least 5.17 and below 6, got 5.16.1. Run pip install 'transformers>=5.17,<6'."
    assert done.stdout == f"{bounds} False\n", done.stderr


@pytest.fixture
def python() -> Iterator[Path]:
    """The Python of an empty environment, which takes gigabytes and is not kept."""
    with TemporaryDirectory() as folder:
        venv.create(folder)
        yield Path(folder) / "bin" / "python"


@pytest.mark.slow
def test_the_oldest_supported(python: Path, tmp_path: Path) -> None:
    """The core's and the Trainer's tests in an environment with the floors of ``pyproject.toml``."""
    bounds = {name: project()[name].specifier for name in SUPPORTED}
    oldest = [f"{name}=={bound.version}" for name in bounds for bound in bounds[name] if bound.operator == ">="]
    assert len(oldest) == len(SUPPORTED)

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command], cwd=ROOT, capture_output=True, text=True, check=False)

    pip = (sys.executable, "-m", "pip", "--python", python)
    if run(*pip, "download", "--quiet", "--no-deps", "--retries", "0", "--dest", tmp_path, "packaging").returncode:
        pytest.skip("no package index can be reached")
    done = run(*pip, "install", "--quiet", "--no-cache-dir", "--no-compile", *oldest, "pytest", ".")
    assert done.returncode == 0, done.stderr[-4000:]
    done = run(python, "-m", "pytest", "-x", *(f"tests/{name}" for name in CORE))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
