"""Calibration error, for ``evaluate.load(hf_sharp.evaluation.accuracy.module("calibration_error"))``."""

from __future__ import annotations

import datasets
import evaluate
import torch

from hf_sharp.evaluation.accuracy import calibration_error


class CalibrationError(evaluate.Metric):
    """The expected calibration error of logits."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=calibration_error.__doc__ or "",
            citation="",
            inputs_description="predictions: logits, one list per image; references: class numbers; bins, 15 by default",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int], bins: int = 15) -> dict[str, float]:
        return {"calibration_error": calibration_error(torch.tensor(predictions), torch.tensor(references), bins)}
