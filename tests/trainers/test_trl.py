"""TRL's Trainers, sharpness-aware by their class's name alone: their steps, their metrics, their token counts."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, Trainer

from hf_sharp import ASAM, GAM, SAM, AbstractMethod, Every, SharpnessAwareMixin
from tests.models import all_methods, differences, neutral_methods, snapshot
from tests.trainers.small import decoder, end_of, gap, sam_step, texts, tokenizer, trained_batches, usual

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # it is known that these two may change
trl = pytest.importorskip("trl", reason="TRL is not installed")
gkd = pytest.importorskip("trl.experimental.gkd")
online_dpo = pytest.importorskip("trl.experimental.online_dpo")
peft = pytest.importorskip("peft", reason="PEFT is not installed")


class SharpSFT(SharpnessAwareMixin, trl.SFTTrainer):
    """TRL's, sharpness-aware."""


class SharpDPO(SharpnessAwareMixin, trl.DPOTrainer):
    """TRL's, sharpness-aware."""


class SharpGKD(SharpnessAwareMixin, gkd.GKDTrainer):
    """TRL's, sharpness-aware."""


class SharpOnlineDPO(SharpnessAwareMixin, online_dpo.OnlineDPOTrainer):
    """TRL's, sharpness-aware."""


class SharpReward(SharpnessAwareMixin, trl.RewardTrainer):
    """TRL's, sharpness-aware."""


Made = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One Trainer: its classes, what it takes, its loss written by hand, and what it logs beside the loss."""

    plain: type[Trainer]
    sharp: type[Trainer]
    config: type
    made: Callable[[float], Made]
    loss: Callable[[nn.Module, dict[str, Any], dict[str, Tensor]], Tensor]
    logged: tuple[str, ...]
    extra: dict[str, Any]


def _sft(dropout: float) -> Made:
    return decoder(dropout), {"train_dataset": texts(12, "text")}


def _dpo(dropout: float) -> Made:
    model = decoder(dropout)
    given = {"train_dataset": texts(12, "prompt", "chosen", "rejected"), "ref_model": copy.deepcopy(model).eval()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.05)
    return model, given


def _reward(dropout: float) -> Made:
    model = decoder(dropout, LlamaForSequenceClassification, num_labels=1)
    return model, {"train_dataset": texts(12, "chosen", "rejected")}


def _lora(dropout: float) -> Made:
    model, given = _sft(dropout)
    config = peft.LoraConfig(r=2, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(model, config), given


def _log_probabilities(model: nn.Module, inputs: dict[str, Tensor], of: Tensor) -> Tensor:
    """Of each token the logarithm of its probability after those before it, where ``of`` says so; elsewhere 0."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].double()
    chosen = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
    return chosen * of[:, 1:]


