"""The examples that no other test runs, run small; and that each example is run somewhere."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_sharp import launch
from hf_sharp.translation.number_words import number_words
from tests.translation.cases import DATA, converted, figures, write_memory_mapped
from tests.translation.test_text import archive
from tests.twins import changed_lines

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
TWO += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def here(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, *words: object) -> None:
    """Run one without a new interpreter, in a folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    monkeypatch.syspath_prepend(str((EXAMPLES / script).parent))
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def process(folder: Path, script: str, *words: object, launcher: list[str] | None = None) -> str:
    """Run one as a user does, in a folder, on the CPU."""
    command = [sys.executable, *(launcher or []), str(EXAMPLES / script), *map(str, words)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def test_each_example_is_run_by_a_test() -> None:
    """By its name, as a file or as what a test loads."""
    tests = "\n".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    names = {file.stem for file in EXAMPLES.rglob("*.py") if '__name__ == "__main__"' in file.read_text()}
    assert [name for name in sorted(names) if not re.search(rf'\b{name}\.py\b|[/"]{name}"', tests)] == []


def test_each_example_that_claims_several_processes_is_launched_on_two() -> None:
    """In its docstring or in a README."""
    texts = [file.read_text() for kind in ("*.py", "*.md") for file in EXAMPLES.rglob(kind)]
    claims = {name for text in texts for name in re.findall(r"accelerate launch[^`\n]* examples/(\S+\.py)", text)}
    assert {"accelerate_loop.py", "classification/train.py"} <= claims
    assert claims <= {
        "accelerate_loop.py",  # below
        "classification/train.py",  # below
        "measure/measure_checkpoint.py",  # test_measure.py
        "sharp_trainer.py",  # below
        "trainer.py",  # below, as sharp_trainer.py
        "translation/train.py",  # test_translation.py
    }


def losses(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("{'loss'", "test accuracy"))]


def test_plain_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    here(monkeypatch, tmp_path, "plain_pytorch.py")
    *epochs, last = capsys.readouterr().out.splitlines()
    found = [float(line.split()[-1]) for line in epochs]
    assert 1.5 < found[0] < 2.2
    assert 0.2 < found[4] < 0.5
    assert float(last.removeprefix("training accuracy ")) > 0.88


def test_accelerate_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    here(monkeypatch, tmp_path, "accelerate_loop.py")
    check_accelerate_loop(capsys.readouterr().out)


def check_accelerate_loop(said: str) -> None:
    lines = said.splitlines()
    assert len(lines) == 5
    assert float(lines[0].split()[3]) > float(lines[-1].split()[3])
    assert all("'passes': 2.0" in line and "'loss_gap'" in line for line in lines)


def test_the_trainers_twins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They differ in at most five lines, docstrings included, and the plain one under the launcher is the sharp one."""
    pytest.importorskip("sklearn")
    plain, sharp = EXAMPLES / "trainer.py", EXAMPLES / "sharp_trainer.py"
    assert 3 <= changed_lines(plain.read_text(), sharp.read_text()) <= 5
    here(monkeypatch, tmp_path, "trainer.py")
    of_plain = losses(capsys.readouterr().out)
    here(monkeypatch, tmp_path, "sharp_trainer.py")
    of_sharp = losses(capsys.readouterr().out)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    launch.main(["--sharpness", "asam", "--rho", "0.5", str(plain)])
    assert losses(capsys.readouterr().out) == of_sharp
    assert len(of_sharp) == len(of_plain) == 16  # epochs, and the accuracy
    assert not set(of_sharp[:-1]) & set(of_plain[:-1])
    for end in (of_plain[-1], of_sharp[-1]):
        assert float(end.removeprefix("test accuracy ")) > 0.9


def test_prepare_iwslt14(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("subword_nmt")
    file = archive(tmp_path, 60)
    here(monkeypatch, tmp_path, "translation/prepare_iwslt14.py", file, tmp_path / "iwslt14", "--merges", 30)
    assert {path.name for path in (tmp_path / "iwslt14").iterdir()} == {
        "train.parquet",
        "validation.parquet",
        "test.parquet",
        "tokenizer",
    }
    assert "test 15;" in capsys.readouterr().out


@pytest.mark.slow
def test_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    small = [
        "--model",
        "resnet8",
        "--batch",
        8,
        "--block",
        1,
        "--pairs",
        2,
        "--images",
        32,
        "--output_dir",
        tmp_path / "out",
    ]
    here(monkeypatch, tmp_path, "classification/speed.py", *small)
    (file,) = (tmp_path / "out").glob("*.json")
    assert json.loads(file.read_text())["images per second"] > 0


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    said = process(tmp_path, "benchmarks/memory.py", "--methods", "sam")
    assert "OVER" not in said
    (row,) = json.loads((tmp_path / "memory.json").read_text())["methods"]
    assert (row["target"], row["within"]) == (2, True)


@pytest.mark.slow
def test_step_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its processes are forked from one that has the libraries, which is not how times should be taken."""
    pytest.importorskip("pytorch_optimizer")
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    turns = importlib.import_module("turns")
    turns.CONTEXT.set_forkserver_preload(["torchvision", "pytorch_optimizer", "transformers.trainer", "hf_sharp"])
    small = ["--models", "vit_tiny", "--batches", 2, "--methods", "sam", "--steps", 1, "--threads", 1]
    here(monkeypatch, tmp_path, "benchmarks/step_time.py", *small)
    for name in ("loops", "machine", "subjects", "turns"):
        sys.modules.pop(name)
    found = json.loads((tmp_path / "step_time.json").read_text())
    assert found["trainer"][0]["passes"] == 2
    assert len(found["reference"]) == 1


