"""Hyper-parameter search over a method: which of a trial's values are the method's, and the method that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from transformers import TrainingArguments

from hf_sharp.methods import AbstractMethod, AbstractSchedule
from hf_sharp.parsing import parse_method, with_fields

_Part = AbstractMethod | AbstractSchedule


def split(
    values: Mapping[str, Any], method: AbstractMethod, args: TrainingArguments
) -> tuple[dict[str, Any], AbstractMethod]:
    """The Trainer's part of what an ``hp_space`` returned, and the method of the trial.

    A name is looked for among the training arguments first, then among the fields of the method: ``rho``; ``base.rho`` for
    a method or a schedule inside; ``method.weight_decay`` where a training argument has the same name. ``method`` itself
    stands for another method, as `parse_method` reads it; the other names are then about that one. The method inside
    `Every(10, SAM())` is ``method.method``, and its radius ``method.rho``.

    Args:
        values: by name.
        method: the method that the Trainer was given.
        args: the training arguments.

    Raises:
        ValueError: a name is neither, or a value breaks its rule.
    """
    chosen = parse_method(values.get("method", method))
    known, theirs, ours = set(names(chosen)), {}, {}
    for name, value in values.items():
        if name in vars(args) or name.startswith(("wandb", "_wandb")):  # what a sweep of W&B puts beside the values
            theirs[name] = value
        elif name != "method":
            ours[name if name in known else name.removeprefix("method.")] = value
    return theirs, _changed(chosen, ours, list(vars(args)))


def names(part: _Part, prefix: str = "") -> Iterator[str]:
    """The fields of a method or a schedule, and of those inside it, with dots.

    >>> from hf_sharp import GAM, SAM
    >>> list(names(GAM(base=SAM())))
    ['rho', 'alpha', 'hvp', 'step', 'base', 'base.rho', 'base.p']
    """
    for f in fields(part):
        yield prefix + f.name
        inner = vars(part)[f.name]
        if isinstance(inner, _Part):
            yield from names(inner, f"{prefix}{f.name}.")


def _changed(part: _Part, changes: Mapping[str, Any], others: Sequence[str] = ()) -> Any:
    """The same with other values; all fields of a part at once, since their rules may be about each other.

    Args:
        part: a method or a schedule.
        changes: values by names with dots.
        others: what else a name could have been, for the error.
    """
    own = {f.name: changes[f.name] for f in fields(part) if f.name in changes}
    part = with_fields(part, own) if own else part
    known = set(names(part))
    for name in changes:
        if name not in known:
            raise ValueError(_unknown(name, part, [*sorted(known), *others]))
    inner = dict.fromkeys(name.split(".")[0] for name in changes if "." in name)
    inside = {
        name: _changed(vars(part)[name], {n.partition(".")[2]: v for n, v in changes.items() if n.startswith(f"{name}.")})
        for name in inner
    }
    return with_fields(part, inside) if inside else part


def _unknown(name: str, part: _Part, choices: Sequence[str]) -> str:
    near = get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"What hp_space returns must be named like a training argument or a field of the method, got {name!r}.{hint} "
        f"{type(part).__name__} has {', '.join(names(part))}."
    )