def _sft_loss(model: nn.Module, given: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor:
    """The mean over the batch's tokens."""
    of = (inputs["labels"] != -100).double()
    return -_log_probabilities(model, inputs, of).sum() / of[:, 1:].sum()


def _dpo_loss(model: nn.Module, given: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor:
    """Rafailov et al. (2023), eq. 7, with beta = 0.1."""
    of = inputs["completion_mask"].double()
    with torch.no_grad():
        reference = _log_probabilities(given["ref_model"], inputs, of).sum(-1)
    chosen, rejected = (_log_probabilities(model, inputs, of).sum(-1) - reference).chunk(2)
    return -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()


def _gkd_loss(model: nn.Module, given: dict[str, Any], inputs: dict[str, Any]) -> Tensor:
    """Agarwal et al. (2024), eq. 1, with beta = 0.5, over the tokens of the answers that were given."""
    ids, mask, labels = inputs["generate_on_policy_outputs"]
    here = labels[:, 1:] != -100
    student = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double().softmax(-1)[here]
    with torch.no_grad():
        teacher = given["teacher_model"](input_ids=ids, attention_mask=mask).logits[:, :-1].double().softmax(-1)[here]
    middle = (student + teacher) / 2
    divergence = sum((p * (p / middle).log()).sum() for p in (student, teacher)) / 2
    return divergence / (inputs["labels"] != -100).sum()


def _online_dpo_loss(model: nn.Module, given: dict[str, Any], inputs: dict[str, Any]) -> Tensor:
    """DPO's, where of two samples per prompt the one with the larger reward is the chosen one."""
    prompts, prompt_mask, samples, mask, _ = inputs["_generate"]
    whole = {"input_ids": torch.cat([prompts, samples], 1), "attention_mask": torch.cat([prompt_mask, mask], 1)}
    of = torch.cat([torch.zeros_like(prompt_mask), mask], 1).double()
    with torch.no_grad():
        reference = _log_probabilities(given["ref_model"], whole, of).sum(-1)
    first, second = (_log_probabilities(model, whole, of).sum(-1) - reference).chunk(2)
    better, worse = inputs["_calculate_rewards_from_functions"].chunk(2)
    return -nn.functional.logsigmoid(0.1 * (first - second) * torch.where(better >= worse, 1.0, -1.0)).mean()


def _reward_loss(model: nn.Module, given: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor:
    """Bradley and Terry's."""
    out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.double().squeeze(-1)
    chosen, rejected = out.chunk(2)
    return -nn.functional.logsigmoid(chosen - rejected).mean()


def _gkd(dropout: float) -> Made:
    """Prompts with answers; each step trains on the answers or on samples of its own, which the draw of a number decides."""
    student, words = decoder(dropout), tokenizer()
    teacher = copy.deepcopy(student).eval()
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(2.0)
    rows = [{"prompt": row["prompt"], **words(row["prompt"] + row["answer"])} for row in texts(12, "prompt", "answer")]
    return student, {"train_dataset": Dataset.from_list(rows), "teacher_model": teacher}


def _online_dpo(dropout: float) -> Made:
    model = decoder(dropout)
    given = {"train_dataset": texts(12, "prompt"), "ref_model": copy.deepcopy(model).eval(), "reward_funcs": [_reward_of]}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.05)
    return model, given


def _reward_of(completions: list[str], **_: Any) -> list[float]:
    """The words' numbers, added up."""
    return [float(sum(int(word[1:]) for word in text.split() if word.startswith("w"))) for text in completions]


_TOKENS = ("num_tokens",)
_REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
_SFT = Case(trl.SFTTrainer, SharpSFT, trl.SFTConfig, _sft, _sft_loss, ("entropy", "mean_token_accuracy", *_TOKENS), {})
CASES = {
    "sft": _SFT,
    "dpo": Case(
        trl.DPOTrainer,
        SharpDPO,
        trl.DPOConfig,
        _dpo,
        _dpo_loss,
        ("entropy", *_REWARDS, *_TOKENS),
        {"disable_dropout": False},
    ),
    "reward": Case(
        trl.RewardTrainer,
        SharpReward,
        trl.RewardConfig,
        _reward,
        _reward_loss,
        ("mean_reward", "accuracy", "margin", *_TOKENS),
        {"disable_dropout": False},
    ),
    "lora": Case(trl.SFTTrainer, SharpSFT, trl.SFTConfig, _lora, _sft_loss, ("entropy", *_TOKENS), {}),
    "gkd": Case(
        gkd.GKDTrainer, SharpGKD, gkd.GKDConfig, _gkd, _gkd_loss, (), {"max_new_tokens": 5, "disable_dropout": False}
    ),
    "online_dpo": Case(
        online_dpo.OnlineDPOTrainer,
        SharpOnlineDPO,
        online_dpo.OnlineDPOConfig,
        _online_dpo,
        _online_dpo_loss,
        ("objective/kl", "objective/rlhf_reward", "val/contain_eos_token", *_REWARDS[:4]),
        {"max_new_tokens": 5, "disable_dropout": False},
    ),
}
MAKING = {
    "gkd": ("generate_on_policy_outputs",),
    "online_dpo": ("_generate", "_calculate_rewards_from_functions"),
}
"""With what those make their samples that do so inside a step."""


def _trainer(name: str, method: AbstractMethod | None, folder: Path, dropout: float = 0.1, **changed: Any) -> Any:
    case = CASES[name]
    model, given = case.made(dropout)
    args = case.config(**usual(folder, **case.extra, **changed))
    given = {"args": args, "processing_class": tokenizer(), **given}
    return case.plain(model, **given) if method is None else case.sharp(model, method=method, **given)


def _noted(trainer: Any, function: str) -> list[Any]:
    """What the Trainer's function of this name will return, call after call."""
    results: list[Any] = []
    usual = getattr(trainer, function)

    def noting(*args: Any, **kwargs: Any) -> Any:
        results.append(copy.deepcopy(usual(*args, **kwargs)))
        return copy.deepcopy(results[-1])

    setattr(trainer, function, noting)
    return results


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, Any]]:
    """The plain Trainers' endings, each computed once."""

    @cache
    def train(name: str, accumulation: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(name)
        return end_of(_trainer(name, None, folder, gradient_accumulation_steps=accumulation))

    return train


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", ["sam", "gsam", "lpf", "gam"])
@pytest.mark.parametrize("name", CASES)
def test_neutral_is_plain_to_the_bit(
    name: str, method: str, accumulation: int, plain: Callable[[str, int], dict[str, Any]], tmp_path: Path
) -> None:
    """Weights, optimizer, streams, and every metric and token count in the logs; dropout is on."""
    neutral = neutral_methods()[method]
    got = end_of(_trainer(name, neutral, tmp_path, gradient_accumulation_steps=accumulation))
    expected = plain(name, accumulation)
    assert differences(expected, got) == []
    logs = [entry for entry in got["logs"] if "loss" in entry]
    assert len(logs) == 3
    assert set(CASES[name].logged) <= set(logs[0])


@pytest.mark.parametrize("method", [name for name in all_methods() if name != "gam_exact"])
def test_tokens_count_once_whatever_the_method(
    method: str, plain: Callable[[str, int], dict[str, Any]], tmp_path: Path
) -> None:
    """The counts of a plain training, and in the first step the plain metrics where the first pass is at the weights."""
    trainer = _trainer("sft", all_methods()[method], tmp_path, gradient_accumulation_steps=2, weight_decay=0.0)
    logs, expected = end_of(trainer)["logs"], plain("sft", 2)["logs"]
    tokens = [entry["num_tokens"] for entry in expected if "loss" in entry]
    assert [entry["num_tokens"] for entry in logs if "loss" in entry] == tokens
    assert tokens[0] > 0
    if method not in ("rsam", "rgsam", "lpf", "during"):
        assert logs[0]["entropy"] == expected[0]["entropy"]
        assert logs[0]["mean_token_accuracy"] == expected[0]["mean_token_accuracy"]


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_textbook_step(name: str, tmp_path: Path) -> None:
    """Two SAM steps against the loss written by hand on the same model, batches and samples, without dropout."""
    changed = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2, "lr_scheduler_type": "constant"}
    trainer = _trainer(name, SAM(rho=0.1), tmp_path, 0.0, **changed, **({"lmbda": 1.0} if name == "gkd" else {}))
    made = {function: _noted(trainer, function) for function in MAKING.get(name, ())}
    twin, given = CASES[name].made(0.0)
    twin.double()
    given.get("ref_model", given.get("teacher_model", twin)).double()
    start = snapshot(trainer.model)
    batches = trained_batches(trainer)
    assert [len(batches), *map(len, made.values())] == [2] * (1 + len(made))  # samples once per step, not once per pass
    batches = [{**batch, **{function: results[i] for function, results in made.items()}} for i, batch in enumerate(batches)]
    for batch in batches:
        sam_step(twin, lambda batch=batch: CASES[name].loss(twin, given, batch), rho=0.1, lr=0.1)  # type: ignore[misc]
    ends = snapshot(trainer.model)
    expected = {key: value for key, value in snapshot(twin).items() if key in ends}
    assert gap(ends, expected) < 2e-7
    assert gap(ends, start) > 1e-3


