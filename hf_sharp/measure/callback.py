"""Measuring during training."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_sharp.measure.base import AbstractQuantity
from hf_sharp.measure.batches import Batches
from hf_sharp.measure.opening import loss_surface
from hf_sharp.measure.records import write_json
from hf_sharp.measure.registry import parse_quantity
from hf_sharp.measure.result import Found, Result, UndefinedError
from hf_sharp.measure.settings import How, LossOf, model_loss
from hf_sharp.measure.soundness import look
from hf_sharp.measure.surface import Surface

Quantities = Mapping[str, Any] | Sequence[Any]


class SharpnessCallback(TrainerCallback):
    """Takes quantities at chosen steps of a Trainer's run, into its logs.

    The run is bit-identical to one without it: modes, gradients, buffers and random streams are as they were. ::

        quantities = ["trace", "{name: sharpness, rho: 0.1}"]
        trainer.add_callback(SharpnessCallback(trainer, quantities, {"train": loader}, every=100))

    Log entries are called ``sharpness/<loader>/<quantity>``, with ``_se`` behind for a standard error, and with the value's
    name behind where a quantity has several. Under several processes all of them measure together. Where a quantity has no
    value, because the model has diverged, say, NaN is logged with a warning.

    Args:
        trainer: whose logs take the values.
        quantities: each as `parse_quantity` takes it; a mapping gives them names of their own.
        loaders: what to measure on, by name: plain loaders (not prepared ones), whose batches are read once.
        every: optimizer steps between measurements; 0: none but those of ``at``; ``"epoch"``: at the end of each.
        at: further steps; 0 is before the first one.
        how: see `How`.
        loss_of: the mean loss of a batch; by default the model's own.
        samples: read whole batches until there are this many; None: all.
        file: where all results are kept as JSON, written anew after each measurement. A run that is resumed keeps those
            up to its step.

    Raises:
        ValueError: a quantity, a name or a step breaks its rule; what only the model and the loaders tell (more eigenvalues
            than weights, say) when the training begins.
    """

    def __init__(
        self,
        trainer: Trainer,
        quantities: Quantities,
        loaders: Mapping[str, Iterable[Any]],
        *,
        every: int | str = "epoch",
        at: Sequence[int] = (),
        how: How | None = None,
        loss_of: LossOf = model_loss,
        samples: int | None = None,
        file: str | Path | None = None,
    ) -> None:
        if every != "epoch" and (isinstance(every, bool) or not isinstance(every, int) or every < 0):
            raise ValueError(f"every must be 'epoch' or a whole number >= 0, got {every!r}. Pass e.g. every=100.")
        if isinstance(at, str) or not isinstance(at, Iterable) or not all(_is_step(step) for step in at):
            raise ValueError(f"at must be a list of whole numbers >= 0, got {at!r}. Pass e.g. at=[0, 100].")
        if not isinstance(loaders, Mapping):
            got = type(loaders).__name__
            raise ValueError(f"loaders must be a mapping from name to loader, got {got}. Pass e.g. {{'train': loader}}.")
        if not loaders:
            raise ValueError("There must be a loader to measure on, got none. Pass e.g. loaders={'train': loader}.")
        self.quantities = named(quantities)
        self.history: list[dict[str, Any]] = []
        self._trainer, self._every, self._at, self._file = trainer, every, frozenset(at), file
        self._loaders: dict[str, Iterable[Any] | Batches] = dict(loaders)
        self._how, self._loss_of, self._samples = how, loss_of, samples
        self._names: dict[str, list[str]] = {}
        self._sound: set[str] = set()  # the loaders on which the loss was seen to be one number
        self._last: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks whether all can be measured, and measures before the first step, if asked to.

        A run that is resumed takes its history up from the file.

        Raises:
            ValueError: a quantity does not suit the model or the batches, or a loader is empty.
        """
        for name in self._loaders:
            with self._opened(name, check=False) as f:
                for quantity in self.quantities.values():
                    quantity.check(f)
        self._last, kept = None, self.history
        if self._file is not None and state.global_step and Path(self._file).is_file():
            kept = read_history(Path(self._file))
        self.history = [entry for entry in kept if state.global_step and entry["step"] <= state.global_step]
        if state.global_step == 0 and 0 in self._at:
            self._measure(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measures after the chosen steps."""
        step = state.global_step
        if step in self._at or (isinstance(self._every, int) and self._every > 0 and step % self._every == 0):
            self._measure(state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measures after each epoch, if asked to."""
        if self._every == "epoch" and self._last != state.global_step:
            self._measure(state, control)

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        logs: dict[str, float] = {}
        for name in self._loaders:
            for label, result in self._results(name).items():
                logs |= {f"sharpness/{name}/{key}": value for key, value in keys(label, result).items()}
                place = {"step": state.global_step, "epoch": state.epoch, "loader": name, "label": label}
                self.history.append(place | result.to_dict())
        self._last = state.global_step
        should_log = control.should_log  # logging in the middle of a step would take back that the loss is due
        self._trainer.log(logs)
        control.should_log = self._trainer.control.should_log = should_log
        if self._file is not None and state.is_world_process_zero:
            write_json(Path(self._file), self.history)

    def _results(self, name: str) -> dict[str, Result]:
        """The results on one loader; NaN where the model has diverged, which is no reason to end a run."""
        known = name in self._sound
        try:
            with self._opened(name, check=not known) as f:
                self._sound.add(name)
                if known:
                    look(f)
                return {label: self._result(label, f) for label in self.quantities}
        except UndefinedError as error:
            return {label: self._missing(label, error) for label in self.quantities}

    @contextmanager
    def _opened(self, name: str, *, check: bool) -> Iterator[Surface]:
        """The loss on one loader, which is read the first time."""
        model = self._trainer.model
        assert model is not None
        with loss_surface(
            model, self._loaders[name], how=self._how, loss_of=self._loss_of, samples=self._samples, check=check
        ) as f:
            self._loaders[name] = f.batches
            yield f

    def _result(self, label: str, f: Surface) -> Result:
        try:
            result = self.quantities[label].measure(f)
        except UndefinedError as error:
            return self._missing(label, error)
        self._names[label] = list(result.values)
        return result

    def _missing(self, label: str, error: UndefinedError) -> Result:
        """NaN for each value that the quantity had before."""
        warnings.warn(f"{label} is logged as NaN: {error}", stacklevel=2)
        quantity = self.quantities[label]
        values = dict.fromkeys(self._names.get(label, [quantity.name]), math.nan)
        return Result(quantity.name, Found(values), dict(vars(quantity)), {"undefined": str(error)})


def read_history(file: Path) -> list[dict[str, Any]]:
    """The results that a callback wrote into a file.

    Raises:
        ValueError: it is no such file.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        fields = {"step", "epoch", "loader", "values", "standard_errors"}
        known = isinstance(entries, list) and all(fields <= set(entry) for entry in entries)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"A history must be the file of a SharpnessCallback, got {str(file)!r}, which is none. Name another."
        )
    return entries


def _is_step(step: object) -> bool:
    return isinstance(step, int) and not isinstance(step, bool) and step >= 0


def named(quantities: Quantities) -> dict[str, AbstractQuantity]:
    """The quantities by the name under which their values are logged.

    Raises:
        ValueError: two of a list have the same name, or there is no list.
    """
    if isinstance(quantities, str | AbstractQuantity):
        raise ValueError(f"quantities must be a list or a mapping, got {quantities!r}. Pass e.g. ['trace'].")
    if isinstance(quantities, Mapping):
        return {name: parse_quantity(given) for name, given in quantities.items()}
    out: dict[str, AbstractQuantity] = {}
    for given in quantities:
        quantity = parse_quantity(given)
        if quantity.name in out:
            raise ValueError(
                f"Each quantity must have a name of its own, got {quantity.name!r} twice. "
                f"Pass a mapping, e.g. {{'{quantity.name}_1': ..., '{quantity.name}_2': ...}}."
            )
        out[quantity.name] = quantity
    return out


def keys(label: str, result: Result) -> dict[str, float]:
    """The scalars of a result as they are logged; the value that the quantity is named after goes by the label alone."""
    out = {}
    for key, value in result.scalars().items():
        own = key.removesuffix("_se") if key.endswith("_se") else key
        tail = "" if own == result.name else f"/{own}"
        out[f"{label}{tail}{'_se' if key != own else ''}"] = value
    return out
