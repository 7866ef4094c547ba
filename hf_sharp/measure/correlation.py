"""How well a sharpness measure ranks models by their generalization gap: Kwon et al. (2021), Table 1 and Figure 2."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from hf_sharp.measure.result import Found


@dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes:
        settings: its hyper-parameters by name.
        gap: its generalization gap.
        measures: its sharpness measures by name.
    """

    settings: Mapping[str, Any]
    gap: float
    measures: Mapping[str, float]


def read_runs(file: Path) -> list[Run]:
    """The runs in a JSON file: a list of objects with ``settings``, ``gap`` and ``measures``.

    Raises:
        ValueError: it holds no such list.
    """
    try:
        return [
            Run(dict(entry["settings"]), float(entry["gap"]), {name: float(x) for name, x in entry["measures"].items()})
            for entry in [*json.loads(file.read_text(encoding="utf-8"))] or [None]
        ]
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Runs must be a JSON list of objects with settings, gap and measures, got {str(file)!r} ({error}). "
            'Write e.g. [{"settings": {"lr": 0.1}, "gap": 0.3, "measures": {"trace": 812.0}}, ...].'
        ) from error


def rank_correlation(runs: Sequence[Run], measure: str, hyperparameters: Sequence[str] | None = None) -> Found:
    """Kendall's tau of a measure against the gap, and the granulated coefficients.

    ``psi_i`` is the mean of tau over all groups of runs that differ in hyper-parameter i alone, and ``psi`` the mean of the
    ``psi_i`` (Jiang et al., Fantastic Generalization Measures, ICLR 2020, eq. 5 and 6). A group in which either side is
    constant ranks nothing: its tau counts as 0. Hyper-parameters that are not asked about (a seed) are held fixed.

    Args:
        runs: a grid of them.
        measure: which of their measures.
        hyperparameters: which to score; None: all that the first run has.

    Returns:
        Values ``tau``, ``p_value`` (of tau being 0), ``psi_<hyper-parameter>`` and ``psi``.

    Raises:
        ValueError: there are fewer than 2 runs, one lacks the measure or has one that is not finite, their settings have
            different names, or no two runs differ in a hyper-parameter alone.
    """
    from scipy.stats import kendalltau

    if len(runs) < 2:
        raise ValueError(f"A correlation needs at least 2 runs, got {len(runs)}. Train a grid of hyper-parameters.")
    _check_runs(runs, measure)
    whole = kendalltau([run.measures[measure] for run in runs], [run.gap for run in runs])
    values = {"tau": float(whole.statistic), "p_value": float(whole.pvalue)}
    scores = []
    for name in hyperparameters or list(runs[0].settings):
        taus = [_tau(group, measure) for group in _groups(runs, name)]
        if not taus:
            raise ValueError(
                f"Some runs must differ in {name!r} alone, got none among {len(runs)}. Train a full grid, or leave it out."
            )
        scores.append(mean(taus))
        values[f"psi_{name}"] = scores[-1]
    arrays = {"measure": [run.measures[measure] for run in runs], "gap": [run.gap for run in runs]}
    return Found(values | {"psi": mean(scores)}, {}, arrays)


def _check_runs(runs: Sequence[Run], measure: str) -> None:
    known = set(runs[0].settings)
    for run in runs:
        if measure not in run.measures:
            raise ValueError(
                f"Every run must have the measure {measure!r}, got one with {', '.join(run.measures)}. Measure it."
            )
        for name, number in ((measure, run.measures[measure]), ("gap", run.gap)):
            if not math.isfinite(number):
                raise ValueError(
                    f"{name!r} must be a finite number in every run, got {number} with {dict(run.settings)}. "
                    "Leave that run out."
                )
        if set(run.settings) != known:
            other = ", ".join(sorted(set(run.settings) ^ known))
            raise ValueError(f"All runs must have the same settings, got some without {other}. Name it in all, or in none.")


def _groups(runs: Sequence[Run], name: str) -> list[list[Run]]:
    """Runs that share all settings but one, where there are at least two of them."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:  # by what the settings look like, since a list has no hash
        found[repr([(key, value) for key, value in sorted(run.settings.items()) if key != name])].append(run)
    return [group for group in found.values() if len({repr(run.settings[name]) for run in group}) > 1]


def _tau(runs: Sequence[Run], measure: str) -> float:
    from scipy.stats import kendalltau

    tau = float(kendalltau([run.measures[measure] for run in runs], [run.gap for run in runs]).statistic)
    return tau if tau == tau else 0.0
