"""Command-line flags for any script that uses HfArgumentParser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_sharp.descriptions import read_yaml
from hf_sharp.methods import AbstractMethod
from hf_sharp.methods.checks import one_of
from hf_sharp.parsing import parse_method
from hf_sharp.step import PERTURB_OVER


@dataclass
class SharpnessArguments:
    """Which method to train with: ``--sharpness asam --rho 0.2 --sharpness_args '{"eta": 0.01}'``.

    In a script::

        parser = HfArgumentParser((TrainingArguments, SharpnessArguments))
        training_args, sharpness_args = parser.parse_args_into_dataclasses()
        trainer = SharpnessAwareTrainer(model, training_args, ..., **sharpness_args.trainer_kwargs())

    Raises:
        ValueError: the method, one of its fields or a file is wrong; before anything is trained.
    """

    sharpness: str = field(
        default="sam", metadata={"help": "The method: its name (sam, asam, gsam, ...) or the path of a YAML file."}
    )
    rho: float | None = field(default=None, metadata={"help": "The method's radius, >= 0. Default: the method's own."})
    sharpness_args: dict | str | None = field(
        default=None, metadata={"help": "The method's other fields, as JSON or YAML: '{\"eta\": 0.01}'."}
    )
    perturb_over: str = field(
        default="batch", metadata={"help": "Which samples share one perturbation: batch, micro_batch or device."}
    )
    perturb: dict | str | None = field(
        default=None,
        metadata={"help": "Which parameters to perturb: a name pattern, or patterns or {pattern: factor} as JSON or YAML."},
    )

    def __post_init__(self) -> None:
        if not isinstance(self.sharpness, str):
            raise ValueError(
                f"sharpness must be a method's name or the path of a YAML file, got {self.sharpness!r}. "
                "Write e.g. --sharpness asam; a method's fields go into sharpness_args."
            )
        one_of(PERTURB_OVER, "perturb_over", self.perturb_over)
        self._perturb()
        self.method()

    def method(self) -> AbstractMethod:
        """The method that the flags describe."""
        described: dict[str, Any] = (
            dict(self._file()) if self.sharpness.endswith((".yaml", ".yml")) else {"name": self.sharpness}
        )
        extra = _read("sharpness_args", self.sharpness_args, "'{\"eta\": 0.01}'") or {}
        if not isinstance(extra, Mapping):
            raise ValueError(
                f"sharpness_args must be a mapping, got {self.sharpness_args!r}. Write e.g. '{{\"eta\": 0.01}}'."
            )
        if "name" in extra:
            raise ValueError(
                f"sharpness_args must not name the method, got {extra['name']!r}. Write --sharpness {extra['name']}."
            )
        if self.rho is not None and "rho" in extra:
            raise ValueError(f"rho must be given once, got --rho {self.rho} and sharpness_args {extra!r}. Drop one.")
        described.update(extra)
        if self.rho is not None:
            described["rho"] = self.rho
        return parse_method(described)

    def trainer_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of a sharpness-aware Trainer."""
        return {
            "method": self.method(),
            "perturb_over": self.perturb_over,
            "perturb": self._perturb(),
        }

    def _perturb(self) -> Any:
        """A pattern as it is; lists and mappings, which YAML opens with a bracket, read."""
        is_text = isinstance(self.perturb, str) and not self.perturb.lstrip().startswith(("[", "{"))
        return self.perturb if is_text else _read("perturb", self.perturb, "'[\"*.weight\"]'")

    def _file(self) -> Mapping[str, Any]:
        path = Path(self.sharpness)
        if not path.is_file():
            raise ValueError(
                f"sharpness must be a method's name or an existing YAML file, got {self.sharpness!r}. "
                "Write e.g. --sharpness asam."
            )
        described = read_yaml(path.read_text(encoding="utf-8"), "A method's file", "'name: sam'", str(path))
        if not isinstance(described, Mapping):
            raise ValueError(
                f"A method's YAML file must hold a mapping, got {described!r} in {path}. Write e.g. 'name: sam'."
            )
        return described


def _read(name: str, value: Any, example: str) -> Any:
    """A flag's value; text is JSON or YAML."""
    return read_yaml(value, name, example) if isinstance(value, str) else value
