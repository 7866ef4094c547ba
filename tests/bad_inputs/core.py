"""Bad input to methods, schedules, flags, `SharpStep` and the Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import SGD, Optimizer
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
    Cosine,
    Decayed,
    During,
    Every,
    FollowLR,
    Linear,
    SharpnessArguments,
    SharpnessAwareTrainer,
    SharpStep,
    WarmUp,
    parse_method,
)
from tests.bad_inputs.cases import Cases, written
from tests.models import arguments, mixed, rows

NAMES = "accelerated_gam, asam, crsam, decayed, during, every, gam, gsam, lpf, rgsam, rsam, sam"
LAYERWISE = (
    "The optimizer must step after the backward, got 'LayerWiseDummyOptimizer', which steps inside it, before a second pass "
    "could run. Choose another one, e.g. optim='adamw_torch'."
)


def trainer(model: nn.Module | None = None, args: dict[str, Any] | None = None, **given: Any) -> SharpnessAwareTrainer:
    """A Trainer that writes into the current folder."""
    return SharpnessAwareTrainer(
        model or mixed(), arguments(Path(), **(args or {})), train_dataset=rows("mixed", 4), **given
    )


def step(method: Any = SAM(), model: Any = None, **given: Any) -> SharpStep:  # noqa: B008 - frozen
    """A bare loop's step."""
    model = mixed() if model is None else model
    return SharpStep(model, SGD([torch.zeros(1)], lr=0.1), method, **given)


def prepared(optimizer: Optimizer) -> SharpStep:
    """A step of a loop under Accelerate, with its optimizer prepared."""
    accelerator = Accelerator(cpu=True)
    model, ready = accelerator.prepare(mixed(), optimizer)
    return SharpStep(model, ready, SAM(), accelerator=accelerator)


def sparse() -> None:
    """A step on an embedding with sparse gradients."""
    model = nn.Embedding(5, 2, sparse=True)
    step(model=model)(lambda x: model(x).sum(), torch.tensor([1]))


