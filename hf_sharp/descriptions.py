"""Objects described as names, mappings and YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any

import yaml


def described(what: str, given: object, example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping with ``name`` that is meant by a name, a mapping, or either as YAML.

    Args:
        what: the kind of object, for the error.
        given: what the user wrote.
        example: a good one, for the error.

    Raises:
        ValueError: it is none of these.
    """
    read = read_yaml(given, f"A {what} written as text", str(dict(example))) if isinstance(given, str) else given
    if isinstance(read, str):
        read = {"name": read}
    if not isinstance(read, Mapping) or "name" not in read:
        raise ValueError(
            f"A {what} must be a name, a mapping with 'name' or a {what} object, got {given!r}. Write e.g. {example!r}."
        )
    return read


def looked_up(what: str, table: Mapping[str, type], name: object) -> Any:
    """The class of this name, whatever its case, hyphens and underscores.

    Raises:
        ValueError: there is none; the message has the nearest name.
    """
    key = str(name).lower().replace("-", "").replace("_", "")
    found = {k.replace("_", ""): v for k, v in table.items()}
    if key in found:
        return found[key]
    raise ValueError(f"Unknown {what} {name!r}.{_nearest(name, table)} Choose from {', '.join(sorted(table))}.")


def _nearest(name: object, names: Iterable[str]) -> str:
    """A sentence with the name that is probably meant, where there is one."""
    near = get_close_matches(str(name).lower(), list(names), n=5)
    swapped = [other for other in near if sorted(other) == sorted(str(name).lower())]  # two letters changed places
    return f" Did you mean {(swapped + near)[0]!r}?" if near else ""


def built(
    kind: type,
    described: Mapping[str, Any],
    key: str = "name",
    value_of: Callable[[Field, Any], Any] = lambda f, value: value,
) -> Any:
    """An object of a frozen dataclass, from its fields.

    Args:
        kind: the dataclass.
        described: field to value, and ``key``, which named the class.
        key: see above.
        value_of: what a field's value as written stands for.

    Raises:
        ValueError: a field is unknown or missing, or a value breaks its rule.
    """
    values = {name: value for name, value in described.items() if name != key}
    known = {f.name: f for f in fields(kind)}
    listed = ", ".join(known)
    for name in values:
        if name not in known:
            raise ValueError(f"{kind.__name__} has no field {name!r}.{_nearest(name, known)} Its fields are {listed}.")
    for name, f in known.items():
        if name not in values and f.default is MISSING:
            raise ValueError(f"{kind.__name__} needs the field {name!r}, which has no default. Its fields are {listed}.")
    return kind(**{name: value_of(known[name], value) for name, value in values.items()})


def read_yaml(text: str, what: str, example: str, where: str = "") -> Any:
    """The value of YAML or JSON.

    Args:
        text: to be read.
        what: what it is, for the error.
        example: a good one, for the error.
        where: the file, for the error; by default the text itself is shown.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter of impossible dates
        raise ValueError(
            f"{what} must be YAML, got {where or repr(text)}: {_reason(error)}. Write e.g. {example}."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return str(error).split("\n")[0]
