"""Gradient accumulation: what does not depend on it, and what perturbations of single micro-batches make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.optim import SGD

from hf_sharp import GAM, METHODS, RSAM, AbstractMethod, SharpnessAwareTrainer, SharpStep
from tests.problems import EXAMPLES, Gradients, Perceptron, Twin, Watch, arguments, generic
from tests.reference import (
    Batch,
    Problem,
    accelerated_gam,
    asam,
    crsam,
    error,
    flat,
    flat_gradient,
    gam,
    gsam,
    lpf,
    rgsam,
    rsam,
    sam,
)

Run: TypeAlias = Callable[[AbstractMethod, int, bool], list[Tensor]]
"""Takes the method, the micro-batches per step and whether the loss is token-normalised; returns the gradients."""

CASES = EXAMPLES | {
    "gam, exact": GAM(rho=0.2, alpha=0.5, hvp="exact"),
    "rsam, not projected": RSAM(rho=0.1, gamma=0.02, project=False),
}
TWINS: dict[str, Twin] = {
    "accelerated_gam": lambda f, w, shifts, step: accelerated_gam(f, w, 0.2, 0.05, 0.6, 0.5, 0.03),
    "asam": lambda f, w, shifts, step: asam(f, w, 0.3, 0.01),
    "crsam": lambda f, w, shifts, step: crsam(f, w, 0.2, 0.3, 0.1, log=True),
    "decayed": lambda f, w, shifts, step: sam(f, w, 0.1),
    "during": lambda f, w, shifts, step: gsam(f, w, 0.1, 0.4) if step == 1 else f.gradient(w)[1],
    "every": lambda f, w, shifts, step: sam(f, w, 0.1) if step == 0 else asam(f, w, 0.3, 0.01, 3.0),
    "gam": lambda f, w, shifts, step: gam(f, w, 0.2, 0.5, 0.05, lambda f, w: sam(f, w, 0.1)),
    "gam, exact": lambda f, w, shifts, step: gam(f, w, 0.2, 0.5),
    "gsam": lambda f, w, shifts, step: gsam(f, w, 0.1, 0.4),
    "lpf": lambda f, w, shifts, step: lpf(f, w, shifts),
    "rgsam": lambda f, w, shifts, step: rgsam(f, w, shifts[0], 0.1, 2.0, 0.3),
    "rsam": lambda f, w, shifts, step: rsam(f, w, shifts[0], 0.1, 2.0),
    "rsam, not projected": lambda f, w, shifts, step: rsam(f, w, shifts[0], 0.1, 2.0, project=False),
    "sam": lambda f, w, shifts, step: sam(f, w, 0.1),
}


def rows(count: int, uneven: bool) -> list[dict[str, Tensor]]:
    """Samples of five tokens; where they are uneven, one to five of the labels count."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (count, 5), generator=generator)
    if uneven:
        labels[torch.arange(5) > torch.randint(5, (count, 1), generator=generator)] = -100
    return [{"x": x[i], "labels": labels[i]} for i in range(count)]


