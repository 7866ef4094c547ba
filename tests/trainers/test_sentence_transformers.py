"""The Trainer of sentence-transformers, sharpness-aware: its losses, their components, their own parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hf_sharp import CRSAM, GAM, RSAM, SAM, AbstractMethod, SharpnessAwareMixin
from hf_sharp.limits import check_loss
from tests.models import all_methods, differences, neutral_methods, seeded, snapshot
from tests.trainers.small import SPECIAL, WORDS, end_of, gap, sam_step, texts, tokenizer, trained_batches, usual

st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")


class Sharp(SharpnessAwareMixin, st.SentenceTransformerTrainer):
    """The library's, sharpness-aware."""


class Components(nn.Module):
    """A loss that returns its parts by name, which the Trainer then logs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.ranking = losses.MultipleNegativesRankingLoss(model)
        self.spread = losses.GlobalOrthogonalRegularizationLoss(model)

    def forward(self, features: Any, labels: Tensor | None = None) -> dict[str, Tensor]:
        embeddings = [self.model(feature)["sentence_embedding"] for feature in features]
        ranking = self.ranking.compute_loss_from_embeddings(embeddings, labels)
        return {"ranking": ranking, **self.spread.compute_loss_from_embeddings(embeddings, labels)}


LOSSES: dict[str, Callable[[Any], nn.Module]] = {
    "ranking": losses.MultipleNegativesRankingLoss,
    "components": Components,
    "cached": lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2),
    "softmax": lambda model: losses.SoftmaxLoss(model, embedding_dimension=16, num_labels=3),
}


def save_encoder(folder: Path) -> Path:
    """A small BERT with its tokenizer, on disk, where sentence-transformers wants it."""
    config = BertConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        pad_token_id=1,
    )
    seeded(lambda: BertModel(config)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, once."""
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def _model(encoder: Path, dropout: float) -> Any:
    config = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    body = modules.Transformer(str(encoder), config_kwargs=config)
    return st.SentenceTransformer(modules=[body, modules.Pooling(16, "mean")], device="cpu")


def _data(loss: str) -> Dataset:
    columns = texts(12, "anchor", "positive")
    return columns.add_column("label", [i % 3 for i in range(12)]) if loss == "softmax" else columns


def trainer_for(
    encoder: Path, loss: str, method: AbstractMethod | None, folder: Path, dropout: float = 0.1, **changed: Any
) -> Any:
    """A Trainer, plain where there is no method."""
    ours = {name: changed.pop(name) for name in ("perturb_over",) if name in changed}
    model = _model(encoder, dropout)
    args = st.SentenceTransformerTrainingArguments(**usual(folder, **{"per_device_train_batch_size": 4, **changed}))
    given = {"args": args, "train_dataset": _data(loss), "loss": seeded(lambda: LOSSES[loss](model))}
    if method is None:
        return st.SentenceTransformerTrainer(model, **given)
    return Sharp(model, method=method, **ours, **given)


@pytest.mark.parametrize("method", ["sam", "gsam", "gam"])
@pytest.mark.parametrize("loss", LOSSES)
def test_neutral_is_plain_to_the_bit(loss: str, method: str, encoder: Path, tmp_path: Path) -> None:
    """Weights, those of the loss too, streams, and the parts of the loss in the logs; dropout is on."""
    ends = []
    for chosen in (None, neutral_methods()[method]):
        trainer = trainer_for(encoder, loss, chosen, tmp_path, gradient_accumulation_steps=2, max_steps=2)
        ends.append(end_of(trainer) | {"loss": snapshot(trainer.loss)})
    assert differences(*ends) == []
    if loss == "components":
        assert {"ranking", "gor_mean"} <= set(ends[1]["logs"][0])
    if loss == "softmax":
        start = seeded(lambda: LOSSES[loss](_model(encoder, 0.1))).classifier.weight
        assert differences(ends[1]["loss"]["classifier.weight"], start.detach()) != []