@pytest.mark.parametrize("method", [ASAM(rho=0.5), GAM(rho=0.1)], ids=str)
def test_only_the_adapter_is_moved(method: AbstractMethod, tmp_path: Path) -> None:
    """With LoRA the frozen weights keep their bits, also while the others are shifted, and the adapter trains."""
    trainer = _trainer("lora", method, tmp_path, gradient_accumulation_steps=2)
    start = snapshot(trainer.model)
    trainer.train()
    moved = {key for key, value in snapshot(trainer.model).items() if not torch.equal(value, start[key])}
    assert moved == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora" in name for name in moved)
    assert trainer.state.log_history[0]["sharpness/shift_norm_applied"] > 0


def test_a_model_card_of_trl_names_the_method(tmp_path: Path) -> None:
    """TRL's card, which it writes at every checkpoint, has the section too."""
    _trainer("sft", SAM(rho=0.07), tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "TRL" in text
    assert text.count("## Sharpness-aware training") == 1
    assert "| `rho` | `0.07` |" in text


@pytest.mark.parametrize("kind", ["GRPOTrainer", "RLOOTrainer"])
def test_trainers_that_prepare_samples_for_several_steps_are_refused(kind: str) -> None:
    """By name and reason, before anything is loaded; their subclasses too."""
    sharp = type("Mine", (SharpnessAwareMixin, type("Between", (getattr(trl, kind),), {})), {})
    with pytest.raises(ValueError, match="All passes of a step must see the same samples") as error:
        sharp("no-model", reward_funcs=[], method=SAM())
    assert str(error.value) == (
        f"All passes of a step must see the same samples, got TRL's {kind}, which generates them inside the step. Train on "
        "samples generated beforehand, e.g. with SFTTrainer or DPOTrainer."
    )


def test_a_second_derivative_is_refused(tmp_path: Path) -> None:
    """The fused output layer has none; `RewardTrainer` has no such layer, and trains."""
    with pytest.raises(ValueError, match="hvp='exact' needs") as error:
        _trainer("dpo", Every(2, GAM(hvp="exact")), tmp_path)
    assert str(error.value) == (
        "hvp='exact' needs a second derivative, which the fused output layer of TRL's DPOTrainer does not have. Use "
        "GAM(hvp='difference')."
    )
    trainer = _trainer("reward", GAM(hvp="exact"), tmp_path, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["sharpness/passes"] == 4
