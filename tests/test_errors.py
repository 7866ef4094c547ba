"""Bad input gets a ValueError that names the rule, the value and the fix, as early as it can be known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_sharp import (
    ASAM,
    CRSAM,
    GAM,
    GSAM,
    LPF,
    RSAM,
    SAM,
    AcceleratedGAM,
    Decayed,
    During,
    Every,
    FollowLR,
    Linear,
    SharpnessArguments,
    SharpnessAwareMixin,
    SharpnessAwareTrainer,
    SharpStep,
    WarmUp,
    parse_method,
)

NAMES = "accelerated_gam, asam, crsam, decayed, during, every, gam, gsam, lpf, rgsam, rsam, sam"


class Net(nn.Module):
    """Two parameters, and a loss that may be no number."""

    def __init__(self, reduce: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.reduce = reduce

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(x)
        loss = nn.functional.cross_entropy(logits, labels, reduction="mean" if self.reduce else "none")
        return {"loss": loss, "logits": logits}


def arguments(**kwargs: Any) -> TrainingArguments:
    return TrainingArguments(
        kwargs.pop("output_dir", "unused"), use_cpu=True, report_to=[], save_strategy="no", max_steps=1, **kwargs
    )


def trainer(tmp_path: Path, model: nn.Module | None = None, **kwargs: Any) -> SharpnessAwareTrainer:
    data = [{"x": torch.ones(2), "labels": 1}] * 4
    args = arguments(output_dir=str(tmp_path), **kwargs.pop("args", {}))
    return SharpnessAwareTrainer(model or Net(), args, train_dataset=data, **kwargs)


def frozen() -> Net:
    return Net().requires_grad_(False)


VALUES: list[tuple[Callable[[], object], str]] = [
    (
        lambda: parse_method("gasm"),
        f"Unknown method 'gasm'. Did you mean 'gsam'? Choose from {NAMES}.",
    ),
    (lambda: parse_method("zzz"), f"Unknown method 'zzz'. Choose from {NAMES}."),
    (
        lambda: parse_method({"name": "gsam", "beta": 1}),
        "GSAM has no field 'beta'. Its fields are rho, alpha, rho_min.",
    ),
    (
        lambda: parse_method({"name": "lpf"}),
        "LPF needs the field 'gamma', which has no default. Its fields are gamma, draws.",
    ),
    (
        lambda: parse_method({"rho": 0.1}),
        "A method must be a name, a mapping with 'name' or a method object, got {'rho': 0.1}. "
        "Write e.g. {'name': 'sam', 'rho': 0.05}.",
    ),
    (
        lambda: parse_method(None),  # type: ignore[arg-type]
        "A method must be a name, a mapping with 'name' or a method object, got None. "
        "Write e.g. {'name': 'sam', 'rho': 0.05}.",
    ),
    (
        lambda: parse_method({"name": "sam", "rho": {"schedule": "linaer", "start": 0, "stop": 1}}),
        "Unknown schedule 'linaer'. Did you mean 'linear'? "
        "Choose from constant, cosine, follow_lr, inverse_sqrt, linear, warmup.",
    ),
    (
        lambda: parse_method({"name": "sam", "rho": {"schedule": "linear", "start": 0}}),
        "Linear needs the field 'stop', which has no default. Its fields are start, stop.",
    ),
    (lambda: SAM(rho=-0.1), "rho must be >= 0, got -0.1. Pass e.g. rho=0.05."),
    (
        lambda: ASAM(rho=math.nan),
        "rho must be a finite number >= 0 or a schedule, got nan. Pass e.g. rho=0.05.",
    ),
    (
        lambda: GSAM(rho=math.inf),
        "rho must be a finite number >= 0 or a schedule, got inf. Pass e.g. rho=0.05.",
    ),
    (
        lambda: parse_method("{name: sam, rho: 5e-2}"),
        "rho must be a finite number >= 0 or a schedule, got the string '5e-2'. "
        "Pass e.g. rho=0.05; YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (lambda: SAM(rho=None), "rho must be a finite number >= 0 or a schedule, got None. Pass e.g. rho=0.05."),  # type: ignore[arg-type]
    (lambda: SAM(rho=True), "rho must be a finite number >= 0 or a schedule, got True. Pass e.g. rho=0.05."),
    (lambda: SAM(p=0.5), "p must be a number from 1 to inf, got 0.5. Pass e.g. p=2.0."),
    (lambda: ASAM(p=math.nan), "p must be a number from 1 to inf, got nan. Pass e.g. p=2.0."),
    (lambda: ASAM(eta=-1), "eta must be >= 0, got -1. Pass e.g. eta=0.01."),
    (lambda: ASAM(scale="layer"), "scale must be 'element' or 'filter', got 'layer'. Pass e.g. scale='element'."),
    (lambda: ASAM(scale_biases=1), "scale_biases must be True or False, got 1. Pass e.g. scale_biases=True."),  # type: ignore[arg-type]
    (lambda: RSAM(gamma=-1), "gamma must be >= 0, got -1. Pass e.g. gamma=0.05."),
    (
        lambda: RSAM(lam="2"),
        "lam must be a finite number >= 0, got the string '2'. Pass e.g. lam=2.0; "  # type: ignore[arg-type]
        "YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (lambda: GSAM(alpha=-0.4), "alpha must be >= 0, got -0.4. Pass e.g. alpha=0.4."),
    (lambda: GSAM(rho_min=-1), "rho_min must be >= 0, got -1. Pass e.g. rho_min=0.02."),
    (lambda: CRSAM(log="yes"), "log must be True or False, got 'yes'. Pass e.g. log=True."),  # type: ignore[arg-type]
    (lambda: GAM(hvp="fast"), "hvp must be 'difference' or 'exact', got 'fast'. Pass e.g. hvp='difference'."),
    (lambda: GAM(step=0), "step must be > 0, got 0. Pass e.g. step=0.02."),
    (lambda: GAM(base="sam"), "base must be a method, got 'sam'. Pass e.g. base=SAM(rho=0.05)."),  # type: ignore[arg-type]
    (lambda: AcceleratedGAM(a=1.5), "a must be a number from 0 to 1, got 1.5. Pass e.g. a=0.6."),
    (lambda: LPF(gamma=0.1, draws=0), "draws must be a whole number >= 1, got 0. Pass e.g. draws=2."),
    (lambda: Every(0, SAM()), "k must be a whole number >= 1, got 0. Pass e.g. k=2."),
    (lambda: Every(2.5, SAM()), "k must be a whole number >= 1, got 2.5. Pass e.g. k=2."),  # type: ignore[arg-type]
    (lambda: Every(2, None), "method must be a method, got None. Pass e.g. method=SAM(rho=0.05)."),  # type: ignore[arg-type]
    (lambda: During(SAM(), start=-0.1), "start must be a number from 0 to 1, got -0.1. Pass e.g. start=0.0."),
    (
        lambda: During(SAM(), start=0.5, stop=0.5),
        "start must be below stop, got 0.5 and 0.5. Pass e.g. start=0.0, stop=1.0.",
    ),
    (lambda: Decayed(SAM(), -1.0), "weight_decay must be >= 0, got -1.0. Pass e.g. weight_decay=0.0005."),
    (lambda: Linear(0.1, -0.1), "stop must be >= 0, got -0.1. Pass e.g. stop=0.05."),
    (lambda: WarmUp(0.1, 0), "warmup_steps must be a whole number >= 1, got 0. Pass e.g. warmup_steps=2."),
    (
        lambda: FollowLR(high="x"),  # type: ignore[arg-type]
        "high must be a finite number >= 0, got the string 'x'. Pass e.g. high=0.05; "
        "YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (
        lambda: SharpnessArguments("nowhere.yaml"),
        "sharpness must be a method's name or an existing YAML file, got 'nowhere.yaml'. Write e.g. --sharpness asam.",
    ),
    (
        lambda: SharpnessArguments("asam", sharpness_args="3"),
        "sharpness_args must be a mapping, got '3'. Write e.g. '{\"eta\": 0.01}'.",
    ),
    (
        lambda: SharpnessArguments("asam", rho=0.1, sharpness_args="{rho: 0.2}"),
        "rho must be given once, got --rho 0.1 and sharpness_args {'rho': 0.2}. Drop one.",
    ),
]


@pytest.mark.parametrize(("make", "message"), VALUES, ids=[message[:40] for _, message in VALUES])
def test_values(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        make()
    assert str(error.value) == message


TRAINERS: list[tuple[dict[str, Any], str]] = [
    ({"method": "gasm"}, f"Unknown method 'gasm'. Did you mean 'gsam'? Choose from {NAMES}."),
    (
        {"perturb_over": "epoch"},
        "perturb_over must be 'batch' or 'micro_batch' or 'device', got 'epoch'. Pass e.g. perturb_over='batch'.",
    ),
    (
        {"perturb": ["head.*", "haed.bias"]},
        "Each pattern in perturb must match a trainable parameter, got 'haed.bias', which matches none. "
        "The nearest name is 'head.bias'; '*' stands for any characters.",
    ),
    (
        {"perturb": {"head.bias": -1}},
        "A factor in perturb must be a number >= 0, got -1 for 'head.bias'. Pass e.g. 1.0.",
    ),
    (
        {"perturb": {"head.bias": 0.0}},
        "perturb must leave a parameter to perturb, got {'head.bias': 0.0}. Pass perturb=None for all of them.",
    ),
    (
        {"model": frozen()},
        "The model must have a trainable parameter, got none with requires_grad=True. "
        "Unfreeze what you want to train before you build the trainer.",
    ),
    *[
        (
            {"args": {"optim": optim}},
            f"The optimizer must step after the backward, got {optim!r}, which steps inside it, before a second pass "
            "could run. Choose another one, e.g. optim='adamw_torch'.",
        )
        for optim in ("lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise")
    ],
    (
        {"optimizers": (LayerWiseDummyOptimizer(), None)},
        "The optimizer must step after the backward, got 'LayerWiseDummyOptimizer', which steps inside it, before a second "
        "pass could run. Choose another one, e.g. optim='adamw_torch'.",
    ),
    (
        {"method": Decayed(SAM(), 0.1), "args": {"weight_decay": 0.1}},
        "With Decayed the optimizer must not decay the weights too, got weight_decay=0.1 in the training arguments. "
        "Set it to 0.",
    ),
    (
        {"method": Every(2, GAM(hvp="exact")), "args": {"torch_compile": True}},
        "hvp='exact' needs a second derivative, which torch_compile=True does not have. Use GAM(hvp='difference').",
    ),
]


@pytest.mark.parametrize(("kwargs", "message"), TRAINERS, ids=[message[:40] for _, message in TRAINERS])
def test_trainer(kwargs: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        trainer(tmp_path, **kwargs)
    assert str(error.value) == message


def test_a_loss_with_many_numbers(tmp_path: Path) -> None:
    """Known at the first forward only; the weights are as they were."""
    sharp = trainer(tmp_path, model=Net(reduce=False))
    before = [p.clone() for p in sharp.model.parameters()]
    with pytest.raises(ValueError, match=r"^The loss must be one number, got shape \(4,\)\. Reduce it, e\.g\. with loss"):
        sharp.train()
    assert all(torch.equal(a, b) for a, b in zip(before, sharp.model.parameters(), strict=True))


def test_data_parallel() -> None:
    model = nn.DataParallel(Net())
    message = "Each process must hold all weights, got nn.DataParallel. Launch one process, or several under DDP."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SharpStep(model, torch.optim.SGD(model.parameters(), 0.1), SAM())


def test_sparse_gradients() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    sharp = SharpStep(model, torch.optim.SGD(model.parameters(), 0.1), SAM())
    with pytest.raises(ValueError, match=r"^Gradients must be dense, got a sparse one for 'weight'\. Build its"):
        sharp(lambda x: model(x).sum(), torch.tensor([1]))


@pytest.mark.parametrize("method", [SAM(Linear(0.1, 0.2)), During(SAM()), Every(2, During(SAM()))])
def test_steps_that_nobody_said(method: Any) -> None:
    model = Net()
    with pytest.raises(ValueError, match=r" needs the number of training steps, got none\. Pass SharpStep\(\.\.\., steps"):
        SharpStep(model, torch.optim.SGD(model.parameters(), 0.1), method)


def test_good_input_is_not_refused(tmp_path: Path) -> None:
    """The refusals above are not the constructor's only answer."""
    assert isinstance(trainer(tmp_path, method="SAM", perturb="head.*"), Trainer)
    assert issubclass(SharpnessAwareTrainer, SharpnessAwareMixin)
    assert parse_method({"name": "accelerated-gam"}) == AcceleratedGAM()
