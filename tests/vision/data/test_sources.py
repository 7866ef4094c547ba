"""Data sets in local folders: columns, splits, classes, noise, and what is wrong with them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("PIL")
import datasets
from PIL import Image

from hf_sharp.vision.data.images import EncodedImages, StoredImages
from hf_sharp.vision.data.sources import DataArguments, load_split, load_task

NAMES = ["cat", "dog", "owl"]


def png(level: int, size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(stream, "PNG")
    return stream.getvalue()


def write(
    folder: Path,
    split: str,
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = NAMES,
    label: str = "label",
    image: str = "img",
    images: Sequence[Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """A split as a parquet file; image i is of the grey level i."""
    plain = datasets.Value("string" if labels and isinstance(labels[0], str) else "int64")
    kind = plain if names is None else datasets.ClassLabel(names=list(names))
    columns = {image: list(images) if images is not None else [png(i) for i in range(len(labels))], label: list(labels)}
    features = {image: datasets.Image(decode=False), label: kind}
    for name, values in (extra or {}).items():
        columns[name], features[name] = values, datasets.ClassLabel(names=["a", "b"])
    columns[image] = [x if isinstance(x, dict) else {"bytes": x, "path": None} for x in columns[image]]
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    folder.mkdir(parents=True, exist_ok=True)
    data.cast_column(image, datasets.Image()).to_parquet(folder / f"{split}.parquet")
    return folder


def args(folder: Path, **fields: Any) -> DataArguments:
    return DataArguments(dataset_name=str(folder), **fields)


def test_columns_and_splits_are_found(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1, 2, 0])
    write(tmp_path, "test", [2, 1])
    task = load_task(args(tmp_path))
    assert task.classes == NAMES
    assert task.train.labels.tolist() == [0, 1, 2, 0]
    assert task.test.labels.tolist() == [2, 1]
    assert isinstance(task.train.images, StoredImages)
    assert [int(task.train.images[i][0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]
    assert task.test.name == "test"


def test_images_are_decoded_when_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1, 2])
    write(tmp_path, "validation", [2, 1])
    task = load_task(args(tmp_path, in_memory="never"))
    assert isinstance(task.train.images, EncodedImages)
    assert int(task.train.images[2][1, 3, 3]) == 2
    assert task.test.name == "validation"


def test_finer_labels_are_preferred(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, split, [0, 1, 2], label="fine_label", extra={"coarse_label": [0, 0, 1]})
    assert load_task(args(tmp_path)).classes == NAMES
    coarse = load_task(args(tmp_path, label_column="coarse_label"))
    assert coarse.classes == ["a", "b"]
    assert coarse.train.labels.tolist() == [0, 0, 1]


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i, name in enumerate(NAMES):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "one.png").write_bytes(png(i))
    task = load_task(args(tmp_path))
    assert task.classes == NAMES
    assert [int(task.test.images[i][0, 0, 0]) for i in range(3)] == task.test.labels.tolist()


def test_limits_holdout_and_noise(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1, 2] * 20)
    write(tmp_path, "test", [0, 1, 2] * 3)
    task = load_task(args(tmp_path, train_limit=40, test_limit=5, label_noise="symmetric", noise_rate=0.25))
    assert len(task.train.labels) == len(task.train.images) == 40
    assert int((task.train.labels != torch.tensor([0, 1, 2] * 20)[:40]).sum()) == 10
    assert task.test.labels.tolist() == [0, 1, 2, 0, 1]
    held = load_task(args(tmp_path, holdout=0.1))
    train = [int(held.train.images[i][0, 0, 0]) for i in range(54)]
    out = [int(held.test.images[i][0, 0, 0]) for i in range(6)]
    assert sorted(train + out) == list(range(60))
    assert [row % 3 for row in out] == held.test.labels.tolist()
    assert (held.test.name, len(held.train.labels)) == ("holdout", 54)


def test_held_out_images_have_clean_labels(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1, 2] * 20)
    write(tmp_path, "test", [0, 1, 2])
    noisy = load_task(args(tmp_path, holdout=0.5, label_noise="symmetric", noise_rate=1.0))
    out = [int(noisy.test.images[i][0, 0, 0]) % 3 for i in range(30)]
    kept = [int(noisy.train.images[i][0, 0, 0]) % 3 for i in range(30)]
    assert noisy.test.labels.tolist() == out
    assert all(a != b for a, b in zip(noisy.train.labels.tolist(), kept, strict=True))


def test_human_labels(tmp_path: Path) -> None:
    images, noisy = tmp_path / "images", tmp_path / "noisy"
    write(images, "train", [0, 1, 2, 0])
    write(images, "test", [2, 1])
    noisy.mkdir()
    rows = {"clean_label": [0, 1, 2, 0], "worse_label": [1, 1, 2, 2]}
    datasets.Dataset.from_dict(rows).to_parquet(noisy / "train.parquet")
    task = load_task(args(images, label_noise=str(noisy)))
    assert task.train.labels.tolist() == [1, 1, 2, 2]
    assert task.test.labels.tolist() == [2, 1]


def test_classes_are_checked_in_a_folder_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "d", "train", [0, 1, 2])
    write(tmp_path / "d", "test", [0, 1, 2])
    assert load_task(DataArguments(dataset_name="~/d")).classes == NAMES
    write(tmp_path / "d", "test", [0, 1, 2], names=["dog", "cat", "owl"])
    with pytest.raises(ValueError, match=r"must have the same classes in the same order"):
        load_task(DataArguments(dataset_name="~/d"))


def test_one_split(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1, 2])
    split, classes = load_split(args(tmp_path))
    assert (classes, split.labels.tolist()) == (NAMES, [0, 1, 2])
    assert len(load_split(DataArguments())[0].labels) == 540


def test_digits() -> None:
    pytest.importorskip("sklearn")
    task = load_task(DataArguments())
    assert (len(task.train.labels), len(task.test.labels)) == (1257, 540)
    assert task.train.images[0].shape == (3, 8, 8)
    assert torch.bincount(task.test.labels).min() >= 50
