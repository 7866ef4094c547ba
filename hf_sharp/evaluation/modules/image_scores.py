"""Accuracy, cross-entropy and calibration, for ``evaluate.load(hf_sharp.evaluation.accuracy.module("image_scores"))``."""

from __future__ import annotations

import datasets
import evaluate
import torch

from hf_sharp.evaluation.accuracy import classification_metrics


class ImageScores(evaluate.Metric):
    """Top-1 and top-5 accuracy, cross-entropy and expected calibration error of logits."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=classification_metrics.__doc__ or "",
            citation="",
            inputs_description="predictions: logits, one list per image; references: class numbers",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        return classification_metrics(torch.tensor(predictions), torch.tensor(references))
