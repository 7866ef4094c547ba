"""Small models, data for them, and the loops in which a method meets its twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_sharp import (
    ASAM,
    CRSAM,
    GAM,
    GSAM,
    LPF,
    RGSAM,
    RSAM,
    SAM,
    AbstractMethod,
    AcceleratedGAM,
    Decayed,
    During,
    Every,
    SharpStep,
)
from hf_sharp.parameters import Perturb
from tests.reference import Batch, Problem, Small, error, flat, flat_gradient

Twin: TypeAlias = Callable[[Problem, Tensor, list[Tensor], int], Tensor]
"""Takes the problem, the weights, the shifts at which the forwards of this step ran, and the step; returns a direction."""


class Watch:
    """Notes the weights and the inputs of every forward of a model while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.weights: list[Tensor] = []
        self.inputs: list[dict[str, Tensor]] = []

    def _note(self, model: nn.Module, args: tuple, kwargs: dict[str, Tensor]) -> None:
        self.weights.append(flat(model))
        self.inputs.append(kwargs)

    def shifts(self, w: Tensor) -> list[Tensor]:
        """Where the forwards ran, seen from w."""
        return [there - w for there in self.weights]

    def __enter__(self) -> Watch:
        self._handle = self._model.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


def follow(
    sharp: Callable[..., Tensor],
    model: Small,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    twin: Twin,
    *,
    decay: float = 0.0,
    factors: Mapping[str, float] | None = None,
    after: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train on the batches, ask the twin at the same weights, and return the relative error of each step's gradient."""
    errors = []
    for step, batch in enumerate(batches):
        w = flat(model)
        with Watch(model) as watch:
            sharp(lambda given: model(**given)["loss"], batch)
        if not torch.equal(flat(model), w):
            raise AssertionError("The weights were not restored to the bit.")
        problem = Problem(model, batch, decay=decay, factors=factors)
        errors.append(error(flat_gradient(model), twin(problem, w, watch.shifts(w), step)))
        optimizer.step()
        optimizer.zero_grad()
        after()
    return errors


def generic(model: Small, seed: int = 0) -> Small:
    """The model in float64 with random numbers in all weights, so that no T or norm is special."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.double().parameters():
        p.data.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def answer(logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """What the small models return."""
    if labels is None:
        return {"logits": logits}
    return {"loss": F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)), "logits": logits}


class Perceptron(Small):
    """Two layers with a LayerNorm; takes any leading axes."""

    additive = frozenset({"inner.bias", "norm.bias", "outer.bias"})

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return answer(self.outer(torch.tanh(self.norm(self.inner(x)))), labels)


class Filters(Small):
    """Convolutions with weights of four and five axes."""

    additive = frozenset({"first.bias", "grouped.bias", "solid.bias", "outer.bias"})

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2)
        self.solid, self.outer = nn.Conv3d(1, 3, (2, 2, 1)), nn.Linear(3, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = torch.tanh(self.grouped(torch.tanh(self.first(x))))
        return answer(self.outer(torch.tanh(self.solid(x[:, None])).mean(dim=(2, 3, 4))), labels)


class Sequences(Small):
    """Embeddings, attention and an LSTM, with parameters that are called bias and are none."""

    additive = frozenset(
        {
            "attention.in_proj_bias",
            "attention.out_proj.bias",
            "lstm.bias_ih_l0",
            "lstm.bias_hh_l0",
            "score_bias",
            "outer.bias",
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.attention_bias = nn.Embedding(11, 6), nn.Embedding(5, 1)
        self.cls_token, self.position_embeddings = nn.Parameter(torch.ones(1, 1, 6)), nn.Parameter(torch.ones(1, 5, 6))
        self.relative_position_bias_table = nn.Parameter(torch.ones(5, 5))
        self.attention, self.lstm = nn.MultiheadAttention(6, 2, batch_first=True), nn.LSTM(6, 4, batch_first=True)
        self.score_bias, self.outer = nn.Parameter(torch.ones(3)), nn.Linear(4, 3)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = torch.cat([self.cls_token.expand(len(ids), -1, -1), self.tokens(ids)], dim=1) + self.position_embeddings
        scores = self.relative_position_bias_table + self.attention_bias(torch.arange(5)).T
        x = x + self.attention(x, x, x, attn_mask=scores, need_weights=False)[0]
        return answer(self.outer(self.lstm(x)[0][:, -1]) + self.score_bias, labels)


MODELS: tuple[type[Small], ...] = (Perceptron, Filters, Sequences)


def batch_for(model: Small, size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random samples for one of the small models."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (size,), generator=generator)
    if isinstance(model, Sequences):
        return {"ids": torch.randint(11, (size, 4), generator=generator), "labels": labels}
    shape = (size, 6) if isinstance(model, Perceptron) else (size, 2, 5, 5)
    return {"x": torch.randn(shape, generator=generator, dtype=torch.float64), "labels": labels}


def batches_for(model: Small, steps: int = 4) -> list[dict[str, Any]]:
    """One random batch per step."""
    return [batch_for(model, seed=step) for step in range(steps)]


EXAMPLES: dict[str, AbstractMethod] = {
    "accelerated_gam": AcceleratedGAM(rho=0.2, step=0.05),
    "asam": ASAM(rho=0.3),
    "crsam": CRSAM(rho=0.2, alpha=0.3, beta=0.1, log=True),
    "decayed": Decayed(SAM(rho=0.1), weight_decay=0.1),
    "during": During(GSAM(rho=0.1), start=0.4),
    "every": Every(2, SAM(rho=0.1), otherwise=ASAM(rho=0.3, p=3.0)),
    "gam": GAM(rho=0.2, alpha=0.5, step=0.05, base=SAM(rho=0.1)),
    "gsam": GSAM(rho=0.1, alpha=0.4),
    "lpf": LPF(gamma=0.02, draws=3),
    "rgsam": RGSAM(rho=0.1, gamma=0.02, lam=2.0, alpha=0.3),
    "rsam": RSAM(rho=0.1, gamma=0.02),
    "sam": SAM(rho=0.1),
}
"""One setting of every method, far from its neutral one."""


def compare(
    kind: type[Small],
    method: AbstractMethod,
    twin: Twin,
    *,
    steps: int = 4,
    decay: float = 0.0,
    perturb: Perturb = None,
    factors: Mapping[str, float] | None = None,
) -> float:
    """The largest relative error of a method against its twin over some steps of SGD in the bare loop."""
    model = generic(kind())
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, method, steps=steps, seed=3, perturb=perturb)
    return max(follow(sharp, model, optimizer, batches_for(model, steps), twin, decay=decay, factors=factors))


def arguments(
    folder: Path, *, batch: int = 1, accumulation: int = 1, lr: float = 0.1, log_every: int = 0
) -> TrainingArguments:
    """Training arguments for one epoch of plain SGD on the CPU, without clipping or files."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=lr,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        logging_strategy="steps" if log_every else "no",
        logging_steps=max(1, log_every),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )


class Gradients(TrainerCallback):
    """Keeps the gradient that the optimizer sees on each step of a Trainer."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen.append(flat_gradient(kwargs["model"]))
