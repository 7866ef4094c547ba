"""ReaL's accuracy, for ``evaluate.load(hf_sharp.evaluation.accuracy.module("multi_label_accuracy"))``."""

from __future__ import annotations

import datasets
import evaluate
import torch

from hf_sharp.evaluation.robustness import multi_label_accuracy


class MultiLabelAccuracy(evaluate.Metric):
    """The share of images whose largest logit is one of their labels, among those that have any."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = {"predictions": datasets.Value("float32"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=multi_label_accuracy.__doc__ or "",
            citation="",
            inputs_description="predictions: logits, one list per image; references: class numbers, one list per image",
            features=datasets.Features({name: datasets.Sequence(kind) for name, kind in kinds.items()}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        return {"multi_label_accuracy": multi_label_accuracy(torch.tensor(predictions), references)}
