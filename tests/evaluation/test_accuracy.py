"""Metrics of classifiers beside scikit-learn, counting by hand, and the files that timm has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_sharp.evaluation.accuracy import calibration_error, classification_metrics, cross_entropy, module, top_k
from hf_sharp.evaluation.robustness import (
    ALEXNET_ERRORS,
    class_numbers,
    corruption_scores,
    masked,
    multi_label_accuracy,
    real_labels,
    synsets,
)


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 12, generator=generator)
    labels = torch.where(torch.rand(500, generator=generator) < 0.5, logits.argmax(1), torch.randint(12, (500,)))
    return logits, labels


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_as_scikit_learn(case: tuple[Tensor, Tensor], k: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = case
    expected = metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(12))
    assert top_k(logits, labels, k) == pytest.approx(expected, abs=1e-12)


def test_cross_entropy_as_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = case
    probabilities = logits.double().softmax(1)
    expected = metrics.log_loss(labels, probabilities, labels=range(12))
    assert cross_entropy(logits, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_by_counting(case: tuple[Tensor, Tensor], bins: int) -> None:
    logits, labels = case
    probabilities = np.exp(logits.double().numpy())
    probabilities /= probabilities.sum(1, keepdims=True)
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    expected = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - hit[inside].mean())
    assert calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_of_certainty() -> None:
    sure = 100 * torch.eye(4)
    assert calibration_error(sure, torch.arange(4)) == pytest.approx(0)
    assert calibration_error(sure, (torch.arange(4) + 1) % 4) == pytest.approx(1)


def test_few_classes_have_no_top5() -> None:
    assert set(classification_metrics(torch.eye(4), torch.arange(4))) == {"accuracy", "cross_entropy", "calibration_error"}
    assert "top5" in classification_metrics(torch.eye(6), torch.arange(6))


@pytest.mark.parametrize("name", ["image_scores", "top_k_accuracy", "calibration_error"])
def test_modules_of_evaluate_load_without_a_hub(
    name: str, case: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    logits, labels = case
    metric = evaluate.load(module(name))
    for start in (0, 250):
        part = slice(start, start + 250)
        metric.add_batch(predictions=logits[part].tolist(), references=labels[part].tolist())
    expected: dict[str, Callable[[], dict[str, float]]] = {
        "image_scores": lambda: classification_metrics(logits, labels),
        "top_k_accuracy": lambda: {"top1": top_k(logits, labels)},
        "calibration_error": lambda: {"calibration_error": calibration_error(logits, labels)},
    }
    assert metric.compute() == pytest.approx(expected[name](), abs=1e-6)


def test_modules_of_imagenets_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    accuracies = {name: [0.05 * i + 0.01 * j for j in range(5)] for i, name in enumerate(ALEXNET_ERRORS)}
    metric = evaluate.load(module("corruption_scores"))
    found = metric.compute(predictions=list(accuracies.values()), references=list(accuracies))
    assert found == pytest.approx(corruption_scores(accuracies), abs=1e-9)
    logits, labels = torch.tensor([[0.0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 0]]), [[2, 1], [1], [], [0, 2]]
    metric = evaluate.load(module("multi_label_accuracy"))
    for rows in (slice(2), slice(2, 4)):
        metric.add_batch(predictions=logits[rows].tolist(), references=labels[rows])
    assert metric.compute() == {"multi_label_accuracy": pytest.approx(2 / 3)}


def test_alexnet_has_a_corruption_error_of_one() -> None:
    scores = corruption_scores({name: [1 - error] * 5 for name, error in ALEXNET_ERRORS.items()})
    assert scores["mce"] == pytest.approx(1.0)
    assert scores["accuracy"] == pytest.approx(1 - np.mean(list(ALEXNET_ERRORS.values())))


def test_corruption_scores_by_hand() -> None:
    accuracies = {name: [0.05 * i + 0.01 * j for j in range(5)] for i, name in enumerate(ALEXNET_ERRORS)}
    scores = corruption_scores(accuracies)
    errors = {name: 1 - np.mean(values) for name, values in accuracies.items()}
    assert scores["mce"] == pytest.approx(np.mean([errors[name] / ALEXNET_ERRORS[name] for name in errors]))
    assert scores["accuracy"] == pytest.approx(1 - np.mean(list(errors.values())))


def test_only_the_classes_that_are_left_can_be_predicted() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 5.0, 4.0, 3.0]])
    assert masked(logits, [3, 1]).argmax(1).tolist() == [0, 1]


def test_images_with_several_labels_and_with_none() -> None:
    logits = torch.tensor([[0.0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 0]])
    assert multi_label_accuracy(logits, [[2, 1], [1], [], [0, 2]]) == pytest.approx(2 / 3)


def test_lists_of_timm() -> None:
    pytest.importorskip("timm")
    thousand, two_hundred, labels = synsets(), synsets("imagenet_r"), real_labels()
    assert (len(thousand), len(two_hundred), len(labels)) == (1000, 200, 50_000)
    assert thousand == sorted(thousand)
    assert set(two_hundred) < set(thousand)
    assert {label for some in labels for label in some} <= set(range(1000))
    assert class_numbers(two_hundred[:2], [str(i) for i in range(1000)]) == [thousand.index(x) for x in two_hundred[:2]]
    assert class_numbers(["b", "a"], ["a", "b", "c"]) == [1, 0]


def test_module_is_a_file() -> None:
    assert Path(module("image_scores")).is_file()
