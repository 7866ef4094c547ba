"""Methods written as names, dicts and YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any

import yaml

from hf_sharp.methods import METHODS, AbstractMethod, AbstractSchedule
from hf_sharp.methods.schedules import SCHEDULES


def parse_method(given: AbstractMethod | str | Mapping[str, Any]) -> AbstractMethod:
    """The method that is meant.

    Args:
        given: a method; a name; a mapping with ``name`` and the method's fields; or either as YAML. A field that takes a
            method is written the same way, one that takes a schedule as a mapping with ``schedule`` and its fields.

    Raises:
        ValueError: the name or a field is unknown, a field without default is missing, or a value breaks its rule.

    >>> parse_method("{name: gsam, alpha: 0.2, rho: {schedule: linear, start: 0.1, stop: 0.02}}")
    GSAM(rho=Linear(start=0.1, stop=0.02), alpha=0.2, rho_min=None)
    """
    if isinstance(given, AbstractMethod):
        return given
    read = _yaml(given) if isinstance(given, str) else given
    if isinstance(read, str):
        read = {"name": read}
    if not isinstance(read, Mapping) or "name" not in read:
        raise ValueError(
            f"A method must be a name, a mapping with 'name' or a method object, got {given!r}. "
            "Write e.g. {'name': 'sam', 'rho': 0.05}."
        )
    kind = _looked_up("method", METHODS, read["name"])
    return _built(kind, {key: value for key, value in read.items() if key != "name"})


def method_to_dict(method: AbstractMethod) -> dict[str, Any]:
    """The mapping that `parse_method` reads back as the same method; its values are plain, for JSON and YAML.

    >>> method_to_dict(parse_method("{name: every, k: 2, method: sam}"))["method"]
    {'name': 'sam', 'rho': 0.05, 'p': 2.0}
    """
    return _described(method)


def _described(value: Any) -> Any:
    if isinstance(value, AbstractMethod):
        return {"name": _name_of(METHODS, value)} | {k: _described(v) for k, v in vars(value).items()}
    if isinstance(value, AbstractSchedule):
        return {"schedule": _name_of(SCHEDULES, value)} | {k: _described(v) for k, v in vars(value).items()}
    return value


def _name_of(table: Mapping[str, type], value: object) -> str:
    """The registered name, or the class's own for a user's class."""
    return next((name for name, kind in table.items() if type(value) is kind), type(value).__name__)


def _parse_schedule(given: Mapping[str, Any]) -> AbstractSchedule:
    kind = _looked_up("schedule", SCHEDULES, given["schedule"])
    return _built(kind, {key: value for key, value in given.items() if key != "schedule"})


def _looked_up(what: str, table: Mapping[str, type], name: object) -> Any:
    key = str(name).lower().replace("-", "").replace("_", "")
    found = {k.replace("_", ""): v for k, v in table.items()}
    if key in found:
        return found[key]
    near = get_close_matches(str(name).lower(), table, n=5)
    swapped = [k for k in near if sorted(k) == sorted(str(name).lower())]  # two letters changed places
    hint = f" Did you mean {(swapped + near)[0]!r}?" if near else ""
    raise ValueError(f"Unknown {what} {name!r}.{hint} Choose from {', '.join(sorted(table))}.")


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    known = {f.name: f for f in fields(kind)}
    listed = ", ".join(known)
    for name in values:
        if name not in known:
            raise ValueError(f"{kind.__name__} has no field {name!r}. Its fields are {listed}.")
    for name, f in known.items():
        if name not in values and f.default is MISSING:
            raise ValueError(f"{kind.__name__} needs the field {name!r}, which has no default. Its fields are {listed}.")
    return kind(**{name: _value(known[name], value) for name, value in values.items()})


def _value(f: Field, value: Any) -> Any:
    """A field's value, with methods and schedules in place of their descriptions."""
    if isinstance(value, Mapping) and "schedule" in value:
        return _parse_schedule(value)
    takes_method = "AbstractMethod" in str(f.type)
    if takes_method and isinstance(value, str | Mapping):
        return parse_method(value)
    return value


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"A method written as text must be YAML, got {text!r}. {error}") from error
