"""What is in the package, and what importing it loads."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import hf_sharp

ROOT = Path(__file__).parents[1]
NEEDED = "from transformers import Trainer, Seq2SeqTrainer; import accelerate, torch"
"""What loads all that the core needs."""
EXTRAS = {
    *("curvlinops", "datasets", "deepspeed", "evaluate", "matplotlib", "num2words", "peft", "PIL", "pytest", "sacrebleu"),
    *("sacremoses", "schedulefree", "scipy", "sklearn", "subword_nmt", "timm", "torchvision"),
}
LIGHT = ("hf_sharp.measure", "hf_sharp.comparison.cells", "hf_sharp.evaluation.bleu", "hf_sharp.evaluation.accuracy")
"""Modules that need an extra only when they are used."""


def test_importing_loads_no_extra() -> None:
    """Transformers itself loads some of the extras where they are installed; this package adds none."""
    names = "{name.split('.')[0] for name in sys.modules}"
    ours = f"import {', '.join(LIGHT)}; from hf_sharp import *"
    code = f"import sys; {NEEDED}; before = {names}; {ours}; print(*({names} - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    added = {name for name in done.stdout.splitlines()[-1].split() if not name.startswith("_")}
    assert "hf_sharp" in added
    assert added & EXTRAS == set()
    assert added <= {"hf_sharp", "yaml"}


FIRST = """
import sys
import hf_sharp
assert hf_sharp.SAM().rho == 0.05
assert "transformers" not in sys.modules and "accelerate" not in sys.modules
assert set(hf_sharp.__all__) <= set(dir(hf_sharp))
from hf_sharp import SharpStep
assert not any(name.startswith("transformers.train") for name in sys.modules)
from hf_sharp import SharpnessAwareTrainer
from hf_sharp.trainer import SharpnessAwareTrainer as same
assert SharpnessAwareTrainer is same is hf_sharp.SharpnessAwareTrainer
hf_sharp.SharpnessAwareTrainr
"""


def test_methods_and_the_step_do_not_wait_for_the_trainer() -> None:
    """What needs transformers is there all the same, and a name that is not there is an error as of any module."""
    done = subprocess.run([sys.executable, "-c", FIRST], cwd=ROOT, capture_output=True, text=True, check=False)
    said = "AttributeError: module 'hf_sharp' has no attribute 'SharpnessAwareTrainr'"
    assert done.stderr.splitlines()[-1].startswith(said), done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    if done.returncode and "No matching distribution found for hatchling" in done.stdout + done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def tracked() -> set[str]:
    """The files of the checkout, without those that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return set(done.stdout.splitlines())


@pytest.mark.slow
def test_the_wheel(built: Path) -> None:
    """The package with its type marker, licence and the modules that `evaluate` loads from files, and nothing else."""
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = f"hf_sharp-{hf_sharp.__version__}.dist-info"
        said = message_from_bytes(wheel.read(f"{about}/METADATA"))
        assert wheel.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert names == {name for name in tracked() if name.startswith("hf_sharp/")}
    assert {"hf_sharp/py.typed", "hf_sharp/evaluation/modules/token_bleu.py"} <= names
    assert (said["Name"], said["License-Expression"], said["Requires-Python"]) == ("hf_sharp", "Apache-2.0", ">=3.11")
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_all("Project-URL") is None


@pytest.mark.slow
def test_the_sdist(built: Path) -> None:
    """The checkout without the files that only git and the checks need, and nothing that is not in it."""
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert names - tracked() == {"PKG-INFO"}
    assert {name for name in tracked() - names if not name.startswith(".")} == set()


@pytest.mark.slow
def test_the_index_would_take_them(built: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(map(str, built.iterdir()))
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