CASES: Cases = [
    (
        lambda f: parse_method("gasm"),
        f"Unknown method 'gasm'. Did you mean 'gsam'? Choose from {NAMES}.",
    ),
    (lambda f: parse_method("zzz"), f"Unknown method 'zzz'. Choose from {NAMES}."),
    (
        lambda f: parse_method({"name": "gsam", "beta": 1}),
        "GSAM has no field 'beta'. Its fields are rho, alpha, rho_min.",
    ),
    (
        lambda f: parse_method({"name": "lpf"}),
        "LPF needs the field 'gamma', which has no default. Its fields are gamma, draws.",
    ),
    (
        lambda f: parse_method({"rho": 0.1}),
        "A method must be a name, a mapping with 'name' or a method object, got {'rho': 0.1}. "
        "Write e.g. {'name': 'sam', 'rho': 0.05}.",
    ),
    (
        lambda f: parse_method(None),  # type: ignore[arg-type]
        "A method must be a name, a mapping with 'name' or a method object, got None. "
        "Write e.g. {'name': 'sam', 'rho': 0.05}.",
    ),
    (
        lambda f: parse_method({"name": "sam", "rho": {"schedule": "linaer", "start": 0, "stop": 1}}),
        "Unknown schedule 'linaer'. Did you mean 'linear'? "
        "Choose from constant, cosine, follow_lr, inverse_sqrt, linear, warmup.",
    ),
    (
        lambda f: parse_method({"name": "sam", "rho": {"schedule": "linear", "start": 0}}),
        "Linear needs the field 'stop', which has no default. Its fields are start, stop.",
    ),
    (lambda f: SAM(rho=-0.1), "rho must be >= 0, got -0.1. Pass e.g. rho=0.05."),
    (
        lambda f: ASAM(rho=math.nan),
        "rho must be a finite number >= 0 or a schedule, got nan. Pass e.g. rho=0.05.",
    ),
    (
        lambda f: GSAM(rho=math.inf),
        "rho must be a finite number >= 0 or a schedule, got inf. Pass e.g. rho=0.05.",
    ),
    (
        lambda f: parse_method("{name: sam, rho: 5e-2}"),
        "rho must be a finite number >= 0 or a schedule, got the string '5e-2'. "
        "Pass e.g. rho=0.05; YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (lambda f: SAM(rho=None), "rho must be a finite number >= 0 or a schedule, got None. Pass e.g. rho=0.05."),  # type: ignore[arg-type]
    (lambda f: SAM(rho=True), "rho must be a finite number >= 0 or a schedule, got True. Pass e.g. rho=0.05."),
    (lambda f: SAM(p=0.5), "p must be a number from 1 to inf, got 0.5. Pass e.g. p=2.0."),
    (lambda f: ASAM(p=math.nan), "p must be a number from 1 to inf, got nan. Pass e.g. p=2.0."),
    (lambda f: ASAM(eta=-1), "eta must be >= 0, got -1. Pass e.g. eta=0.01."),
    (lambda f: ASAM(scale="layer"), "scale must be 'element' or 'filter', got 'layer'. Pass e.g. scale='element'."),
    (lambda f: ASAM(scale_biases=1), "scale_biases must be True or False, got 1. Pass e.g. scale_biases=True."),  # type: ignore[arg-type]
    (lambda f: RSAM(gamma=-1), "gamma must be >= 0, got -1. Pass e.g. gamma=0.05."),
    (
        lambda f: RSAM(lam="2"),
        "lam must be a finite number >= 0, got the string '2'. Pass e.g. lam=2.0; "  # type: ignore[arg-type]
        "YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (lambda f: GSAM(alpha=-0.4), "alpha must be >= 0, got -0.4. Pass e.g. alpha=0.4."),
    (lambda f: GSAM(rho_min=-1), "rho_min must be >= 0, got -1. Pass e.g. rho_min=0.02."),
    (lambda f: CRSAM(log="yes"), "log must be True or False, got 'yes'. Pass e.g. log=True."),  # type: ignore[arg-type]
    (lambda f: GAM(hvp="fast"), "hvp must be 'difference' or 'exact', got 'fast'. Pass e.g. hvp='difference'."),
    (lambda f: GAM(step=0), "step must be > 0, got 0. Pass e.g. step=0.02."),
    (lambda f: GAM(base="sam"), "base must be a method, got 'sam'. Pass e.g. base=SAM(rho=0.05)."),  # type: ignore[arg-type]
    (lambda f: AcceleratedGAM(a=1.5), "a must be a number from 0 to 1, got 1.5. Pass e.g. a=0.6."),
    (lambda f: LPF(gamma=0.1, draws=0), "draws must be a whole number >= 1, got 0. Pass e.g. draws=2."),
    (lambda f: Every(0, SAM()), "k must be a whole number >= 1, got 0. Pass e.g. k=2."),
    (lambda f: Every(2.5, SAM()), "k must be a whole number >= 1, got 2.5. Pass e.g. k=2."),  # type: ignore[arg-type]
    (lambda f: Every(2, None), "method must be a method, got None. Pass e.g. method=SAM(rho=0.05)."),  # type: ignore[arg-type]
    (lambda f: During(SAM(), start=-0.1), "start must be a number from 0 to 1, got -0.1. Pass e.g. start=0.0."),
    (
        lambda f: During(SAM(), start=0.5, stop=0.5),
        "start must be below stop, got 0.5 and 0.5. Pass e.g. start=0.0, stop=1.0.",
    ),
    (lambda f: Decayed(SAM(), -1.0), "weight_decay must be >= 0, got -1.0. Pass e.g. weight_decay=0.0005."),
    (lambda f: Linear(0.1, -0.1), "stop must be >= 0, got -0.1. Pass e.g. stop=0.05."),
    (lambda f: WarmUp(0.1, 0), "warmup_steps must be a whole number >= 1, got 0. Pass e.g. warmup_steps=2."),
    (
        lambda f: FollowLR(high="x"),  # type: ignore[arg-type]
        "high must be a finite number >= 0, got the string 'x'. Pass e.g. high=0.05; "
        "YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (
        lambda f: SharpnessArguments("nowhere.yaml"),
        "sharpness must be a method's name or an existing YAML file, got 'nowhere.yaml'. Write e.g. --sharpness asam.",
    ),
    (
        lambda f: SharpnessArguments("asam", sharpness_args="3"),
        "sharpness_args must be a mapping, got '3'. Write e.g. '{\"eta\": 0.01}'.",
    ),
    (
        lambda f: SharpnessArguments("asam", rho=0.1, sharpness_args="{rho: 0.2}"),
        "rho must be given once, got --rho 0.1 and sharpness_args {'rho': 0.2}. Drop one.",
    ),
    (
        lambda f: parse_method("{name: sam"),
        "A method written as text must be YAML, got '{name: sam': expected ',' or '}', but got '<stream end>' in line 1, "
        "column 11. Write e.g. {'name': 'sam', 'rho': 0.05}.",
    ),
    (
        lambda f: parse_method(SAM),  # type: ignore[arg-type]
        "A method must be a name, a mapping with 'name' or a method object, got <class 'hf_sharp.methods.sam.SAM'>. "
        "Write e.g. {'name': 'sam', 'rho': 0.05}.",
    ),
    (
        lambda f: parse_method({"name": "every", "k": 2, "method": {"name": "sam", "rh": 1}}),
        "SAM has no field 'rh'. Did you mean 'rho'? Its fields are rho, p.",
    ),
    (
        lambda f: SAM(rho=Linear(0.1, "x")),  # type: ignore[arg-type]
        "stop must be a finite number >= 0, got the string 'x'. Pass e.g. stop=0.05; "
        "YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (
        lambda f: SharpnessArguments({"name": "asam"}),  # type: ignore[arg-type]
        "sharpness must be a method's name or the path of a YAML file, got {'name': 'asam'}. "
        "Write e.g. --sharpness asam; a method's fields go into sharpness_args.",
    ),
    (
        lambda f: SharpnessArguments("sam", sharpness_args="{name: asam}"),
        "sharpness_args must not name the method, got 'asam'. Write --sharpness asam.",
    ),
    (
        lambda f: SharpnessArguments("asam", sharpness_args="{eta: 0.1"),
        "sharpness_args must be YAML, got '{eta: 0.1': expected ',' or '}', but got '<stream end>' in line 1, column 10. "
        "Write e.g. '{\"eta\": 0.01}'.",
    ),
    (
        lambda f: SharpnessArguments(perturb="[*.weight"),
        "perturb must be YAML, got '[*.weight': expected alphabetic or numeric character, but found '.' in line 1, "
        "column 3. Write e.g. '[\"*.weight\"]'.",
    ),
    (
        lambda f: SharpnessArguments(perturb_over="epoch"),
        "perturb_over must be 'batch' or 'micro_batch' or 'device', got 'epoch'. Pass e.g. perturb_over='batch'.",
    ),
    (
        lambda f: SharpnessArguments(str(written(f / "m.yaml", "name: [sam\n"))),
        "A method's file must be YAML, got {f}/m.yaml: expected ',' or ']', but got '<stream end>' in line 2, column 1. "
        "Write e.g. 'name: sam'.",
    ),
    (
        lambda f: SharpnessArguments(str(written(f / "m.yaml", "- sam\n"))),
        "A method's YAML file must hold a mapping, got ['sam'] in {f}/m.yaml. Write e.g. 'name: sam'.",
    ),
    (
        lambda f: step(perturb=3),
        "perturb must be a name pattern, a list of them or a mapping from pattern to factor, got 3. "
        "Pass e.g. perturb=['*.weight'].",
    ),
    (
        lambda f: step(perturb=["last.*", 3]),
        "perturb must be a name pattern, a list of them or a mapping from pattern to factor, got ['last.*', 3]. "
        "Pass e.g. perturb=['*.weight'].",
    ),
    (
        lambda f: step(model=SGD([torch.zeros(1)], lr=0.1)),
        "The model must be a torch.nn.Module, got SGD. Pass SharpStep(model, optimizer, method).",
    ),
    (lambda f: step(steps=0), "steps must be a whole number >= 1, got 0. Pass e.g. steps=2."),
    (
        lambda f: step(Every(2, During(SAM(rho=Cosine(0.1, 0.2))))),
        "During needs the number of training steps, got none. Pass SharpStep(..., steps=...).",
    ),
    (
        lambda f: step()(torch.ones(()), rows("mixed", 2)),  # type: ignore[arg-type]
        "loss_of must be a function, got Tensor. Pass e.g. lambda batch: model(**batch).loss.",
    ),
    (
        lambda f: step(model=nn.DataParallel(mixed())),
        "Each process must train on one device, got nn.DataParallel. Launch one process per device under DDP.",
    ),
    (lambda f: SharpStep(mixed(), LayerWiseDummyOptimizer(), SAM()), LAYERWISE),
    (
        lambda f: step(model=mixed().to(torch.float8_e4m3fn)),
        "Trainable weights must be floating-point numbers of 16 bits or more, got torch.float8_e4m3fn for 'first.weight'. "
        "Freeze the quantised weights and train an adapter, e.g. LoRA.",
    ),
    (lambda f: sparse(), "Gradients must be dense, got a sparse one for 'weight'. Build its embedding with sparse=False."),
    (lambda f: trainer(method="gasm"), f"Unknown method 'gasm'. Did you mean 'gsam'? Choose from {NAMES}."),
    (
        lambda f: trainer(perturb_over="epoch"),
        "perturb_over must be 'batch' or 'micro_batch' or 'device', got 'epoch'. Pass e.g. perturb_over='batch'.",
    ),
    (
        lambda f: trainer(perturb=["last.*", "lsat.bias"]),
        "Each pattern in perturb must match a trainable parameter, got 'lsat.bias', which matches none. "
        "The nearest name is 'last.bias'; '*' stands for any characters.",
    ),
    (
        lambda f: trainer(perturb={"last.bias": -1}),
        "A factor in perturb must be a number >= 0, got -1 for 'last.bias'. Pass e.g. 1.0.",
    ),
    (
        lambda f: trainer(perturb={"last.bias": 0.0}),
        "perturb must leave a parameter to perturb, got {'last.bias': 0.0}. Pass perturb=None for all of them.",
    ),
    (
        lambda f: trainer(model=mixed().requires_grad_(False)),
        "The model must have a trainable parameter, got none with requires_grad=True. "
        "Unfreeze what you want to train before you build the trainer.",
    ),
    *[
        (
            lambda f, optim=optim: trainer(args={"optim": optim}),  # type: ignore[misc]
            f"The optimizer must step after the backward, got {optim!r}, which steps inside it, before a second pass "
            "could run. Choose another one, e.g. optim='adamw_torch'.",
        )
        for optim in ("lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise")
    ],
    (lambda f: trainer(optimizers=(LayerWiseDummyOptimizer(), None)), LAYERWISE),
    (
        lambda f: trainer(method=Decayed(SAM(), 0.1), args={"weight_decay": 0.1}),
        "With Decayed the optimizer must not decay the weights too, got weight_decay=0.1 in the training arguments. "
        "Set it to 0.",
    ),
    (
        lambda f: SharpStep((model := mixed()), SGD(model.parameters(), lr=0.1, weight_decay=0.1), Decayed(SAM(), 0.1)),
        "With Decayed the optimizer must not decay the weights too, got weight_decay=0.1 in the optimizer. Set it to 0.",
    ),
    (lambda f: prepared(LayerWiseDummyOptimizer()), LAYERWISE),
    (
        lambda f: SharpStep((model := mixed()), SGD(model.parameters(), lr=0.1), SAM())(
            lambda batch: torch.ones(4, requires_grad=True), {}
        ),
        "The loss must be one number, got shape (4,). Reduce it, e.g. with loss.mean().",
    ),
    (
        lambda f: AcceleratedGAM(gamma="0.03"),  # type: ignore[arg-type]
        "gamma must be a finite number >= 0 or a schedule, got the string '0.03'. "
        "Pass e.g. gamma=0.05; YAML reads 5e-2 as a string and 5.0e-2 as a number.",
    ),
    (
        lambda f: trainer(method=Every(2, GAM(hvp="exact")), args={"torch_compile": True}),
        "hvp='exact' needs a second derivative, which torch_compile=True does not have. Use GAM(hvp='difference').",
    ),
]
