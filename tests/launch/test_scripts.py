"""Scripts of the shape of transformers' examples, sharpness-aware in both ways: unchanged through the launcher, and with
the class name changed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

from hf_sharp import ASAM, launch, step
from tests.launch.material import NAMES, SCRIPTS, material
from tests.twins import changed_lines, twin

ROOT = Path(__file__).parents[2]
STEPS = 3
ASAM_FLAGS = ("--sharpness", "asam", "--rho", "0.2")
_CLOCKS = ("_runtime", "_model_preparation_time", "_samples_per_second", "_steps_per_second")


@dataclass(frozen=True)
class Ending:
    """What a run of a script left behind."""

    weights: bytes | None
    results: dict[str, float]
    logs: list[dict[str, float]]
    texts: dict[str, str]
    passes: int


Run = Callable[..., Ending]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The flags of each script."""
    pytest.importorskip("torchvision", reason="the extra vision is not installed")
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def ending(flags: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a script in this process: plain, through the launcher with flags, or its sharp twin; each once."""

    @functools.cache
    def run(name: str, *how: str) -> Ending:
        folder = tmp_path_factory.mktemp(name)
        words = [*flags[name], "--output_dir", str(folder / "out")]
        script = SCRIPTS / f"run_{name}.py"
        if how == ("twin",):
            script = shutil.copytree(SCRIPTS, folder / "scripts") / script.name
            script.write_text(twin(script.read_text()))
        if how in ((), ("twin",)):
            return watched(lambda: launch.run(str(script), words), folder / "out")
        return watched(lambda: launch.main([*how, str(script), *words]), folder / "out")

    return run


def watched(action: Callable[[], None], folder: Path) -> Ending:
    """Do it in the place of a process, with the passes of training counted."""
    passes = 0
    compute_loss = Trainer.compute_loss

    @functools.wraps(compute_loss)
    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += torch.is_grad_enabled()
        return compute_loss(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "compute_loss", counting)
        patch.setattr(sys, "argv", [])
        patch.setattr(sys, "path", list(sys.path))
        patch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        try:
            action()
        finally:
            for name in ("arguments", "trainer_qa"):
                sys.modules.pop(name, None)
    return read(folder, passes)


def read(folder: Path, passes: int = 0) -> Ending:
    """What is in the output folder; no clocks, and nothing of hf_sharp."""

    def kept(entry: dict[str, float]) -> dict[str, float]:
        return {k: v for k, v in entry.items() if not k.endswith(_CLOCKS) and not k.startswith("sharpness/")}

    weights, state = folder / "model.safetensors", folder / "trainer_state.json"
    return Ending(
        weights=weights.read_bytes() if weights.exists() else None,
        results=kept(json.loads((folder / "all_results.json").read_text())),
        logs=[kept(entry) for entry in json.loads(state.read_text())["log_history"]] if state.exists() else [],
        texts={file.name: file.read_text() for file in folder.glob("*.txt")},
        passes=passes,
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_sharp_twin_differs_in_at_most_five_lines(name: str) -> None:
    plain = (SCRIPTS / f"run_{name}.py").read_text()
    assert 3 <= changed_lines(plain, twin(plain)) <= 5


@pytest.mark.parametrize("name", NAMES)
def test_at_rho_0_the_launcher_gives_the_bits_of_the_script(name: str, ending: Run) -> None:
    """Weights, metrics, logged losses and written texts."""
    plain, neutral = ending(name), ending(name, "--sharpness", "sam", "--rho", "0")
    assert neutral.passes >= plain.passes >= STEPS
    assert plain.weights is not None
    assert (neutral.weights, neutral.results, neutral.logs) == (plain.weights, plain.results, plain.logs)
    assert neutral.texts == plain.texts


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_are_one_method(name: str, ending: Run) -> None:
    """The unchanged script in the launcher and the script with the class changed end at the same bits, after twice the
    passes of the plain script and somewhere else."""
    plain, launched, changed = ending(name), ending(name, *ASAM_FLAGS), ending(name, "twin")
    assert launched.passes == changed.passes == 2 * plain.passes
    assert launched.weights == changed.weights != plain.weights
    assert (launched.results, launched.logs, launched.texts) == (changed.results, changed.logs, changed.texts)
    assert launched.logs[0]["loss"] == plain.logs[0]["loss"]  # of the pass at the weights


def test_what_the_scripts_write(ending: Run) -> None:
    """The comparisons above compare something."""
    assert set(ending("translation", *ASAM_FLAGS).texts) == {"generated_predictions.txt"}
    assert len(ending("glue", *ASAM_FLAGS).texts["predict_results.txt"].splitlines()) == 5
    for name, metric in [("qa", "eval_exact_match"), ("summarization", "eval_recall"), ("translation", "predict_exact")]:
        assert metric in ending(name, *ASAM_FLAGS).results
    assert all(len(ending(name).logs) >= STEPS + 1 for name in NAMES)


@pytest.mark.parametrize("name", ["glue", "qa"])
def test_a_run_that_only_evaluates(
    name: str, flags: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs no pass, makes no SharpStep and finds what the plain script finds."""
    monkeypatch.setattr(step.SharpStep, "__init__", lambda *args, **kwargs: pytest.fail("a step was made"))
    words = [word for word in flags[name] if word != "--do_train"]
    script = str(SCRIPTS / f"run_{name}.py")

    def run(action: Callable[[list[str]], None], out: Path) -> Ending:
        return watched(lambda: action([*words, "--output_dir", str(out)]), out)

    plain = run(lambda rest: launch.run(script, rest), tmp_path / "plain")
    found = run(lambda rest: launch.main([*ASAM_FLAGS, script, *rest]), tmp_path / "launched")
    assert found.passes == 0
    assert found == plain
    assert {file.name for file in (tmp_path / "plain").iterdir()} == {
        file.name for file in (tmp_path / "launched").iterdir()
    }


def process(words: Sequence[str], *launcher: str, **changed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, "hf_sharp.launch", *ASAM_FLAGS, *words]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"} | changed
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_real_process(flags: dict[str, list[str]], ending: Run, tmp_path: Path) -> None:
    """It ends at the bits of the run in this process, and says once what is on."""
    words = [str(SCRIPTS / "run_glue.py"), *flags["glue"], "--output_dir", str(tmp_path / "out")]
    done = process(words)
    assert done.returncode == 0, done.stderr
    here, there = ending("glue", *ASAM_FLAGS), read(tmp_path / "out")
    assert (there.weights, there.results, there.texts) == (here.weights, here.results, here.texts)
    said = [line for line in done.stderr.splitlines() if line.startswith("hf_sharp: ")]
    assert said == [
        f"hf_sharp: every Trainer of {words[0]} is sharpness-aware: {ASAM(rho=0.2)!r}, perturb_over='batch', perturb=None"
    ]


@pytest.mark.slow
def test_two_processes_under_accelerate_launch(flags: dict[str, list[str]], tmp_path: Path) -> None:
    """Two passes per step on both, said by one; half as many samples per process give the steps of one."""
    words = [str(SCRIPTS / "run_glue.py"), *flags["glue"], "--output_dir", str(tmp_path / "out")]
    several = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")
    done = process(words, "accelerate.commands.launch", *several, "--dynamo_backend", "no", "--main_process_port", "0", "-m")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("hf_sharp: every Trainer of ") == 1
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["sharpness/passes"] for entry in steps] == [2.0] * STEPS
    assert all(entry["sharpness/shift_norm"] > 0 for entry in steps)
    assert steps[-1]["epoch"] == pytest.approx(STEPS / 2)  # 16 samples, 4 for each of two processes
    assert len((tmp_path / "out" / "predict_results.txt").read_text().splitlines()) == 5


