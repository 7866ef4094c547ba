"""Checks of hyper-parameters; each error names the rule, the value and a fix."""

from __future__ import annotations

import math


def at_least(low: float, name: str, value: object, *, or_else: str = "", example: str = "0.05") -> None:
    """Raises ValueError unless ``value`` is a finite number >= ``low``."""
    if _finite(f"must be a finite number >= {low}{or_else}", name, value, example) < low:
        raise ValueError(f"{name} must be >= {low}, got {value!r}. Pass e.g. {name}={example}.")


def above(low: float, name: str, value: object, *, example: str) -> None:
    """Raises ValueError unless ``value`` is a finite number > ``low``."""
    if _finite(f"must be a finite number > {low}", name, value, example) <= low:
        raise ValueError(f"{name} must be > {low}, got {value!r}. Pass e.g. {name}={example}.")


def between(low: float, high: float, name: str, value: object, *, example: str) -> None:
    """Raises ValueError unless ``value`` is a number with ``low <= value <= high``; ``high`` may be infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high}, got {value!r}. Pass e.g. {name}={example}.")


def whole(low: int, name: str, value: object) -> None:
    """Raises ValueError unless ``value`` is a whole number >= ``low``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}. Pass e.g. {name}={max(low, 2)}.")


def one_of(choices: tuple[str, ...], name: str, value: object) -> None:
    """Raises ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {listed}, got {value!r}. Pass e.g. {name}={choices[0]!r}.")


def flag(name: str, value: object) -> None:
    """Raises ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}. Pass e.g. {name}=True.")


def function(name: str, value: object, *, example: str) -> None:
    """Raises ValueError unless ``value`` can be called."""
    if not callable(value):
        raise ValueError(f"{name} must be a function, got {type(value).__name__}. Pass e.g. {example}.")


def instance(kind: type, name: str, value: object, *, example: str) -> None:
    """Raises ValueError unless ``value`` is of the kind."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a method, got {value!r}. Pass e.g. {name}={example}.")


def _finite(rule: str, name: str, value: object, example: str) -> float:
    if isinstance(value, str):
        raise ValueError(
            f"{name} {rule}, got the string {value!r}. "
            f"Pass e.g. {name}={example}; YAML reads 5e-2 as a string and 5.0e-2 as a number."
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} {rule}, got {value!r}. Pass e.g. {name}={example}.")
    return value
