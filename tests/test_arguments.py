"""The flags, the YAML files and the ways to write a method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_sharp import (
    ASAM,
    GAM,
    GSAM,
    METHODS,
    SAM,
    Cosine,
    Every,
    SharpnessArguments,
    WarmUp,
    method_to_dict,
    parse_method,
)

CONFIGS = Path(__file__).parents[1] / "configs" / "methods"


def parser() -> HfArgumentParser:
    return HfArgumentParser((TrainingArguments, SharpnessArguments))  # type: ignore[arg-type]


def test_flags() -> None:
    flags = ["--output_dir", "x", "--sharpness", "asam", "--rho", "0.2", "--sharpness_args", '{"eta": 0.02}']
    _, sharpness = parser().parse_args_into_dataclasses(flags)
    assert sharpness.trainer_kwargs() == {"method": ASAM(rho=0.2, eta=0.02), "perturb_over": "batch", "perturb": None}


def test_flags_about_parameters() -> None:
    flags = ["--output_dir", "x", "--perturb_over", "micro_batch", "--perturb", '{"*norm*": 0.5}']
    _, sharpness = parser().parse_args_into_dataclasses(flags)
    assert sharpness.trainer_kwargs() == {"method": SAM(), "perturb_over": "micro_batch", "perturb": {"*norm*": 0.5}}
    assert SharpnessArguments(perturb="*norm*").trainer_kwargs()["perturb"] == "*norm*"


def test_one_file_for_the_whole_script(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: x\nsharpness: gsam\nrho: 0.1\nsharpness_args: {alpha: 0.2}\nperturb: ['*.weight']\n")
    _, sharpness = parser().parse_yaml_file(str(file))
    assert sharpness.method() == GSAM(rho=0.1, alpha=0.2)
    assert sharpness.trainer_kwargs()["perturb"] == ["*.weight"]


def test_a_file_for_the_method_with_flags_on_top(tmp_path: Path) -> None:
    file = tmp_path / "method.yaml"
    file.write_text("name: asam\nrho: 0.3\neta: 0.02\n")
    _, sharpness = parser().parse_args_into_dataclasses(["--output_dir", "x", "--sharpness", str(file), "--rho", "0.7"])
    assert sharpness.method() == ASAM(rho=0.7, eta=0.02)


def test_no_flag_is_short_enough_to_collide() -> None:
    """TRL's arguments have alpha, beta and step."""
    ours = set(SharpnessArguments.__dataclass_fields__)
    assert not ours & {"alpha", "beta", "step", "gamma", "k"}
    assert not ours & set(TrainingArguments.__dataclass_fields__)


@pytest.mark.parametrize("given", ["asam", "ASAM", "{name: asam}", {"name": "asam"}, ASAM()])
def test_ways_to_write_a_method(given: object) -> None:
    assert parse_method(given) == ASAM()  # type: ignore[arg-type]


def test_methods_and_schedules_inside_a_method() -> None:
    rho = {"schedule": "warmup", "value": {"schedule": "cosine", "start": 0.1, "stop": 0.2}, "warmup_steps": 5}
    given = {"name": "every", "k": 3, "method": {"name": "gam", "base": "sam"}, "otherwise": {"name": "sam", "rho": rho}}
    expected = Every(3, GAM(base=SAM()), otherwise=SAM(rho=WarmUp(Cosine(0.1, 0.2), 5)))
    assert parse_method(given) == expected


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_and_its_description(name: str) -> None:
    method = SharpnessArguments(str(CONFIGS / f"{name}.yaml")).method()
    assert parse_method(json.loads(json.dumps(method_to_dict(method)))) == method


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_method_has_a_config(name: str) -> None:
    method = SharpnessArguments(str(CONFIGS / f"{name}.yaml")).method()
    assert type(method) is METHODS[name]


def test_each_config_has_a_method() -> None:
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(METHODS)
