"""Training beside real fairseq, step by step, where there is one."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from hf_sharp.translation.batches import TokenBatchSampler
from hf_sharp.translation.binarized import load_binarized
from hf_sharp.translation.conversion import from_fairseq
from hf_sharp.translation.model import FairseqTransformer
from hf_sharp.translation.trainer import TranslationTrainer
from tests.translation.cases import DATA, converted, figures, write_memory_mapped

FAIRSEQ = os.environ.get("FAIRSEQ_PYTHON")
STEPS, TOKENS = 24, 200
RECIPE = "--arch transformer_iwslt_de_en --share-decoder-input-output-embed --encoder-layers 1 --decoder-layers 2"
RECIPE += " --encoder-attention-heads 2 --decoder-attention-heads 4 --encoder-embed-dim 16 --decoder-embed-dim 16"
RECIPE += " --encoder-ffn-embed-dim 24 --decoder-ffn-embed-dim 32 --dropout 0 --optimizer adam --adam-betas (0.9,0.98)"
RECIPE += " --lr 5e-3 --lr-scheduler inverse_sqrt --warmup-updates 8 --warmup-init-lr 1e-7 --weight-decay 1e-4"
RECIPE += " --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --update-freq 2 --seed 1 --cpu --num-workers 0"
RECIPE += " --reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters --disable-validation"
RECIPE += f" --max-tokens {TOKENS} --max-update {STEPS} --log-format json --log-interval 1 --no-epoch-checkpoints"
ORDER = f"""
import json, sys
from fairseq import checkpoint_utils
_, _, task = checkpoint_utils.load_model_ensemble_and_task([sys.argv[2]], arg_overrides={{"data": sys.argv[1]}})
task.load_dataset("train")
data = task.dataset("train")
limits = {{"max_tokens": {TOKENS}, "max_positions": (1024, 1024), "required_batch_size_multiple": 8}}
epochs = task.get_batch_iterator(data, **limits, seed=1)
orders = [[batch["id"].tolist() for batch in epochs.next_epoch_itr(shuffle=True)] for _ in range({STEPS})]
print("orders", json.dumps(orders))
"""


class Losses(TrainerCallback):
    """Those of all steps, in bits."""

    def __init__(self) -> None:
        self.of_steps: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        assert logs is not None
        if "loss" in logs:
            self.of_steps.append(float(logs["loss"]) / math.log(2))


def fairseq(*command: str | Path) -> str:
    """What it prints."""
    env = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(FAIRSEQ is None, reason="FAIRSEQ_PYTHON does not name a Python with fairseq")
def test_the_steps_are_those_of_real_fairseq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights and over the same batches, two per step, without dropout: losses and weights are the same, so
    optimizer, learning rates, decay, smoothing and the division by tokens are."""
    model = converted("decoder", tmp_path / "model")
    assert model.config.dropout == 0
    binarised, start = tmp_path / "bin", DATA / "decoder" / "checkpoint.pt"
    binarised.mkdir()
    found = figures("decoder")
    targets = found["targets"][7:] + found["targets"][:7]  # of other sources, so that there is something to learn
    for language, side in (("de", found["sources"]), ("en", targets)):
        write_memory_mapped(binarised / f"train.de-en.{language}", side, "u2")
    for language in ("de", "en"):
        shutil.copy(DATA / "decoder" / f"dict.{language}.txt", binarised)
    orders = json.loads(re.findall("^orders (.*)$", fairseq(str(FAIRSEQ), "-c", ORDER, binarised, start), re.MULTILINE)[0])
    train = Path(str(FAIRSEQ)).with_name("fairseq-train")
    said = fairseq(train, binarised, "--restore-file", start, "--save-dir", tmp_path / "saved", *RECIPE.split())
    theirs = [json.loads(found) for found in re.findall(r"train_inner \| (\{.*\})", said)]
    assert [int(step["num_updates"]) for step in theirs] == list(range(1, STEPS + 1))

    data = load_binarized(binarised, "de", "en")[0]["train"]
    monkeypatch.setattr(TokenBatchSampler, "__iter__", lambda sampler: iter(orders[sampler.epoch]))
    args = Seq2SeqTrainingArguments(
        str(tmp_path / "out"),
        max_steps=STEPS,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        warmup_steps=8,
        adam_beta2=0.98,
        weight_decay=1e-4,
        max_grad_norm=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    losses = Losses()
    trainer = TranslationTrainer(model, args, train_dataset=data, max_tokens=TOKENS, callbacks=[losses])
    assert len(trainer.get_train_dataloader()) == len(orders[0]) > 2
    trainer.train()
    assert losses.of_steps == pytest.approx([float(step["loss"]) for step in theirs], abs=1e-3)  # what they print

    dictionaries = [binarised / f"dict.{language}.txt" for language in ("de", "en")]
    from_fairseq(tmp_path / "saved" / "checkpoint_last.pt", *dictionaries, tmp_path / "end")
    first = dict(converted("decoder", tmp_path / "again").named_parameters())
    end = dict(FairseqTransformer.from_pretrained(tmp_path / "end").named_parameters())
    for name, w in model.named_parameters():
        if not name.endswith(
            "k_proj.bias"
        ):  # the softmax lets their gradients vanish, but for rounding, of which Adam makes steps
            torch.testing.assert_close(w, end[name], rtol=0, atol=1e-3)
            assert (w - first[name]).abs().max() > 1e-2, name
