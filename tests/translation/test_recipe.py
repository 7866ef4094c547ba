"""The recipe: fairseq's loss, learning rate, decay and normalisation; averages of checkpoints."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Seq2SeqTrainingArguments
from transformers.modeling_outputs import Seq2SeqLMOutput

from hf_sharp.evaluation.bleu import compute_metrics
from hf_sharp.translation.averaging import Saved, check_average, last_checkpoints, load_average
from hf_sharp.translation.batches import Collator
from hf_sharp.translation.dictionary import Dictionary
from hf_sharp.translation.learning_rate import inverse_sqrt
from hf_sharp.translation.loss import LabelSmoothing, _Smoothed
from hf_sharp.translation.tokenizer import TranslationTokenizer
from hf_sharp.translation.trainer import SharpTranslationTrainer, TranslationTrainer
from tests.backends.launches import launch
from tests.translation.cases import SHARED, pairs_of_numbers, small_model


def arguments(folder: Path, **given: object) -> Seq2SeqTrainingArguments:
    settings: dict[str, object] = {
        "max_steps": 1,
        "learning_rate": 0.1,
        "warmup_steps": 4,
        "max_grad_norm": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Seq2SeqTrainingArguments(str(folder), **(settings | given))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_label_smoothing_is_the_papers_formula_written_out(epsilon: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7, dtype=torch.double), torch.tensor([[1, 6, -100], [0, -100, -100]])
    by_hand, tokens = 0.0, 0
    for i in range(2):
        for j in range(3):
            if labels[i, j] == -100:
                continue
            log_p = logits[i, j].log_softmax(-1)
            others = epsilon / 6
            by_hand -= (1 - epsilon - others) * log_p[labels[i, j]].item() + others * log_p.sum().item()
            tokens += 1
    found = LabelSmoothing(epsilon)(Seq2SeqLMOutput(logits=logits.float()), labels)
    assert found.item() == pytest.approx(by_hand / tokens, rel=1e-5)
    assert LabelSmoothing(epsilon)(Seq2SeqLMOutput(logits=logits), labels, 10).item() == pytest.approx(
        by_hand / 10, rel=1e-5
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_gradients_of_the_smoothed_loss(epsilon: float) -> None:
    """PyTorch's cross-entropy, which spreads over all symbols, gives the first one; finite differences give both."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 6, -100], [0, -100, -100]])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (2.5 * LabelSmoothing(epsilon).total(ours, labels)).backward()
    flat = theirs.flatten(0, 1), labels.flatten()
    (2.5 * cross_entropy(*flat, ignore_index=-100, label_smoothing=epsilon * 7 / 6, reduction="sum")).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    wide = logits.flatten(0, 1).double().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return _Smoothed.apply(x.log_softmax(-1), labels.flatten(), 1 - epsilon - epsilon / 6, epsilon / 6)

    assert torch.autograd.gradcheck(loss, wide)
    assert torch.autograd.gradgradcheck(loss, wide)


def test_learning_rate_is_fairseqs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=5e-4)
    schedule = inverse_sqrt(optimizer, 4000)
    seen = []
    for _ in range(16_001):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert seen[0] == pytest.approx(1e-7)
    assert seen[2000] == pytest.approx((1e-7 + 5e-4) / 2)
    assert seen[4000] == pytest.approx(5e-4)
    assert seen[16_000] == pytest.approx(2.5e-4)


def test_all_parameters_decay_and_the_rate_is_the_schedules(tmp_path: Path) -> None:
    model = small_model(dropout=0.0)
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    trainer = TranslationTrainer(
        model,
        arguments(tmp_path, weight_decay=0.5, max_steps=3, adam_epsilon=1e9),  # Adam's own step vanishes
        train_dataset=pairs_of_numbers(9),
        max_tokens=16,
        first_learning_rate=0.02,
    )
    trainer.train()
    rates = [0.02 + (0.1 - 0.02) * step / 4 for step in range(3)]
    for name, w in model.named_parameters():
        torch.testing.assert_close(w.detach(), before[name] * math.prod(1 - 0.5 * rate for rate in rates))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gradient_is_the_mean_over_the_tokens_of_the_step(accumulation: int, tmp_path: Path) -> None:
    """Plain SGD's step is the rate times the gradient, whatever micro-batches the tokens come in."""
    data = pairs_of_numbers(21)
    model = small_model(dropout=0.0)
    twin = small_model(dropout=0.0)
    twin.load_state_dict(model.state_dict())
    trainer = SharpTranslationTrainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=accumulation, optim="sgd", weight_decay=0.0),
        train_dataset=data,
        max_tokens=60,
        first_learning_rate=0.05,
        method="{name: sam, rho: 0}",
    )
    sampler = trainer._sampler(data, shuffle=True)
    batches = list(sampler)[:accumulation]
    trainer.train()
    rows = data.select([pair for batch in batches for pair in batch])
    batch = Collator()([*rows])
    labels = batch.pop("labels")
    (LabelSmoothing(0.1).total(twin(**batch).logits, labels) / labels.ne(-100).sum()).backward()
    for (name, w), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(w, other - 0.05 * other.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_tokens_are_counted_over_ranks(tmp_path: Path) -> None:
    """One process on four batches per step, and two processes on two each: the same weights, the same validation figures."""
    found = []
    for ranks in (1, 2):
        launch("translating", tmp_path, ranks=ranks)
        found.append(torch.load(tmp_path / f"{ranks}.pt", weights_only=True))
    one, two = found
    for name, w in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], w, rtol=0, atol=2e-6, msg=name)
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-5)