def joined(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of some samples."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """The loss summed over the tokens that count, divided by those of the whole optimizer step."""
    logits = outputs["logits"]
    return F.cross_entropy(logits.reshape(-1, 3), labels.reshape(-1), reduction="sum") / num_items_in_batch


def trainer_run(folder: Path) -> Run:
    """Two steps of 8 samples and one of 4 in the Trainer."""

    def run(method: AbstractMethod, micro_batches: int, token_normalised: bool) -> list[Tensor]:
        gradients = Gradients()
        SharpnessAwareTrainer(
            generic(Perceptron()),
            arguments(folder, batch=8 // micro_batches, accumulation=micro_batches),
            train_dataset=rows(20, uneven=token_normalised),
            compute_loss_func=token_loss if token_normalised else None,
            callbacks=[gradients],
            method=method,
        ).train()
        return gradients.seen

    return run


def bare_run(method: AbstractMethod, micro_batches: int, token_normalised: bool) -> list[Tensor]:
    """The same in a loop without Accelerate."""
    model, samples, seen = generic(Perceptron()), rows(20, uneven=token_normalised), []
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = SharpStep(model, optimizer, method, steps=3)
    for start in (0, 8, 16):
        window = samples[start : start + 8]
        size = 8 // micro_batches
        parts = [joined(window[i : i + size]) for i in range(0, len(window), size)]
        items = int(joined(window)["labels"].ne(-100).sum())

        def loss_of(batch: Batch, count: int = len(parts), items: int = items) -> Tensor:
            if token_normalised:
                return token_loss(model(batch["x"]), batch["labels"], items)
            return model(**batch)["loss"] / count

        for i, part in enumerate(parts):
            sharp(loss_of, part, last=i == len(parts) - 1)
        seen.append(flat_gradient(model))
        optimizer.step()
        optimizer.zero_grad()
    return seen


def accelerate_run(method: AbstractMethod, micro_batches: int, token_normalised: bool) -> list[Tensor]:
    """Two whole windows in a loop with Accelerate, which divides the loss by the number of micro-batches itself."""
    accelerator, seen = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches), []
    model, samples = generic(Perceptron()), rows(16, uneven=token_normalised)
    model, optimizer = accelerator.prepare(model, SGD(model.parameters(), lr=0.1))
    sharp = SharpStep(model, optimizer, method, accelerator=accelerator, steps=2)
    size = 8 // micro_batches
    for start in range(0, 16, size):
        batch, window = joined(samples[start : start + size]), samples[start // 8 * 8 : start // 8 * 8 + 8]
        items = int(joined(window)["labels"].ne(-100).sum())

        def loss_of(batch: Batch, items: int = items) -> Tensor:
            if token_normalised:
                return micro_batches * token_loss(model(batch["x"]), batch["labels"], items)
            return model(**batch)["loss"]

        with accelerator.accumulate(model):
            sharp(loss_of, batch)
            if accelerator.sync_gradients:
                seen.append(flat_gradient(model))
            optimizer.step()
            optimizer.zero_grad()
    return seen


@pytest.fixture(params=["Trainer", "bare", "Accelerate"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """The three loops in turn."""
    return {"Trainer": trainer_run(tmp_path), "bare": bare_run, "Accelerate": accelerate_run}[request.param]


@pytest.mark.parametrize("token_normalised", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_8x1_equals_2x4(run: Run, name: str, token_normalised: bool) -> None:
    """One batch of 8 and four micro-batches of 2 give the optimizer the same gradient, also in a short last window."""
    whole, split = (run(CASES[name], micro_batches, token_normalised) for micro_batches in (1, 4))
    assert len(whole) == len(split) >= 2
    assert max(error(got, wanted) for got, wanted in zip(split, whole, strict=True)) < 1e-12


def test_every_method_has_an_example_and_a_twin() -> None:
    """No method is left out of this file."""
    assert set(EXAMPLES) == set(METHODS)
    assert set(CASES) == set(TWINS)


def own_perturbations(name: str, watch: Watch, gradients: list[Tensor], start: Tensor) -> None:
    """Hold each step's gradient against the mean of the twin's directions for its micro-batches.

    The forwards say which samples came when: those over the same inputs belong to one micro-batch.
    """
    groups: list[tuple[Batch, list[Tensor]]] = []
    for there, inputs in zip(watch.weights, watch.inputs, strict=True):
        if not groups or not torch.equal(groups[-1][0]["x"], inputs["x"]):
            groups.append((inputs, []))
        groups[-1][1].append(there)
    w, decay = start, 0.1 if name == "decayed" else 0.0
    for step, window in enumerate((groups[:4], groups[4:])):
        directions = [
            TWINS[name](Problem(Perceptron(), batch, decay=decay), w, [there - w for there in visited], step)
            for batch, visited in window
        ]
        assert len(directions) == 4 - 2 * step
        assert error(gradients[step], torch.stack(directions).mean(dim=0)) < 1e-10
        w = w - 0.1 * gradients[step]


@pytest.mark.parametrize("perturb_over", ["micro_batch", "device"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_own_perturbations_in_the_trainer(tmp_path: Path, name: str, perturb_over: str) -> None:
    """Each micro-batch has its own perturbation and its own mean loss; the directions are averaged, in short windows too."""
    model, gradients = generic(Perceptron()), Gradients()
    trainer = SharpnessAwareTrainer(
        model,
        arguments(tmp_path, batch=2, accumulation=4),
        train_dataset=rows(12, uneven=False),
        callbacks=[gradients],
        method=CASES[name],
        perturb_over=perturb_over,
    )
    start = flat(model)
    with Watch(model) as watch:
        trainer.train()
    own_perturbations(name, watch, gradients.seen, start)


@pytest.mark.parametrize("perturb_over", ["micro_batch", "device"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_own_perturbations_in_the_bare_loop(name: str, perturb_over: str) -> None:
    """The same without Accelerate, where the loop says how many micro-batches a step has."""
    model, samples, seen = generic(Perceptron()), rows(12, uneven=False), []
    optimizer, start = SGD(model.parameters(), lr=0.1), flat(model)
    sharp = SharpStep(model, optimizer, CASES[name], steps=2, perturb_over=perturb_over)
    with Watch(model) as watch:
        for window in (samples[:8], samples[8:]):
            count = len(window) // 2
            for i in range(count):
                sharp(
                    lambda batch, count=count: model(**batch)["loss"] / count,
                    joined(window[2 * i : 2 * i + 2]),
                    last=i == count - 1,
                    micro_batches=count,
                )
            seen.append(flat_gradient(model))
            optimizer.step()
            optimizer.zero_grad()
    own_perturbations(name, watch, seen, start)


def test_own_perturbations_differ_from_a_common_one() -> None:
    """What perturb_over chooses matters: the two gradients of a step are not the same."""
    seen = []
    for perturb_over in ("batch", "micro_batch"):
        model, samples = generic(Perceptron()), rows(8, uneven=False)
        sharp = SharpStep(model, SGD(model.parameters(), lr=0.1), EXAMPLES["sam"], perturb_over=perturb_over)
        for i in range(4):
            batch = joined(samples[2 * i : 2 * i + 2])
            sharp(lambda given, model=model: model(**given)["loss"] / 4, batch, last=i == 3, micro_batches=4)
        seen.append(flat_gradient(model))
    assert error(*seen) > 1e-3