@pytest.mark.slow
def test_hessian_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyhessian")
    small = ["--models", "vit", "--batches", 1, "--batch_size", 2, "--draws", 2, "--rounds", 2]
    here(monkeypatch, tmp_path, "measure/benchmark.py", *small)
    assert len(json.loads((tmp_path / "hessian_time.json").read_text())["rows"]) == 4
    assert "| vit | 1 | trace | pyhessian |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif("FAIRSEQ_PYTHON" not in os.environ, reason="FAIRSEQ_PYTHON does not name a Python with fairseq")
def test_translation_benchmark(tmp_path: Path) -> None:
    converted("all", tmp_path / "model")
    data, found = tmp_path / "bin", figures("all")
    data.mkdir()
    for language, side in (("de", "sources"), ("en", "targets")):
        for split in ("train", "test"):
            write_memory_mapped(data / f"{split}.de-en.{language}", found[side], "u2")
        shutil.copy(DATA / "all" / f"dict.{language}.txt", data)
    given = ["--fairseq", os.environ["FAIRSEQ_PYTHON"], "--model", tmp_path / "model", "--steps", 3, "--turns", 1]
    said = process(tmp_path, "translation/benchmark.py", data, *given)
    assert re.search(r"^training: [1-9]\d* words/s, fairseq [1-9]", said, re.MULTILINE), said
    assert re.search(r"^beam 5: [1-9]\d* sentences/s, fairseq [1-9]", said, re.MULTILINE), said


@pytest.mark.slow
def test_table_of_translation(tmp_path: Path) -> None:
    pytest.importorskip("subword_nmt")
    for split, pairs in number_words().items():
        pairs.select(range(50)).to_parquet(tmp_path / "data" / f"{split}.parquet")
    given = ["--seeds", 1, "--sam", 0.1, "--asam", 0.2, "--output_dir", tmp_path / "runs", "--data", tmp_path / "data"]
    given += ["--max_steps", 2, "--beam", 2, "--longest", 9, "--warmup_steps", 1, "--use_cpu", "True"]
    said = process(tmp_path, "translation/table.py", ROOT / "configs" / "numbers", *given)
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["adam", "sam, rho 0.1", "asam, rho 0.2"]


def test_runs_of_other_settings_are_not_taken_for_these(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "translation"))
    table = importlib.import_module("table")
    monkeypatch.delitem(sys.modules, "table")
    run, started = table.Run(tmp_path, "sam", 0.1, 1), []

    def train(command: list[str], **_: object) -> None:
        started.append(command)
        (run.output / "results.json").write_text("{}")

    monkeypatch.setattr(table.subprocess, "run", train)
    configs = ROOT / "configs" / "numbers"
    for _ in range(2):
        assert run.made(configs, ["--max_steps", "2"]) == {}
    assert len(started) == 1
    for others, flags in ((configs, ["--max_steps", "3"]), (ROOT / "configs" / "multi30k", ["--max_steps", "2"])):
        with pytest.raises(ValueError, match="must have the same settings, got others in "):
            run.made(others, flags)
    (run.output / "flags.json").unlink()
    with pytest.raises(ValueError, match="must have the same settings"):
        run.made(configs, ["--max_steps", "2"])
    assert len(started) == 1


ONE_AFTER_THE_OTHER = """
import os, runpy, sys
for script in {scripts!r}:
    if os.environ["RANK"] == "0":
        print("==", script, flush=True)
    runpy.run_path(script, run_name="__main__")
sys.stdout.flush()
os._exit(0)  # gloo's threads can abort a process whose interpreter closes
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """They are launched once for all, since a launch takes longer than they do."""
    pytest.importorskip("sklearn")
    names = ["trainer.py", "sharp_trainer.py", "accelerate_loop.py"]  # the loop ends the group of processes
    script = tmp_path / "all.py"
    script.write_text(ONE_AFTER_THE_OTHER.format(scripts=[str(EXAMPLES / name) for name in names]))
    said = process(tmp_path, str(script), launcher=TWO)
    *trainers, loop = [part.split("\n", 1)[1] for part in said.split("== ")[1:]]
    check_accelerate_loop(loop)
    assert len(trainers) == 2
    for text in trainers:
        *epochs, last = losses(text)
        assert len(epochs) == 15
        assert float(last.removeprefix("test accuracy ")) > 0.9


@pytest.mark.slow
def test_compare_and_classification_on_two_processes(tmp_path: Path) -> None:
    """The runner starts the training script under its launcher."""
    pytest.importorskip("torchvision")
    launcher = ["--launcher", " ".join([sys.executable, *TWO]), "--output_dir", tmp_path / "out"]
    given = ["--max_steps", 5]
    said = process(tmp_path, "compare.py", ROOT / "configs" / "digits" / "sam.yaml", "--seeds", 1, *launcher, "--", *given)
    assert "| sam " in said
    results = json.loads((tmp_path / "out" / "sam" / "seed0" / "results.json").read_text())
    assert results["passes_per_step"] == 2
    assert results["last"]["epoch"] == pytest.approx(0.5, abs=0.03)  # one process makes 20 steps per epoch
