"""The methods on the command line: ``python -m hf_sharp`` lists them, ``... explain gam`` prints the card of one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from textwrap import fill, indent

from hf_sharp.cards import Card, card
from hf_sharp.descriptions import looked_up
from hf_sharp.methods import METHODS, AbstractMethod, AbstractSchedule
from hf_sharp.methods.schedules import SCHEDULES

WIDTH = 80
KINDS: dict[str, type[AbstractMethod] | type[AbstractSchedule]] = {**METHODS, **SCHEDULES}


def listing() -> str:
    """All methods, what goes around one, and the schedules, with their fields, defaults and cost."""
    cards = {name: card(kind) for name, kind in METHODS.items()}
    around = [name for name, one in cards.items() if any(field.name == "method" for field in one.fields)]
    parts = [
        "Methods: method=ASAM(rho=0.2), --sharpness asam --rho 0.2, or {name: asam, rho: 0.2} in YAML",
        *(_entry(name, one) for name, one in cards.items() if name not in around),
        "Around a method: Every(10, GAM()), or {name: every, k: 10, method: gam} in YAML",
        *(_entry(name, cards[name]) for name in around),
        "Schedules for radii and gamma: rho=Linear(0.1, 0.02), or {schedule: linear, start: 0.1, stop: 0.02} in YAML",
        *(_entry(name, card(kind)) for name, kind in SCHEDULES.items()),
        "One of them in full: python -m hf_sharp explain NAME",
    ]
    return "\n\n".join(parts)


def explained(name: str) -> str:
    """The card of a method or a schedule, wrapped for a terminal.

    Raises:
        ValueError: there is none of this name; the message has the nearest one.
    """
    kind = looked_up("method or schedule", KINDS, name)
    own = next(known for known, other in KINDS.items() if other is kind)
    return "\n\n".join(_parts(own, card(kind)))


def _parts(name: str, one: Card) -> Iterator[str]:
    yield _wrapped(f"{name}: {_signature(one)}", "", "    ")
    paragraphs = [one.summary, *one.formula.split("\n\n"), f"Cost: {one.cost}" if one.cost else ""]
    for paragraph in [*paragraphs, *one.caveats.split("\n\n")]:
        if paragraph:
            yield _wrapped(paragraph)
    yield "Fields:\n" + "\n".join(
        _wrapped(f"{field.name}{'' if field.default is None else '=' + field.default}: {field.text}", "    ", "        ")
        for field in one.fields
    )
    if one.references:
        yield "References:\n" + _wrapped(one.references, "    ")


def _entry(name: str, one: Card) -> str:
    cost = [f"Cost: {one.cost.split('. ')[0].rstrip('.')}."] if one.cost else []
    lines = [_wrapped(_signature(one), "    ", "        "), *(_wrapped(text, "    ") for text in [one.summary, *cost])]
    return "\n".join([name, *lines])


def _signature(one: Card) -> str:
    fields = (f.name if f.default is None else f"{f.name}={f.default}" for f in one.fields)
    return f"{one.title}({', '.join(fields)})"


def _wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    """A paragraph without the marks of code; a block of formulas keeps its lines."""
    plain = text.replace("`", "")
    if plain.startswith(" "):
        return indent(plain, first)
    return fill(
        plain,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def main(given: Sequence[str] | None = None) -> None:
    """Prints what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m hf_sharp", description="The sharpness-aware methods of hf_sharp.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    explain = commands.add_parser("explain", help="a method's formula, cost, values, caveats, fields and papers")
    explain.add_argument("name", help="of a method or a schedule, e.g. asam")
    args = parser.parse_args(given)
    if args.command is None:
        print(listing())
        return
    try:
        print(explained(args.name))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
