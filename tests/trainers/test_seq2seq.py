"""`Seq2SeqTrainer` with generation in its evaluations, sharpness-aware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_sharp import GAM, SAM, AbstractMethod, SharpnessAwareMixin, SharpnessAwareSeq2SeqTrainer
from tests.models import bart, differences, rows
from tests.trainers.small import end_of, gap, sam_step, snapshot, usual


class Mixed(SharpnessAwareMixin, Seq2SeqTrainer):
    """By the mixin, as a user's subclass would be."""


def _trainer(kind: type[Any], method: AbstractMethod | None, folder: Path, **changed: Any) -> tuple[Any, list[Any]]:
    generated: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        generated.append(torch.from_numpy(prediction.predictions))
        return {"longest": float((prediction.predictions != 1).sum(-1).max())}

    more = {"predict_with_generate": True, "generation_max_length": 9, "generation_num_beams": 2}
    more |= {"eval_strategy": "steps", "eval_steps": 2, "label_smoothing_factor": 0.1, "remove_unused_columns": False}
    args = Seq2SeqTrainingArguments(**usual(folder, **{"max_steps": 4, **more, **changed}))
    given = {"train_dataset": rows("bart", 16), "eval_dataset": rows("bart", 4, seed=1), "compute_metrics": metrics}
    trainer = kind(bart(), args, **given) if method is None else kind(bart(), args, method=method, **given)
    return trainer, generated


@pytest.mark.parametrize("kind", [SharpnessAwareSeq2SeqTrainer, Mixed])
def test_generation_in_a_neutral_training_is_the_plain_one(kind: type[Any], tmp_path: Path) -> None:
    """Weights, metrics and the generated tokens themselves, in the evaluations and after training."""
    ends = []
    for chosen, method in ((Seq2SeqTrainer, None), (kind, SAM(rho=0))):
        trainer, generated = _trainer(chosen, method, tmp_path, gradient_accumulation_steps=2)
        end = end_of(trainer)
        end["prediction"] = torch.from_numpy(trainer.predict(rows("bart", 4, seed=2)).predictions)
        ends.append(end | {"generated": generated})
    assert differences(*ends) == []
    assert len(ends[0]["generated"]) == 3
    assert any("eval_longest" in entry for entry in ends[1]["logs"])


def test_generation_sees_unshifted_weights(tmp_path: Path) -> None:
    """What an evaluation inside training generates is what the weights of that moment generate."""
    trainer, generated = _trainer(Mixed, GAM(rho=0.5), tmp_path, max_steps=2)
    trainer.train()
    again = trainer.predict(rows("bart", 4, seed=1)).predictions
    assert torch.equal(generated[0], torch.from_numpy(again))


def test_a_step_is_the_textbook_step(tmp_path: Path) -> None:
    """Two SAM steps in float64, with the Trainer's own label smoothing, which takes the labels out of the inputs."""
    changed = {"optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0, "max_steps": 2, "lr_scheduler_type": "constant"}
    changed |= {"eval_strategy": "no", "train_sampling_strategy": "sequential"}
    trainer, _ = _trainer(Mixed, SAM(rho=0.1), tmp_path, **changed)
    twin = bart().double()
    for model in (trainer.model, twin):
        model.double()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout) or "dropout" in vars(module):
                vars(module).update({name: 0.0 for name in vars(module) if name.endswith("dropout")})

    def smoothed(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logs = twin(input_ids=batch["input_ids"]).logits.log_softmax(-1)
        kept = batch["labels"] != -100
        nll = -logs.gather(-1, batch["labels"].clamp(min=0)[..., None]).squeeze(-1)
        return ((0.9 * nll - 0.1 * logs.mean(-1)) * kept).sum() / kept.sum()

    trainer.train()
    data = rows("bart", 16)
    for step in range(2):
        pair = data[2 * step : 2 * step + 2]
        batch = {key: torch.stack([row[key] for row in pair]) for key in pair[0]}
        sam_step(twin, lambda batch=batch: smoothed(batch), rho=0.1, lr=0.01)  # type: ignore[misc]
    assert gap(snapshot(trainer.model), snapshot(twin)) < 1e-12
