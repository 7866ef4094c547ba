"""Cards say what the docstrings say."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from hf_sharp import METHODS, AbstractMethod
from hf_sharp.cards import CardField, card
from hf_sharp.methods.schedules import SCHEDULES
from hf_sharp.problem import AbstractOracle
from hf_sharp.vector import Vector

_BUILT_FROM_OTHERS = {"decayed", "during", "every"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_whole_card(name: str) -> None:
    """A formula, a cost, a paper, and a text for each field; a method that wraps others names its paper where it has one."""
    found = card(METHODS[name])
    assert (found.name, found.title) == (name, METHODS[name].__name__)
    assert [field.name for field in found.fields] == [field.name for field in fields(METHODS[name])]
    assert all(field.text for field in found.fields)
    assert found.summary.endswith(".")
    if name not in _BUILT_FROM_OTHERS:
        assert found.formula
        assert found.cost
        assert "20" in found.references


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_lost(name: str) -> None:
    """Every word of the docstring is in some part, but for the headings and what is raised."""
    found = card(METHODS[name])
    parts = [found.summary, found.formula, found.cost, found.caveats, found.references]
    parts += [f"{field.name}: {field.text}" for field in found.fields]
    text, _, _ = (METHODS[name].__doc__ or "").partition("Raises:")
    words = set(text.split()) - {"Args:", "References:", "Cost:"}
    assert words <= set(" ".join(parts).split())


def test_parts_of_a_card() -> None:
    """Paragraphs are one line, blocks keep theirs."""
    sam, crsam = card(METHODS["sam"]), card(METHODS["crsam"])
    assert sam.summary == "Sharpness-aware minimization: the gradient at the worst nearby point."
    assert sam.formula.startswith("``d = g(w + e)`` with ")
    assert sam.cost.startswith("2 passes; memory for one gradient")
    assert sam.fields[1] == CardField("p", "2.0", 'the norm, from 1 to infinity (``float("inf")``; ``.inf`` in YAML).')
    assert crsam.formula.splitlines()[2].strip().startswith("d = g+ + alpha d2 + beta d1")
    assert "\n\nCaveats: alpha and beta of the two forms are not interchangeable" in crsam.caveats
    assert card(SCHEDULES["linear"]).summary.startswith("From ``start``")


@dataclass(frozen=True)
class Mine(AbstractMethod):
    """Mine."""

    rho: float

    def direction(self, f: AbstractOracle) -> Vector:
        return f().grad


def test_a_class_of_ones_own() -> None:
    """It needs no registration and no sections."""
    found = card(Mine)
    assert (found.name, found.title, found.summary, found.fields) == ("Mine", "Mine", "Mine.", (CardField("rho", None, ""),))
    assert (found.formula, found.cost, found.caveats, found.references) == ("", "", "", "")
