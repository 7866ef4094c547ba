"""Methods written as names, dicts and YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from hf_sharp.descriptions import built, described, looked_up
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
    read = described("method", given, {"name": "sam", "rho": 0.05})
    return built(looked_up("method", METHODS, read["name"]), read, value_of=_value)


def with_fields(part: AbstractMethod | AbstractSchedule, values: Mapping[str, Any]) -> Any:
    """The same method or schedule with other values in some of its fields, written as `parse_method` reads them.

    Raises:
        ValueError: a field is unknown, or a value breaks its rule.
    """
    return built(type(part), {**vars(part), **values}, "", _value)


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


def _value(f: Field, value: Any) -> Any:
    """A field's value, with methods and schedules in place of their descriptions."""
    if isinstance(value, Mapping) and "schedule" in value:
        return built(looked_up("schedule", SCHEDULES, value["schedule"]), value, "schedule", _value)
    takes_method = "AbstractMethod" in str(f.type)
    if takes_method and isinstance(value, str | Mapping):
        return parse_method(value)
    return value