@pytest.fixture(scope="module")
def without_dropout(flags: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of run_glue.py with a model that has none, so that samples can be split over processes."""
    model = flags["glue"][flags["glue"].index("--model_name_or_path") + 1]
    folder = shutil.copytree(model, tmp_path_factory.mktemp("without_dropout") / "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    words = [str(folder) if word == model else word for word in flags["glue"]]
    return [*words, "--average_tokens_across_devices", "False"]


IN_FORCE = {
    "fsdp2": {"processes": 2, "sharded": True, "optimizer": "AdamW"},
    "zero3": {"processes": 2, "sharded": False, "optimizer": "DeepSpeedZeroOptimizer_Stage3"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_FORCE)
def test_two_processes_with_shards(name: str, without_dropout: list[str], tmp_path: Path) -> None:
    """Under the files of configs/accelerate the unchanged script takes the steps of one process with batches of twice the
    size."""
    script, out = str(SCRIPTS / "run_glue.py"), tmp_path / "out"
    words = list(without_dropout)
    more = ["--fsdp_transformer_layer_cls_to_wrap", "BertLayer"]  # accelerate cannot wrap what is inside BertEmbeddings, too
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    if name != "fsdp2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
        more, environment = [], {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "false"}
        del words[(i := words.index("--use_cpu")) : i + 2]
    config = ["--config_file", str(ROOT / "configs" / "accelerate" / f"{name}.yaml"), "--num_processes", "2"]
    worker = ["-m", "tests.workers.on_cpus", str(tmp_path / "rank"), script, *words, "--output_dir", str(out)]
    done = process(worker, "accelerate.commands.launch", *config, *more, "-m", **environment)
    assert done.returncode == 0, done.stderr
    assert [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)] == [IN_FORCE[name]] * 2
    assert done.stderr.count("hf_sharp: every Trainer of ") == 1

    twice = [*without_dropout, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "alone")]
    alone = watched(lambda: launch.main([*ASAM_FLAGS, script, *twice]), tmp_path / "alone")
    found = read(out)
    keys = ("loss", "grad_norm", "learning_rate", "epoch")
    steps, expected = ([[log[key] for key in keys] for log in end.logs if "loss" in log] for end in (found, alone))
    assert len(steps) == STEPS
    assert np.array(steps) == pytest.approx(np.array(expected), rel=1e-3)
    assert found.results["eval_loss"] == pytest.approx(alone.results["eval_loss"], rel=1e-3)
    assert found.texts == alone.texts
