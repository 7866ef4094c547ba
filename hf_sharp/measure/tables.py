"""Results of several checkpoints as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""As `Result.to_dict` gives them, by quantity and checkpoint."""


def table(found: Results) -> str:
    """Markdown with one row per value and one column per checkpoint; standard errors behind +-."""
    names = list(next(iter(found.values())))
    lines = ["| quantity | value | " + " | ".join(names) + " |", "| --- | --- |" + " ---: |" * len(names)]
    for label, results in found.items():
        for value in {value: None for result in results.values() for value in result["values"]} or [label]:
            cells = [_cell(results[name], value) for name in names]
            lines.append(f"| {label} | {value} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(result: Mapping[str, Any], value: str) -> str:
    number, error = result["values"].get(value, "none"), result["standard_errors"].get(value)
    text = number if isinstance(number, str) else f"{number:.4g}"
    return text if error is None or isinstance(error, str) else f"{text} +- {error:.2g}"


def missing(splits: Mapping[str, Results]) -> list[str]:
    """What was not found and why, one line per reason."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for split, by_label in splits.items():
        for label, results in by_label.items():
            for name, result in results.items():
                if "undefined" in result["about"]:
                    reasons.setdefault((name, split, result["about"]["undefined"]), []).append(label)
    return [f"{', '.join(labels)} of {name} on {split}: {why}" for (name, split, why), labels in reasons.items()]
