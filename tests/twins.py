"""Plain scripts and their sharp twins."""

from __future__ import annotations

import re
from difflib import SequenceMatcher


def twin(plain: str) -> str:
    """A script with the class of its Trainer changed, as a user changes it."""
    call = re.search(r"trainer = (?:\w+\.)?(\w+)\(\n", plain)
    assert call is not None
    kind = call[1]
    imported, sharp, made = f"SharpnessAware{kind}", f"SharpnessAware{kind}", ""
    if kind == "QuestionAnsweringTrainer":  # not of transformers: the mixin goes in front of it
        imported, sharp = "SharpnessAwareMixin", "SharpTrainer"
        made = f"class SharpTrainer(SharpnessAwareMixin, {kind}): ...\n\n\n"
    plain = plain.replace(call[0], f"trainer = {sharp}(\n        method=ASAM(rho=0.2),\n")
    plain = plain.replace("def main():", f"{made}def main():")
    return plain.replace("\nimport ", f"\nfrom hf_sharp import ASAM, {imported}\nimport ", 1)


def changed_lines(before: str, after: str) -> int:
    """How many lines must be changed, put in or taken out to come from one text to the other, blank ones aside.

    >>> changed_lines("import a\\nx = a.f(1)\\n", "import a\\nimport b\\nx = b.f(1)\\n")
    2
    """
    old, new = ([line for line in text.splitlines() if line.strip()] for text in (before, after))
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in blocks if kind != "equal")