@pytest.mark.parametrize("method", ["sam", "gam"])
def test_parts_of_the_loss_count_once(method: str, encoder: Path, tmp_path: Path) -> None:
    """In the first step they are the plain ones, whatever the number of passes; they sum up to the logged loss."""
    logs = [
        end_of(trainer_for(encoder, "components", chosen, tmp_path, gradient_accumulation_steps=2, max_steps=2))["logs"]
        for chosen in (None, all_methods()[method])
    ]
    parts = [key for key in logs[0][0] if key == "ranking" or key.startswith("gor")]
    assert len(parts) > 1
    assert [logs[0][0][key] for key in parts] == [logs[1][0][key] for key in parts]
    for entry in logs[1][:2]:
        assert sum(entry[key] for key in parts) == pytest.approx(entry["loss"], abs=2e-4)


def _ranking(model: Any, batch: dict[str, Any]) -> Tensor:
    """The cross-entropy of finding each anchor's positive among those of the batch, by cosine times 20."""
    unit = []
    for column in ("anchor", "positive"):
        mask = batch[f"{column}_attention_mask"]
        states = model[0].auto_model(input_ids=batch[f"{column}_input_ids"], attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        unit.append(nn.functional.normalize(mean, dim=-1))
    return nn.functional.cross_entropy(20 * unit[0] @ unit[1].T, torch.arange(len(unit[0])))


def test_a_step_is_the_textbook_step(encoder: Path, tmp_path: Path) -> None:
    """Two SAM steps on `MultipleNegativesRankingLoss` in float64 against the loss written by hand."""
    changed = {"optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0, "max_steps": 2, "lr_scheduler_type": "constant"}
    trainer = trainer_for(encoder, "ranking", SAM(rho=0.1), tmp_path, 0.0, **changed)
    twin = _model(encoder, 0.0).double()
    trainer.model.double()
    start = snapshot(trainer.model)
    batches = trained_batches(trainer)
    assert len(batches) == 2
    for batch in batches:
        sam_step(twin, lambda batch=batch: _ranking(twin, batch), rho=0.1, lr=0.01)  # type: ignore[misc]
    assert gap(snapshot(trainer.model), snapshot(twin)) < 1e-12
    assert gap(snapshot(trainer.model), start) > 1e-3


@pytest.mark.parametrize("method", [SAM(rho=0.1), CRSAM(rho=0.1), GAM(rho=0.1), RSAM(rho=0.1)], ids=str)
def test_a_gradient_cache_changes_nothing(method: AbstractMethod, encoder: Path, tmp_path: Path) -> None:
    """A loss that embeds its mini-batches again inside its own backward gives the weights of the one that does not."""
    changed = {"optim": "sgd", "gradient_accumulation_steps": 2, "max_steps": 1}
    ends = [trainer_for(encoder, loss, method, tmp_path, 0.0, **changed) for loss in ("ranking", "cached")]
    start = snapshot(ends[0].model)
    for trainer in ends:
        trainer.train()
    assert gap(snapshot(ends[0].model), snapshot(ends[1].model)) < 1e-6
    assert gap(snapshot(ends[0].model), start) > 1e-3


def test_a_gradient_cache_has_no_second_derivative(encoder: Path, tmp_path: Path) -> None:
    """It would be zero without a word: refused, at construction, also inside another loss."""
    with pytest.raises(ValueError, match="hvp='exact' needs") as error:
        trainer_for(encoder, "cached", GAM(hvp="exact"), tmp_path)
    assert str(error.value) == (
        "hvp='exact' needs a second derivative, which CachedMultipleNegativesRankingLoss, with a backward of its own, does "
        "not have. Use GAM(hvp='difference')."
    )
    model = _model(encoder, 0.0)
    around = losses.MatryoshkaLoss(model, losses.MegaBatchMarginLoss(model, mini_batch_size=2), [16, 8])
    with pytest.raises(ValueError, match="which MegaBatchMarginLoss, with"):
        check_loss({"some": around}, GAM(hvp="exact"))
    check_loss({"some": around}, GAM())
    check_loss(losses.MegaBatchMarginLoss(model, use_mini_batched_version=False), GAM(hvp="exact"))


def test_a_model_card_names_the_method(encoder: Path, tmp_path: Path) -> None:
    """The library's own card has the section."""
    trainer = trainer_for(encoder, "ranking", SAM(rho=0.07), tmp_path, max_steps=1)
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "sentence-transformers" in text
    assert "| `rho` | `0.07` |" in text
