"""BLEU, held to what fairseq-score printed and to sacrebleu itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import sacrebleu

from hf_sharp.evaluation.bleu import compare, module, score, token_bleu

HYPOTHESES = [
    "the cat sat on the mat .",
    "",
    "a man is riding a horse on the beach",
    "two dogs run",
    "<unk> people",
    "",
    "hello",
]
REFERENCES = [
    "the cat sat on a mat .",
    "a b c",
    "a man rides a horse on the beach",
    "",
    "<unk> people sit",
    "",
    "hello there",
]
# fairseq-score --sys hypotheses --ref references
PREFIXES = {
    4: "BLEU4 = 45.32, 65.0/56.2/38.5/30.0 (BP=1.000, ratio=1.053, syslen=20, reflen=19)",
    7: "BLEU4 = 43.09, 66.7/52.9/38.5/30.0 (BP=0.959, ratio=0.960, syslen=24, reflen=25)",
}


@pytest.mark.parametrize("number", PREFIXES)
def test_token_bleu_is_fairseqs_with_empty_lines(number: int) -> None:
    expected = float(PREFIXES[number].split()[2].rstrip(","))
    assert round(token_bleu(HYPOTHESES[:number], REFERENCES[:number]), 2) == expected


def test_nothing_in_common_is_zero() -> None:
    assert token_bleu(["a b c d e"], ["v w x y z"]) == 0


def test_text_scores_are_sacrebleus() -> None:
    found = score(HYPOTHESES, REFERENCES)
    assert found.bleu == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert found.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert f"sacreBLEU {found.bleu:.2f} ({found.signature})" in str(found)


def test_comparison_tells_a_better_system_from_the_same_one() -> None:
    references = [f"sentence number {i} is about the thing {i * 7}" for i in range(40)]
    worse = [line.replace("thing", "matter").replace("about", "of") for line in references]
    better = compare(worse, references, references, samples=200)
    assert better.system == pytest.approx(100)
    assert better.p_value < 0.02
    same = compare(worse, worse, references, samples=200)
    assert same.p_value == 1
    assert compare(worse, references, references, samples=200) == better


@pytest.mark.parametrize("name", ["token_bleu", "translation_scores"])
def test_metrics_load_from_the_package(name: str, tmp_path: Path) -> None:
    evaluate = pytest.importorskip("evaluate")
    metric = evaluate.load(module(name), cache_dir=str(tmp_path))
    found = metric.compute(predictions=HYPOTHESES, references=REFERENCES)
    assert found["token_bleu"] == token_bleu(HYPOTHESES, REFERENCES)
    assert name == "token_bleu" or found["bleu"] == score(HYPOTHESES, REFERENCES).bleu


@pytest.mark.slow
@pytest.mark.skipif("FAIRSEQ_PYTHON" not in os.environ, reason="FAIRSEQ_PYTHON does not name a Python with fairseq")
def test_real_fairseq_score_prints_the_same(tmp_path: Path) -> None:
    files = {"sys": HYPOTHESES, "ref": REFERENCES}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    command = Path(os.environ["FAIRSEQ_PYTHON"]).with_name("fairseq-score")
    done = subprocess.run(
        [command, "--sys", tmp_path / "sys", "--ref", tmp_path / "ref"], capture_output=True, text=True, timeout=200
    )
    assert f"BLEU4 = {token_bleu(HYPOTHESES, REFERENCES):.2f}," in done.stdout
