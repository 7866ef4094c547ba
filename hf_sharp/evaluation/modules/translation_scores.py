"""sacreBLEU and chrF, for ``evaluate.load(hf_sharp.evaluation.bleu.module("translation_scores"))``."""

from __future__ import annotations

import datasets
import evaluate

from hf_sharp.evaluation.bleu import as_row, score


class TranslationScores(evaluate.Metric):
    """Detokenised sacreBLEU and chrF with their signatures, and BLEU of the tokens."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=score.__doc__ or "",
            citation="",
            inputs_description="predictions, references: text, one reference per prediction",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | str]:
        return dict(as_row(score(predictions, references)))
