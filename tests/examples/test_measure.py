"""The measuring scripts, run small as a user runs them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTForImageClassification,
)

from hf_sharp.measure import QUANTITIES, figures, loss_surface
from hf_sharp.measure.checkpoints import Source
from hf_sharp.measure.figures.style import LOOKS
from tests.measure.checkpoints import checkpoint
from tests.measure.test_quantities import SMALL
from tests.scripts import example

ROOT = Path(__file__).parents[2]
DIGITS = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints for digits."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("plain", "sam")):
        checkpoint(root / name, DIGITS, seed)
    return root


@pytest.fixture(scope="module")
def diverged(folder: Path) -> str:
    """One whose weights are no numbers."""
    model = ViTForImageClassification.from_pretrained(checkpoint(folder / "diverged", DIGITS))
    torch.nn.init.constant_(model.classifier.weight, math.nan)
    model.save_pretrained(folder / "diverged")
    return str(folder / "diverged")


def test_every_quantity_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two checkpoints: JSON with settings, versions and errors, a table, and figures as PNG and SVG."""
    out = folder / "report"
    asked = []
    for name in QUANTITIES:
        extra = {"checkpoint": str(folder / "sam")} if name == "loss_between" else {}
        extra |= {"k": 3} if name == "top_eigenvalues" else {}
        asked.append(json.dumps({"name": name, **SMALL[name], **extra}))
    example("measure/measure_checkpoint").main(
        [
            *(f"AdamW={folder / 'plain'}", f"SAM={folder / 'sam'}", "--data", "digits", "--splits", "test"),
            *("--samples", "12", "--batch_size", "8", "--output_dir", str(out), "--quantities", *asked),
        ]
    )
    found = json.loads((out / "results.json").read_text())
    assert list(found) == ["test"]
    for split in found.values():
        assert list(split) == list(QUANTITIES)
        for results in split.values():
            assert list(results) == ["AdamW", "SAM"]
            for result in results.values():
                assert result["versions"].keys() >= {"hf_sharp", "torch", "transformers"}
                assert result["settings"] is not None
                assert result["about"]["terms"] == 12
    with_errors = {name for name, results in found["test"].items() if results["SAM"]["standard_errors"]}
    assert with_errors >= {
        "trace",
        "normalized_trace",
        "average_sharpness",
        "approximation_ratio",
        "extrema",
        "three_losses",
    }
    drawn = {"top_eigenvalues", "spectral_density", "gradient_cosine", "ascent_loss", "extrema", "loss_line", "loss_between"}
    drawn |= {"loss_plane_contours", "loss_plane_surfaces"}
    for split in found:
        for name in drawn:
            assert (out / f"{name}_{split}.png").read_bytes().startswith(b"\x89PNG")
            assert "<svg" in (out / f"{name}_{split}.svg").read_text()[:2000]
    assert not list(out.glob(".*"))
    assert "| trace | trace |" in capsys.readouterr().out


def test_the_settings_of_the_report() -> None:
    read = example("measure/measure_checkpoint").quantities
    report, ends = (read([str(ROOT / "configs" / "measure" / name)]) for name in ("report.yaml", "ends.yaml"))
    assert {quantity.name for quantity in report.values()} == set(QUANTITIES) - {"loss_between", "trace"}
    assert list(ends) == ["normalized_trace", "top_eigenvalues", "approximation_ratio"]


