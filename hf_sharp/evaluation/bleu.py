"""BLEU and chrF of translations, and whether one system is better than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hf_sharp.translation.tokenizer import TranslationTokenizer


@dataclass(frozen=True)
class Scores:
    """How close translations are to their references.

    Attributes:
        token_bleu: BLEU of the tokens as they stand between blanks, 0 to 100: what ``fairseq-score`` reports.
        bleu: BLEU of detokenised text by sacrebleu, 0 to 100.
        chrf: chrF2 of detokenised text by sacrebleu, 0 to 100.
        signature: sacrebleu's, for ``bleu``: quote it with the number.
        chrf_signature: sacrebleu's, for ``chrf``.
    """

    token_bleu: float
    bleu: float
    chrf: float
    signature: str
    chrf_signature: str

    def __str__(self) -> str:
        """One line, to two decimals."""
        return (
            f"token BLEU {self.token_bleu:.2f}, sacreBLEU {self.bleu:.2f} ({self.signature}), "
            f"chrF {self.chrf:.2f} ({self.chrf_signature})"
        )


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same sentences, by paired bootstrap resampling (Koehn, 2004; sacrebleu's).

    Attributes:
        baseline: BLEU of the first system.
        system: BLEU of the second.
        p_value: how often a difference as large as this comes about by chance, 0 to 1.
        interval: half of the second system's 95 % confidence interval, in BLEU.
        samples: resampled test sets.
    """

    baseline: float
    system: float
    p_value: float
    interval: float
    samples: int


def check_parallel(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raises ValueError unless there is one reference per hypothesis, and at least one."""
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"There must be one reference per hypothesis, got {len(hypotheses)} hypotheses and {len(references)} "
            "references. Score the files line by line, empty lines included."
        )


def token_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU of tokens between blanks, 0 to 100, as ``fairseq-score`` computes it: no smoothing, no tokenisation.

    As there, an empty line counts as one symbol, ``</s>``, and ``<unk>`` in a reference matches nothing.

    >>> round(token_bleu(["the cat sat on the mat"], ["the cat sat on a mat"]), 2)
    53.73

    Raises:
        ValueError: the numbers of sentences differ, or there are none.
    """
    from sacrebleu.metrics import BLEU

    check_parallel(hypotheses, references)
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    known = [" ".join(f"<{word}>" if word == "<unk>" else word for word in line.split()) for line in references]
    return metric.corpus_score(_with_ends(hypotheses), [_with_ends(known)]).score


def _with_ends(lines: Sequence[str]) -> list[str]:
    return [line if line.strip() else "</s>" for line in lines]


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    token_hypotheses: Sequence[str] | None = None,
    token_references: Sequence[str] | None = None,
) -> Scores:
    """BLEU and chrF.

    Args:
        hypotheses: detokenised text.
        references: detokenised text, one per hypothesis.
        token_hypotheses: the same as tokens between blanks; by default the texts themselves.
        token_references: likewise.

    Raises:
        ValueError: the numbers of sentences differ, or there are none.
    """
    from sacrebleu.metrics import BLEU, CHRF

    check_parallel(hypotheses, references)
    bleu, chrf = BLEU(), CHRF()
    texts = list(hypotheses), [list(references)]
    scored = bleu.corpus_score(*texts).score, chrf.corpus_score(*texts).score
    return Scores(
        token_bleu(
            hypotheses if token_hypotheses is None else token_hypotheses,
            references if token_references is None else token_references,
        ),
        *scored,
        str(bleu.get_signature()),
        str(chrf.get_signature()),
    )


def compare(
    baseline: Sequence[str], system: Sequence[str], references: Sequence[str], *, samples: int = 1000, tokens: bool = False
) -> Comparison:
    """Whether the second system's BLEU differs from the first one's by more than chance.

    Args:
        baseline: one system's translations.
        system: the other one's, of the same sentences.
        references: one per sentence.
        samples: how many test sets to draw, at least 1; the draws are the same in every call.
        tokens: whether the sentences are tokens between blanks; otherwise they are detokenised text.

    Raises:
        ValueError: the numbers of sentences differ, or there are none.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest, Result

    for hypotheses in (baseline, system):
        check_parallel(hypotheses, references)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}. Use e.g. 1000.")
    metric = BLEU(tokenize="none", smooth_method="none", force=True) if tokens else BLEU()
    named: list[tuple[str, Sequence[str]]] = [("baseline", list(baseline)), ("system", list(system))]
    test = PairedTest(named, {"BLEU": metric}, [list(references)], test_type="bs", n_samples=samples)
    _, results = test()
    first, second = results["BLEU"]
    assert isinstance(first, Result)
    assert isinstance(second, Result)
    assert second.p_value is not None
    assert second.ci is not None
    chance = second.p_value if first.score != second.score else 1.0  # sacrebleu counts strictly larger differences
    return Comparison(first.score, second.score, chance, float(second.ci), samples)


def compute_metrics(tokenizer: TranslationTokenizer) -> Callable[[Any], dict[str, float]]:
    """The Trainer's ``compute_metrics`` for ``predict_with_generate=True``: ``token_bleu``, ``bleu`` and ``chrf``."""

    def computed(prediction: Any) -> dict[str, float]:
        texts = []
        for numbers in (prediction.predictions, prediction.label_ids):
            rows = np.where(np.asarray(numbers) < 0, tokenizer.pad_token_id, numbers).tolist()
            texts.append([tokenizer.decoded(row) for row in rows])
        plain = [[tokenizer.text(words) for words in side] for side in texts]
        scores = score(*plain, token_hypotheses=texts[0], token_references=texts[1])
        return {"token_bleu": scores.token_bleu, "bleu": scores.bleu, "chrf": scores.chrf}

    return computed


def module(name: str) -> str:
    """The path of a metric for ``evaluate.load``, so that nothing is fetched.

    Args:
        name: ``"token_bleu"`` or ``"translation_scores"``.

    Raises:
        ValueError: there is no such metric.
    """
    folder = Path(__file__).parent / "modules"
    known = sorted(path.stem for path in folder.glob("*.py"))
    if name not in known:
        raise ValueError(f"The metric must be one of {', '.join(known)}, got {name!r}. Use e.g. 'token_bleu'.")
    return str(folder / f"{name}.py")


def as_row(scores: Scores) -> Mapping[str, float | str]:
    """The scores for JSON."""
    return dict(vars(scores))