def test_validation_figures_are_those_of_single_sentences(tmp_path: Path) -> None:
    data, model = pairs_of_numbers(10), small_model(dropout=0.3)
    trainer = TranslationTrainer(model, arguments(tmp_path), train_dataset=data, eval_dataset=data, max_tokens=30)
    found = trainer.evaluate()
    assert model.training
    model.eval()
    nll = tokens = 0.0
    for row in data:
        output = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]]))
        nll += output.loss.item() * len(row["labels"])
        tokens += len(row["labels"])
    assert found["eval_nll_loss"] == pytest.approx(nll / tokens / math.log(2), rel=1e-5)
    assert found["eval_ppl"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)


@pytest.mark.parametrize("shared", SHARED)
def test_average_of_checkpoints(shared: str, tmp_path: Path) -> None:
    models = [small_model(share_embeddings=shared) for _ in range(3)]
    for step, model in zip((2, 10, 9), models, strict=True):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    folders = last_checkpoints(tmp_path, 2)
    assert [folder.name for folder in folders] == ["checkpoint-9", "checkpoint-10"]
    target = small_model(share_embeddings=shared)
    load_average(target, folders)
    for w, a, b in zip(target.parameters(), models[1].parameters(), models[2].parameters(), strict=True):
        torch.testing.assert_close(w, (a + b) / 2)
    tied = target.model.decoder.output_projection.weight is target.model.decoder.embed_tokens.weight
    assert tied == (shared != "none")


def test_checkpoints_of_an_earlier_run_are_not_averaged(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "checkpoint-900")
    saved = Saved()
    args = arguments(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    trainer = TranslationTrainer(small_model(), args, train_dataset=pairs_of_numbers(9), max_tokens=16, callbacks=[saved])
    trainer.train()
    assert [folder.name for folder in last_checkpoints(tmp_path, 2, saved)] == ["checkpoint-2", "checkpoint-3"]
    with pytest.raises(ValueError, match=f"got 4 for 3 in {tmp_path}"):
        last_checkpoints(tmp_path, 4, saved)


@pytest.mark.parametrize(
    ("given", "steps", "kept"),
    [
        ({"save_strategy": "no"}, None, 0),
        ({"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}, None, 2),
        ({"save_strategy": "epoch", "max_steps": 25}, 10, 3),
        ({"save_strategy": "epoch", "max_steps": 25, "save_total_limit": 2}, None, 2),
        ({"save_strategy": "steps", "max_steps": 25, "save_steps": 10}, 10, 2),
    ],
)
def test_average_of_more_checkpoints_than_there_will_be(
    given: dict[str, object], steps: int | None, kept: int, tmp_path: Path
) -> None:
    args = arguments(tmp_path, **given)
    check_average(kept, args, steps)
    with pytest.raises(ValueError, match=f"the run keeps, {kept}, got {kept + 1}"):
        check_average(kept + 1, args, steps)


@pytest.mark.parametrize("whole", [True, False])
def test_average_under_zero_3_needs_whole_checkpoints(whole: bool, tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="epoch", max_steps=-1)
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": whole}
    args.deepspeed_plugin = SimpleNamespace(hf_ds_config=HfDeepSpeedConfig({"zero_optimization": zero}))
    check_average(0, args)
    with nullcontext() if whole else pytest.raises(ValueError, match="zero3_save_16bit_model: true in the accelerate"):
        check_average(2, args)


def test_bleu_as_the_trainers_metric(tmp_path: Path) -> None:
    words = Dictionary.of(["a b c d e f g h i j k l m n o p"], multiple=1)
    tokenizer = TranslationTokenizer.of(
        tmp_path / "tokenizer", words, words, None, languages=("de", "en"), moses=False, lower=False
    )
    args = arguments(tmp_path, predict_with_generate=True, generation_max_length=12, generation_num_beams=2)
    data = pairs_of_numbers(6)
    metrics = compute_metrics(tokenizer)
    trainer = TranslationTrainer(small_model(), args, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
    found = trainer.evaluate()
    assert {"eval_token_bleu", "eval_bleu", "eval_chrf"} <= found.keys()
    trainer.model.generate = lambda input_ids, **_: input_ids.flip(1)  # type: ignore[union-attr, method-assign]
    assert trainer.evaluate()["eval_chrf"] > 90