@pytest.mark.slow
def test_the_other_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy figures, and a grid of runs too short to mean anything."""
    example("measure/toys").main(["--output_dir", str(tmp_path)])
    example("measure/correlate").main(["--steps", "3", "--output_dir", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{n}.{k}" for n in ("trajectories", "regions", "hills", "correlation") for k in ("png", "svg")} | {
        "correlation.json"
    }
    assert len(json.loads((tmp_path / "correlation.json").read_text())["runs"]) == 16
    assert "| psi |" in capsys.readouterr().out


def test_compared_models_share_one_colour_scale() -> None:
    low, high = ({"arrays": {"x": [0.0, 1.0], "y": [0.0, 1.0], "losses": [[a, 2 * a], [3 * a, 4 * a]]}} for a in (1.0, 10.0))
    contours = figures.contours({"a": low, "b": high})
    norms = [axes.collections[0].norm for axes in contours.axes[:2]]
    assert [(norm.vmin, norm.vmax) for norm in norms] == [(1.0, 40.0)] * 2
    surfaces = figures.surfaces({"a": low, "b": high})
    assert len({axes.get_zlim() for axes in surfaces.axes[:2]}) == 1


def test_runs_differ_without_colour() -> None:
    for part in ("line", "marker", "hatch"):
        assert len({str(getattr(look, part)) for look in LOOKS}) == len(LOOKS)


def test_evolution_has_two_axes_per_value() -> None:
    history = [
        {"loader": loader, "epoch": epoch, "values": {"trace": 1.0 + epoch}, "standard_errors": {"trace": 0.1}}
        for loader in ("train", "test")
        for epoch in (0.0, 1.0)
    ]
    figure: Figure = figures.evolution({"SGD": history, "SAM": history}, ["trace"])
    left, right = figure.axes
    assert "train" in left.get_ylabel()
    assert "test" in right.get_ylabel()
    assert len(left.containers) == len(right.containers) == 2


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of texts, and two tiny language models with a tokenizer."""
    root = tmp_path_factory.mktemp("texts")
    words = ["good", "bad", "film", "very", "not"]
    rows = {"text": ["good film", "bad film", "very good film", "not very good", "bad"], "label": [1, 0, 1, 0, 0]}
    DatasetDict({"train": Dataset.from_dict(rows)})["train"].to_parquet(str(root / "data" / "train.parquet"))
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 7}
    torch.manual_seed(0)
    for name, model in (
        ("text-classification", BertForSequenceClassification(BertConfig(**shape, num_labels=2))),
        ("causal-lm", LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=1, pad_token_id=0))),
    ):
        model.save_pretrained(root / name)
        fast.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_text_models(texts: Path, task: str) -> None:
    """The loss does not depend on the batches: per text, or per token that is scored (the last text has none)."""
    place, losses = str(texts / task), []
    for size in (5, 2):
        source = Source(str(texts / "data"), task, batch_size=size)
        model = source.model(place)
        with loss_surface(model, source.loader(place, "train")) as f:
            losses.append(f.loss())
            terms = f.batches.total
    assert terms == (5 if task == "text-classification" else 6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("place", "quantity", "message"),
    [
        ("sam", "{name: top_eigenvalues, k: 999999}", "k must be at most the number of weights, 1010, got 999999."),
        ("sam", "{name: spectral_density, lanczos: 2000}", "lanczos must be at most the number of weights, 1010, got 2000."),
        ("sam", "{name: sharpness, m: 9}", "m must be at most the batch size, got 9, which no batch holds."),
        ("sam", "{name: loss_between, checkpoint: none}", "A checkpoint must be a folder or a model of the Hub, got 'none'"),
        ("none", "sharpness", "A checkpoint must be a folder or a model of the Hub, got "),
        ("sam --splits test dev", "sharpness", "split must be one of train, test, got 'dev' for 'digits'."),
    ],
)
def test_what_only_the_model_or_the_data_tell(
    place: str, quantity: str, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second checkpoint's last quantity, too, before anything is measured: nothing is written."""
    monkeypatch.chdir(folder)
    line = ["plain", *place.split(), "--data", "digits", "--samples", "8", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        example("measure/measure_checkpoint").main([*line, "--quantities", "trace", quantity])
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*checkpoint.*")
def test_what_has_no_value_takes_nothing_else_along(
    folder: Path, diverged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that has diverged, and a quantity that does not get there: the others are written, the exit is a 1."""
    slow = "{name: top_eigenvalues, k: 60, tolerance: 1.0e-12, restarts: 1}"
    line = [f"bad={diverged}", f"good={folder / 'sam'}", "--data", "digits", "--samples", "8", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        example("measure/measure_checkpoint").main([*line, "--quantities", slow, "trace", "{name: loss_line, points: 3}"])
    assert end.value.code == 1
    said = capsys.readouterr()
    reasons = said.err.partition("Not everything has a value:\n")[2].splitlines()
    assert [why.split(", got ")[0] for why in reasons] == [
        "top_eigenvalues, trace, loss_line of bad on train: The loss must be finite at the weights",
        "top_eigenvalues of good on train: The eigenvalues must converge",
    ]
    assert reasons[0].endswith("Measure a checkpoint from before.")
    found = json.loads((tmp_path / "results.json").read_text())["train"]
    assert math.isfinite(found["trace"]["good"]["values"]["trace"])
    assert found["trace"]["bad"]["values"] == {}
    assert found["trace"]["bad"]["about"]["undefined"] in reasons[0]
    shown = (tmp_path / "table_train.md").read_text()
    assert shown in said.out
    assert "| trace | trace | none | " in shown
    assert "| top_eigenvalues | top_eigenvalues | none | none |" in shown
    assert {path.suffix for path in tmp_path.glob("loss_line_train.*")} == {".png", ".svg"}


@pytest.mark.slow
def test_training_leaves_checkpoints_that_can_be_measured(tmp_path: Path, diverged: str) -> None:
    """Train with SAM for two epochs, draw the evolution, and measure the end in two processes, beside what cannot be."""
    example("measure/train_checkpoints").main(
        ["digits_vit", "sam", "--epochs", "2", "--samples", "128", "--cpu", "--output_dir", str(tmp_path)]
    )
    run = tmp_path / "digits_vit" / "sam"
    history = json.loads((run / "history.json").read_text())
    assert {entry["epoch"] for entry in history} == {0, 2.0}
    example("measure/evolution").main([f"SAM={run / 'history.json'}", "--output_dir", str(tmp_path)])
    assert (tmp_path / "evolution.png").exists()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["examples/measure/measure_checkpoint.py", f"bad={diverged}", f"half={run / 'half'}", f"end={run / 'end'}"]
    command += ["--data", "digits", "--samples", "64", "--batch_size", "32", "--threads", "1"]
    command += ["--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("\ntrace of bad on train: The loss must be finite at the weights, got nan: ") == 1, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())["train"]["trace"]
    assert {name: result["about"].get("processes") for name, result in found.items()} == {"bad": None, "half": 2, "end": 2}
    assert "| trace | trace | none | " in (tmp_path / "out" / "table_train.md").read_text()


def test_a_folder_with_an_equals_sign_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = "sweep/sam,rho=0.2/seed0"
    Path(place).mkdir(parents=True)
    script = example("measure/measure_checkpoint")
    assert script.checkpoints([place]) == {"seed0": place}
    assert script.checkpoints([f"SAM={place}", "a=b/c", "microsoft/resnet-50"]) == {
        "SAM": place,
        "a": "b/c",
        "resnet-50": "microsoft/resnet-50",
    }
