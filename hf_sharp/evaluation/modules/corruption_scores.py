"""ImageNet-C's scores, for ``evaluate.load(hf_sharp.evaluation.accuracy.module("corruption_scores"))``."""

from __future__ import annotations

import datasets
import evaluate

from hf_sharp.evaluation.robustness import corruption_scores


class CorruptionScores(evaluate.Metric):
    """Mean top-1 accuracy on ImageNet-C, and the mean corruption error."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=corruption_scores.__doc__ or "",
            citation="",
            inputs_description="predictions: five top-1 accuracies (0 to 1) per corruption; references: the corruptions",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[str]) -> dict[str, float]:
        return corruption_scores(dict(zip(references, predictions, strict=True)))
