"""BLEU of tokens, for ``evaluate.load(hf_sharp.evaluation.bleu.module("token_bleu"))``."""

from __future__ import annotations

import datasets
import evaluate

from hf_sharp.evaluation.bleu import token_bleu


class TokenBleu(evaluate.Metric):
    """Corpus BLEU of tokens between blanks, as ``fairseq-score`` reports it."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=token_bleu.__doc__ or "",
            citation="",
            inputs_description="predictions, references: tokens between blanks, one reference per prediction",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"token_bleu": token_bleu(predictions, references)}
