"""The method on the model card, and what is left of the work where the Hub cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from hf_sharp.cards import card
from hf_sharp.methods import AbstractMethod
from hf_sharp.parameters import Perturb

_HEADING = "## Sharpness-aware training"
_TAG = "sharpness-aware-training"
UNREACHABLE = (ConnectionError, HTTPError)
"""What the Hub's client raises without a network, or in its offline mode, and the answers of the Hub (`HfHubHTTPError`)."""


def add_to_model_card(folder: str | Path, method: AbstractMethod, perturb_over: str, perturb: Perturb) -> None:
    """Name the method, its fields and its papers at the end of a folder's README.md, where there is one."""
    path = Path(folder) / "README.md"
    if not path.is_file():
        return
    model_card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    tags = model_card.data.get("tags") or []
    model_card.data["tags"] = [*tags, *([] if _TAG in tags else [_TAG])]
    text, _, _ = model_card.text.partition(_HEADING)
    model_card.text = f"{text.rstrip()}\n\n{section(method, perturb_over, perturb)}"
    model_card.save(path)


def section(method: AbstractMethod, perturb_over: str, perturb: Perturb) -> str:
    """The method in Markdown: what it is, what its fields were, where it was published; parts of it likewise."""
    lines = [
        f"{_HEADING}\n",
        f"The optimizer followed the direction of `{method!r}` instead of the gradient; "
        f"`perturb_over={perturb_over!r}`, `perturb={perturb!r}`. Trained with `hf_sharp`.\n",
    ]
    for part in dict.fromkeys(method.parts()):
        found = card(type(part))
        lines += [f"**{found.title}**: {found.summary}\n", "| field | value | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{f.name}` | `{vars(part)[f.name]!r}` | {f.text.replace('|', chr(92) + '|')} |" for f in found.fields]
        lines += ["", *([f"Reference: {found.references}\n"] if found.references else [])]
    return "\n".join(lines)


@contextmanager
def unreachable(left: str) -> Iterator[None]:
    """Raises ConnectionError that says what is left, where the Hub is asked for inside and cannot be reached.

    An answer of the Hub, such as a refused token, goes through as it is.

    Args:
        left: what of the work is safe, and how to push it later.
    """
    try:
        yield
    except HfHubHTTPError:
        raise
    except UNREACHABLE as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConnectionError(f"Pushing needs the Hub, which cannot be reached ({reason}). {left}") from error
