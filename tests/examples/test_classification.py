"""The classification scripts, run small as a user runs them; with real CIFAR-10 where HF_SHARP_CIFAR10 names its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import rmtree
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("datasets")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from PIL import Image

from hf_sharp import SAM, parse_method
from hf_sharp.comparison.papers import Row, read_rows
from hf_sharp.vision.data.images import StoredImages
from hf_sharp.vision.data.splits import ImageTask, Split
from hf_sharp.vision.record import record_of
from tests.scripts import example

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "classification"
PAPERS = sorted((ROOT / "configs" / "papers").glob("*.yaml"))
ROWS = {"asam": 66, "crsam": 91, "gam": 216, "rsam": 60}
CIFAR10 = os.environ.get("HF_SHARP_CIFAR10")


@pytest.fixture(scope="module")
def train() -> ModuleType:
    return example("classification/train")


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    return example("classification/accuracy")


def script(name: str, *words: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
    command = [*launcher, str(FOLDER / name), *words]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of the default run at full length, and what it said."""
    folder = tmp_path_factory.mktemp("digits")
    done = script("train.py", "--output_dir", str(folder), "--evaluate_training")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_digits_reach_97_percent(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = digits
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["last"]["accuracy"] >= 0.97
    assert results["seconds"] < 120
    assert results["training"]["accuracy"] > 0.99
    assert parse_method(results["method"]) == SAM(rho=0.05)
    assert results["passes_per_step"] == 2
    assert len(results["history"]) == 20
    assert results["best"]["accuracy"] == max(entry["accuracy"] for entry in results["history"])
    assert results["versions"].keys() == {"hf_sharp", "torch", "transformers", "accelerate", "python"}
    assert "sharpness/loss_gap" in results["logs"][0]
    assert "epoch 20: test accuracy" in done.stderr + done.stdout
    assert "400/400" in done.stderr  # the progress bar
    assert "last epoch: accuracy" in done.stdout


def test_accuracy_of_the_saved_model_is_the_trainers(
    digits: tuple[Path, subprocess.CompletedProcess[str]], accuracy: ModuleType
) -> None:
    folder, _ = digits
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    file = folder / "accuracy.json"
    metrics = accuracy.main([str(folder), "--dataset_name", "digits", "--output_file", str(file)])
    for name in ("accuracy", "top5", "cross_entropy", "calibration_error"):
        assert metrics[name] == pytest.approx(results["last"][name], abs=1e-5)
    assert json.loads(file.read_text(encoding="utf-8")) == metrics


def test_pipeline_reads_the_saved_model(digits: tuple[Path, subprocess.CompletedProcess[str]], train: ModuleType) -> None:
    from transformers import pipeline

    from hf_sharp.vision.data.splits import digits as images

    test = images().test
    classifier = pipeline("image-classification", model=str(digits[0]))
    pictures = [Image.fromarray(test.images[i].permute(1, 2, 0).numpy()) for i in range(20)]
    best = [int(max(said, key=lambda one: one["score"])["label"]) for said in classifier(pictures)]
    assert sum(a == b for a, b in zip(best, test.labels[:20].tolist(), strict=True)) >= 18


def test_with_accelerate_launch(tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    recipe = str(ROOT / "configs" / "digits" / "sgd.yaml")
    done = script("train.py", recipe, "--max_steps", "5", "--output_dir", str(tmp_path), launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["method"] is None


def test_resumed_run_ends_where_an_uninterrupted_one_does(train: ModuleType, tmp_path: Path) -> None:
    common = train.asked(["--num_train_epochs", "2", "--save_strategy", "epoch", "--dataloader_pin_memory", "false"])
    common |= {"augmentation": ["basic"], "disable_tqdm": True}
    for name in ("whole", "halves"):
        train.train(train.settings({**common, "output_dir": str(tmp_path / name)}))
    whole = torch.load(tmp_path / "whole" / "checkpoint-40" / "optimizer.pt", weights_only=True)
    rmtree(tmp_path / "halves" / "checkpoint-40")
    resumed = {**common, "output_dir": str(tmp_path / "halves"), "resume_from_checkpoint": True}
    for change, said in (
        ({"sharpness": "asam"}, r"got method=\{'name': 'asam'.* was made with \{'name': 'sam'"),
        ({"learning_rate": "0.05"}, r"got learning_rate=0\.05 .* was made with 0\.1\. Set it back"),
        ({"num_train_epochs": "3"}, "got num_train_epochs=3"),
    ):
        with pytest.raises(ValueError, match=said):
            train.train(train.settings({**resumed, **change}))
    _, earlier = record_of(tmp_path / "halves" / "checkpoint-20")
    results = train.train(train.settings(resumed))
    assert results["seconds"] > earlier > 0
    again = torch.load(tmp_path / "halves" / "checkpoint-40" / "optimizer.pt", weights_only=True)
    for i, state in whole["state"].items():
        assert torch.equal(state["momentum_buffer"], again["state"][i]["momentum_buffer"])


def test_each_recipe_and_each_row_has_a_folder_of_its_own(train: ModuleType, tmp_path: Path) -> None:
    lines = [[], *([str(file)] for file in RECIPES), *(["--paper", "asam", "--row", str(i)] for i in range(1, 5))]
    folders = [train.asked(line)["output_dir"] for line in lines]
    assert folders[0] == "runs/digits/sam"
    assert folders[-1] == "runs/asam/row4"
    assert len(set(folders[1:])) == len(folders) - 1
    (tmp_path / "own.yaml").write_text("output_dir: elsewhere\n")
    assert train.asked([str(tmp_path / "own.yaml")])["output_dir"] == "elsewhere"


def test_flags_override_the_recipe(train: ModuleType) -> None:
    recipe = str(ROOT / "configs" / "cifar10" / "asam.yaml")
    run = train.settings(
        train.asked([recipe, "--rho", "2.0", "--num_train_epochs", "3", "--augmentation", "basic", "cutout"])
    )
    assert run.sharpness.method().rho == 2.0
    assert run.training.num_train_epochs == 3
    assert run.augmentation.augmentation == ["basic", "cutout"]
    assert (run.model.model, run.data.dataset_name) == ("resnet18", "uoft-cs/cifar10")


def test_row_17_of_asam(train: ModuleType) -> None:
    run = train.settings(train.asked(["--paper", "asam", "--row", "17", "--num_train_epochs", "1"]))
    assert (run.model.model, run.sharpness.method()) == ("wrn28_2", SAM(rho=0.05))
    assert run.training.label_smoothing_factor == 0.1
    assert run.training.num_train_epochs == 1


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_every_row_resolves(train: ModuleType, file: Path) -> None:
    rows = read_rows(file)
    assert len(rows) == ROWS[file.stem]
    for row in rows:
        run = train.settings(row.settings)
        assert run.model.plain == (row.method in ("sgd", "vanilla", "momentum", "rmsprop", "adamw", "adamw_vit"))
        run.sharpness.method()
        assert run.training.train_batch_size * run.training.gradient_accumulation_steps == row.settings["total_batch_size"]
        assert row.published
        assert all(len(values) in (1, 2) for values in row.published.values())
        for name in ("accuracy", "top5", "imagenet_c", "imagenet_r", "imagenet_v2", "imagenet_real"):
            assert all(0 < row.published[name][0] < 100 for _ in [0] if name in row.published)


def test_a_rows_batch_is_the_same_with_any_number_of_processes(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    given = train.asked(["--paper", "asam", "--row", "49", "--use_cpu", "true"])
    assert (given["total_batch_size"], given["m"]) == (512, 128)
    monkeypatch.setattr(train, "training_devices", lambda use_cpu: 4)
    run = train.settings(given).training
    assert (run.per_device_train_batch_size, run.gradient_accumulation_steps) == (128, 1)
    monkeypatch.setattr(train, "training_devices", lambda use_cpu: 8)
    with pytest.raises(ValueError, match=r"got 512 for 128 x 1 x 8\. Use another number of devices"):
        train.settings(given)
    with pytest.raises(ValueError, match="per_device_train_batch_size must be m, got 64 and m=128"):
        train.settings({**given, "per_device_train_batch_size": "64"})


TINY: dict[str, dict[str, Any]] = {
    "resnet18": {"widths": [4, 4, 4, 4], "stem_width": 4},
    "resnet50": {"widths": [2, 2, 2, 2], "stem_width": 4},
    "resnet101": {"widths": [2, 2, 2, 2], "stem_width": 4, "depths": [1, 1, 2, 1]},
    "resnet20": {"widths": [4, 4, 4], "stem_width": 4},
    "resnet32": {"widths": [4, 4, 4], "stem_width": 4},
    "resnet56": {"widths": [4, 4, 4], "stem_width": 4, "depths": [2, 2, 2]},
    "resnext29_32x4d": {"widths": [8, 8, 8], "groups": 4, "stem_width": 4},
    "wrn28_2": {"widen": 1, "depth": 10},
    "wrn28_10": {"widen": 1, "depth": 10},
    "pyramidnet110": {"alpha": 9, "depth": 20},
    "pyramidnet272": {"alpha": 9, "depth": 29},
    "densenet121": {"growth": 4, "depths": [2, 2]},
    "vgg19_bn": {"widths": [4, 4, 4, 4, 4]},
}


TIMM: dict[str, dict[str, Any]] = {
    "efficientnet": {},  # timm takes no width for it
    "resnet": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]},
    "swin": {"img_size": 32, "window_size": 2, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
    "vit": {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 1},
}


def reduced(run: Any) -> Any:
    """The row's settings with a narrow model with fresh weights, few images per batch and two steps."""
    from dataclasses import replace

    name = run.model.model
    if name not in TINY:  # of timm, or one of its checkpoints: timm/NAME.TAG
        pytest.importorskip("timm")
        name = "timm:" + name.removeprefix("timm:").removeprefix("timm/").partition(".")[0]
    fields = TINY.get(name, TIMM.get(name.removeprefix("timm:").partition("_")[0].rstrip("0123456789")))
    run.training.max_steps = 2
    run.training.per_device_train_batch_size = 2
    run.training.gradient_accumulation_steps = min(2, run.training.gradient_accumulation_steps)
    run.training.disable_tqdm = True
    run.training.save_strategy = run.training.eval_strategy = "no"
    model = replace(run.model, model=name, model_args=fields)
    return replace(run, model=model, augmentation=replace(run.augmentation, image_size=32))


def random_task(run: Any) -> ImageTask:
    classes = 20 if "cifar100" in run.data.dataset_name else 10
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(classes, (8,))
    split = Split(StoredImages(pixels), labels, "train")
    return ImageTask(split, split, [str(i) for i in range(classes)])


def two_steps(train: ModuleType, file: Path, row: Row, folder: Path) -> None:
    run = reduced(train.settings({**row.settings, "output_dir": str(folder), "use_cpu": True}))
    trainer = train.trainer_for(run, random_task(run))
    before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    trained = trainer.train()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    what = f"{file.stem}, row {row.number}"
    assert trainer.state.global_step == 2, what
    assert torch.isfinite(after).all(), what
    assert not torch.equal(before, after), what
    assert 0 < trained.metrics["train_loss"] < float("inf"), what


def kinds(rows: list[Row]) -> list[Row]:
    """A row of each method, and with a method one of each `perturb_over` and kind of label noise; the first of each."""
    found: dict[tuple[str, Any], Row] = {}
    for row in rows:
        found.setdefault(("method", row.method), row)
        if not row.settings.get("plain"):
            for name in ("perturb_over", "label_noise"):
                found.setdefault((name, row.settings.get(name)), row)
    return list({row.number: row for row in found.values()}.values())


def test_the_rows_of_each_kind() -> None:
    methods = {"asam": 3, "crsam": 5, "gam": 4, "rsam": 8}
    for file in PAPERS:
        rows = read_rows(file)
        some = kinds(rows)
        assert {row.method for row in some} == {row.method for row in rows}
        assert len({row.method for row in some}) == methods[file.stem]
        active = [row.settings for row in some if not row.settings.get("plain")]
        assert {settings.get("perturb_over", "batch") for settings in active} == {"batch", "device"}
        assert any(settings.get("label_noise") for settings in active) == (file.stem == "asam")


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_two_steps_of_a_row_of_each_kind(train: ModuleType, file: Path, tmp_path: Path) -> None:
    for row in kinds(read_rows(file)):
        two_steps(train, file, row, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_two_steps_of_every_row(train: ModuleType, file: Path, tmp_path: Path) -> None:
    for row in read_rows(file):
        two_steps(train, file, row, tmp_path)


RECIPES = sorted(
    file
    for task in ("digits", "cifar10", "cifar10_noise", "cifar100", "tiny_imagenet", "imagenet", "finetune")
    for file in (ROOT / "configs" / task).glob("*.yaml")
    if file.name != "defaults.yaml"
)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_recipe_resolves(train: ModuleType, file: Path) -> None:
    run = train.settings({**train.asked([str(file)]), "use_cpu": True})
    assert run.model.plain == (file.stem in ("sgd", "adamw"))
    run.sharpness.method()


def folders(root: Path, names: list[str], level: int = 0) -> None:
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (20 * i + level,) * 3).save(root / name / "image.png")


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory, train: ModuleType) -> Path:
    """A small classifier of ImageNet's classes, untrained."""
    from hf_sharp.evaluation.robustness import synsets
    from hf_sharp.vision.data.preprocessing import Preprocessing
    from hf_sharp.vision.models import build

    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("thousand")
    torch.manual_seed(0)
    build("resnet18", synsets(), TINY["resnet18"]).save_pretrained(folder)
    Preprocessing(32, (0.5,) * 3, (0.25,) * 3, 36).processor().save_pretrained(folder)
    return folder


def test_imagenets_variants(thousand: Path, accuracy: ModuleType, tmp_path: Path) -> None:
    from hf_sharp.evaluation.robustness import ALEXNET_ERRORS, synsets

    folders(tmp_path / "r", synsets("imagenet_r")[:3])
    found = accuracy.main([str(thousand), "--dataset_name", str(tmp_path / "r"), "--variant", "r"])
    assert found["accuracy"] == pytest.approx(1 / 3)  # an untrained network says the same of all three
    assert "top5" not in found  # 3 classes are left of 1000

    folders(tmp_path / "v2", ["0", "10", "9"])
    line = [str(thousand), "--dataset_name", str(tmp_path / "v2"), "--variant", "v2"]
    assert accuracy.main(line)["top5"] <= 1

    for name in ALEXNET_ERRORS:
        for level in range(1, 6):
            folders(tmp_path / "c" / name / str(level), synsets()[:2], level)
    found = accuracy.main([str(thousand), "--dataset_name", str(tmp_path / "c"), "--variant", "c"])
    assert found.keys() == {"accuracy", "mce"}
    rmtree(tmp_path / "c" / "snow" / "3")
    (tmp_path / "c" / "snow" / "3").mkdir()
    with pytest.raises(ValueError, match=r"15 corruptions' folders 1 to 5, got none in '.*snow.3'\. Download"):
        accuracy.check_corruptions(tmp_path / "c")

    for name, numbers in zip(synsets()[:2], ((1, 2), (50_000,)), strict=True):
        (tmp_path / "real" / name).mkdir(parents=True)
        for i in numbers:
            Image.new("RGB", (40, 40)).save(tmp_path / "real" / name / f"ILSVRC2012_val_{i:08d}.JPEG")
    line = [str(thousand), "--dataset_name", str(tmp_path / "real"), "--variant", "real"]
    found = accuracy.main([*line, "--in_memory", "never"])
    assert found.keys() == {"accuracy", "original_accuracy"}


@pytest.mark.slow
@pytest.mark.skipif(CIFAR10 is None, reason="HF_SHARP_CIFAR10 does not name a folder with CIFAR-10")
def test_real_cifar10(train: ModuleType, tmp_path: Path) -> None:
    recipe = str(ROOT / "configs" / "cifar10_noise" / "sam.yaml")
    line = [
        recipe,
        "--dataset_name",
        str(CIFAR10),
        "--num_train_epochs",
        "3",
        "--label_noise",
        "none",
        "--test_limit",
        "1000",
    ]
    results = train.train(train.settings(train.asked([*line, "--output_dir", str(tmp_path), "--eval_strategy", "no"])))
    assert results["last"]["accuracy"] > 0.25
