"""The translation scripts, run small as a user runs them; the default task to the end where time allows."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_sharp.translation.batches import token_batches
from hf_sharp.translation.configuration import flags
from hf_sharp.translation.number_words import number_words

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "translation"
CONFIGS = sorted(file for task in ("iwslt14", "multi30k", "numbers") for file in (ROOT / "configs" / task).glob("*.yaml"))


def run(script: str, *words: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return start(*launcher, EXAMPLES / script, *words)


def start(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with these words, which must succeed."""
    environment = os.environ | variables
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return done


def run_here(monkeypatch: pytest.MonkeyPatch, script: str, *words: object) -> None:
    """The same without a new interpreter, whose start takes longer than what these scripts do."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The default task for a few steps with a tiny beam."""
    folder = tmp_path_factory.mktemp("numbers") / "asam"
    short = ["--max_steps", 20, "--beam", 2, "--longest", 9, "--warmup_steps", 10, "--save_strategy", "no", "--average", 0]
    return folder, run("train.py", ROOT / "configs/numbers/asam.yaml", "--output_dir", folder, *short)


def test_training_writes_its_translations_beside_the_model(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = trained
    assert "test references that occur in training: 0 of 1000" in done.stdout
    assert "20/20" in done.stderr  # the progress bar
    lines = {name: (folder / f"{name}.txt").read_text().splitlines() for name in ("sources", "predictions", "references")}
    test = number_words()["test"]["translation"]
    assert lines["sources"] == [pair["de"] for pair in test]
    assert lines["references"] == [pair["en"] for pair in test]
    assert len(lines["predictions"]) == 1000
    results = json.loads((folder / "results.json").read_text())
    assert {"greedy", "beam 2", "validation", "seconds"} <= results.keys()
    for name in ("model.safetensors", "config.json", "dict.source.txt", "dict.target.txt", "merges.txt"):
        assert (folder / name).is_file(), name


def test_scores_and_comparison_of_files(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = trained
    results = json.loads((folder / "results.json").read_text())["beam 2"]
    predictions, references = folder / "predictions.txt", folder / "references.txt"
    run_here(monkeypatch, "bleu.py", "score", predictions, references, "--output_dir", folder / "scores")
    assert f"sacreBLEU {results['bleu']:.2f}" in capsys.readouterr().out
    assert json.loads((folder / "scores" / "scores.json").read_text())["bleu"] == results["bleu"]
    rows = [json.loads(line) for line in (folder / "scores" / "sentences.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == predictions.read_text().splitlines()
    assert rows[0].keys() == {"prediction", "reference", "token_bleu"}
    run_here(monkeypatch, "bleu.py", "compare", predictions, predictions, references, "--samples", 10)
    assert "p_value=1.0" in capsys.readouterr().out


def test_translating_with_a_trained_model(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder, _ = trained
    small = {split: pairs.select(range(5)) for split, pairs in number_words().items()}
    for split, pairs in small.items():
        pairs.to_parquet(tmp_path / "data" / f"{split}.parquet")
    given = ["--data", tmp_path / "data", "--output_dir", tmp_path / "scores", "--longest", 9]
    run_here(monkeypatch, "bleu.py", "translate", folder, *given)
    rows = [json.loads(line) for line in (tmp_path / "scores" / "sentences.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == [pair["de"] for pair in small["test"]["translation"]]
    assert rows[0].keys() == {"source", "prediction", "reference", "score", "token_bleu"}
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert f"chrF {scores['chrf']:.2f}" in capsys.readouterr().out


def test_there_and_back(
    trained: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = trained
    run_here(monkeypatch, "convert_fairseq.py", "to", folder, tmp_path / "fairseq" / "checkpoint.pt")
    there = [tmp_path / "fairseq" / name for name in ("checkpoint.pt", "dict.de.txt", "dict.en.txt")]
    run_here(monkeypatch, "convert_fairseq.py", "from", *there, tmp_path / "model", "--merges", folder / "merges.txt")
    for name in ("model.safetensors", "dict.source.txt", "dict.target.txt", "merges.txt"):
        assert (tmp_path / "model" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("generating", ["True", "False"])
def test_validation_that_cannot_be_cut_is_refused_before_the_training(
    generating: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where it is first cut after the training."""
    for split, pairs in number_words().items():
        short = pairs.filter(lambda pair: max(len(text.split()) for text in pair["translation"].values()) < 5)
        chosen = pairs if split == "validation" else short
        chosen.select(range(8)).to_parquet(tmp_path / "data" / f"{split}.parquet")
    given = ["--data", tmp_path / "data", "--merges", 0, "--moses", "false", "--max_tokens", 5, "--use_cpu", "True"]
    given += ["--predict_with_generate", generating, "--save_strategy", "no", "--output_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"(validation split|eval_dataset): max_tokens must hold the longest sentence"):
        run_here(monkeypatch, "train.py", ROOT / "configs/numbers/adam.yaml", *given)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_configs_hold_flags_that_there_are(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from train import MethodArguments, TranslationArguments

    parser = HfArgumentParser((TranslationArguments, Seq2SeqTrainingArguments, MethodArguments))
    given = flags([str(file), "--output_dir", str(tmp_path), "--seed", "7"])
    task, args, method = parser.parse_args_into_dataclasses(given)
    assert args.seed == 7
    assert task.text().source == "de"
    described = yaml.safe_load(file.read_text())
    if "sharpness" in described and described["sharpness"] != "none":
        assert method.method().rho == described["rho"]
    sys.modules.pop("train")


@pytest.mark.slow
def test_default_task_reaches_its_bleu(tmp_path: Path) -> None:
    folder = tmp_path / "asam"
    run("train.py", ROOT / "configs/numbers/asam.yaml", "--output_dir", folder, "--disable_tqdm", "True")
    results = json.loads((folder / "results.json").read_text())
    assert min(results["greedy"]["token_bleu"], results["beam 5"]["token_bleu"]) >= 95


@pytest.mark.slow
def test_two_processes_train_and_translate_all(tmp_path: Path) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    folder = tmp_path / "sam"
    short = [
        "--max_steps",
        10,
        "--beam",
        2,
        "--longest",
        9,
        "--save_strategy",
        "no",
        "--output_dir",
        folder,
        "--use_cpu",
        "True",
    ]
    done = run("train.py", ROOT / "configs/numbers/sam.yaml", *short, launcher=launcher)
    assert done.stdout.count("test references that occur in training: 0 of 1000") == 1
    assert len((folder / "predictions.txt").read_text().splitlines()) == 1000


@pytest.fixture(scope="module")
def few_steps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Four steps of SAM on a few pairs under a file of configs/accelerate on two processes, or alone; the folder of each.

    All take the same four batches in a step, and average the weights of the last two.
    """
    folder = tmp_path_factory.mktemp("few")
    data = {split: pairs.select(range(160 if split == "train" else 20)) for split, pairs in number_words().items()}
    for split, pairs in data.items():
        pairs.to_parquet(folder / "data" / f"{split}.parquet")
    lengths = [[len(pair[language].split()) + 1 for pair in data["train"]["translation"]] for language in ("de", "en")]
    assert len(token_batches(*lengths, 56)) % 4 == 0  # else two processes would cut some in two

    def run_as(kind: str) -> Path:
        words = f"{ROOT}/configs/numbers/sam.yaml --data {folder}/data --merges 0 --moses false --dropout 0 --max_tokens 56"
        words += " --max_steps 4 --optim sgd --weight_decay 0 --learning_rate 0.1 --warmup_steps 2 --beam 2 --longest 9"
        words += (
            " --save_strategy steps --save_steps 1 --save_total_limit 3 --average 2 --eval_strategy steps --eval_steps 2"
        )
        words += f" --disable_tqdm True --output_dir {folder}/{kind} --gradient_accumulation_steps"
        launcher = ["accelerate.commands.launch", "--config_file", ROOT / f"configs/accelerate/{kind}.yaml"]
        launcher += ["--num_processes", 2, "-m"]
        start(
            "-m",
            *([] if kind == "alone" else launcher),
            *("tests.workers.translating_launched", kind, *words.split(), 4 if kind == "alone" else 2),
            *(["--use_cpu", "True"] if kind == "alone" else []),
            CUDA_VISIBLE_DEVICES="",
            DS_ACCELERATOR="cpu",
        )
        return folder / kind

    return cache(run_as)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_sharded_weights_are_trained_averaged_and_translated_with(kind: str, few_steps: Callable[[str], Path]) -> None:
    """As one process does it; the recipe does not clip, whatever the file says."""
    if kind == "zero3":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    one, two = few_steps("alone"), few_steps(kind)
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert weights.keys() == others.keys()
    gap = max(float((w - others[name]).abs().max()) for name, w in weights.items())
    last = load_file(one / "checkpoint-4" / "model.safetensors")
    averaged = max(float((w - last[name]).abs().max()) for name, w in weights.items())
    assert gap <= 1e-5 < 1e-3 < averaged, (gap, averaged)
    figures, found = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert found["validation"] == pytest.approx(figures["validation"], rel=1e-5)
    assert (one / "predictions.txt").read_text() == (two / "predictions.txt").read_text()
    logged = [json.loads((folder / "checkpoint-4/trainer_state.json").read_text())["log_history"] for folder in (one, two)]
    during, also = ([entry["eval_nll_loss"] for entry in log if "eval_nll_loss" in entry] for log in logged)
    assert len(during) == 2
    assert also == pytest.approx(during, rel=1e-5)
    assert (two / "dict.source.txt").is_file()
