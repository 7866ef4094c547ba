"""Method cards: what the class docstrings of the methods say, taken apart."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, dataclass, fields

from hf_sharp.methods import METHODS, AbstractMethod, AbstractSchedule

_SECTION = re.compile(r"^(Args|Raises|References):$", re.MULTILINE)
_ARGUMENT = re.compile(r"^    (\w[\w, *]*): ", re.MULTILINE)


@dataclass(frozen=True)
class CardField:
    """One hyper-parameter.

    Attributes:
        name: as it is written in code, flags and YAML.
        default: its default as text; None where one must be given.
        text: what it means, its range and suggested values.
    """

    name: str
    default: str | None
    text: str


@dataclass(frozen=True)
class Card:
    """What a method's docstring says, in parts; a part that the docstring does not have is empty.

    Texts are one line per paragraph, paragraphs are parted by an empty line, formulas keep their lines.

    Attributes:
        name: the registered name, as in ``--sharpness asam``; of a class that is not registered, the class's own.
        title: the name of the class.
        summary: the first sentence or sentences: what it is.
        formula: how the direction is computed, in reStructuredText literals.
        cost: passes per step and memory.
        caveats: everything else between the formula and the fields.
        fields: the hyper-parameters, in the order of the constructor.
        references: the paper or papers.
    """

    name: str
    title: str
    summary: str
    formula: str
    cost: str
    caveats: str
    fields: tuple[CardField, ...]
    references: str


def card(kind: type[AbstractMethod] | type[AbstractSchedule]) -> Card:
    """The card of a method's or a schedule's class, read from its docstring.

    >>> card(METHODS["gsam"]).references
    'Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022, Algorithm 1.'
    >>> [(field.name, field.default) for field in card(METHODS["lpf"]).fields]
    [('gamma', None), ('draws', '8')]
    """
    text = inspect.cleandoc(kind.__doc__ or "")
    body, *sections = _SECTION.split(text)
    section = dict(zip(sections[::2], sections[1::2], strict=True))
    summary, *rest = _paragraphs(body)
    formula = [paragraph for paragraph in rest if _is_formula(paragraph)]
    cost = [paragraph for paragraph in rest if paragraph.startswith("Cost: ")]
    caveats = [paragraph for paragraph in rest if paragraph not in formula + cost]
    described = _arguments(section.get("Args", ""))
    return Card(
        name=next((name for name, known in METHODS.items() if known is kind), kind.__name__),
        title=kind.__name__,
        summary=summary,
        formula="\n\n".join(formula),
        cost="\n\n".join(paragraph.removeprefix("Cost: ") for paragraph in cost),
        caveats="\n\n".join(caveats),
        fields=tuple(CardField(f.name, _default(f), described.get(f.name, "")) for f in fields(kind)),
        references=" ".join(section.get("References", "").split()),
    )


def _paragraphs(text: str) -> list[str]:
    """The paragraphs, each on one line; one that ends in ``::`` keeps the indented block after it, line by line."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith(" ") and out:
            out[-1] += "\n\n" + block
        else:
            out.append(" ".join(block.split()))
    return out


def _is_formula(paragraph: str) -> bool:
    """Whether it opens with a formula or has a block of them."""
    return paragraph.startswith("``") or "::\n" in paragraph


def _arguments(section: str) -> dict[str, str]:
    """The text of each argument by its name."""
    _, *found = _ARGUMENT.split(section)
    texts = zip(found[::2], found[1::2], strict=True)
    return {name.strip(): " ".join(text.split()) for names, text in texts for name in names.split(",")}


def _default(field: Field) -> str | None:
    return None if field.default is MISSING else repr(field.default)
