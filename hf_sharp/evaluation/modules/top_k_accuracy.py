"""Top-k accuracy, for ``evaluate.load(hf_sharp.evaluation.accuracy.module("top_k_accuracy"))``."""

from __future__ import annotations

import datasets
import evaluate
import torch

from hf_sharp.evaluation.accuracy import top_k


class TopKAccuracy(evaluate.Metric):
    """The share of images whose label is among the k largest logits."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=top_k.__doc__ or "",
            citation="",
            inputs_description="predictions: logits, one list per image; references: class numbers; k, 1 by default",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int], k: int = 1) -> dict[str, float]:
        return {f"top{k}": top_k(torch.tensor(predictions), torch.tensor(references), k)}
