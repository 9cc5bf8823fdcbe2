"""Ablations: what each factor adds, step by step or as a factorial design. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from leukoscope.evaluate import intervals
from leukoscope.evaluate.metrics import metrics
from leukoscope.recipes import judgement
from leukoscope.recipes.published import COLUMNS, Estimate, Evidence, absent, claimed
from leukoscope.recipes.schema import PROTOCOLS

Contrast = Callable[[str, Sequence[str], Sequence[str], str], Estimate]
"""(protocol, arms, arms, metric) -> the one minus the other with its interval."""


def fill(
    ablation: Mapping[str, Any],
    tables: Sequence[Mapping[str, Any]],
    evidence: Evidence,
    contrast: Contrast,
) -> dict[str, Any]:
    """An ablation with what was measured: {kind, metric, rows, effects}.

    rows: those of a published table with the arm's `factors`. effects: {effect, published_figure,
    published_protocol, clean}; of a cumulative ablation each arm minus the one before it, with
    McNemar's test; of a factorial one the main effects and interactions, see `factorial`.
    """
    metric, arms = ablation["metric"], ablation["arms"]
    stated = _stated(tables, metric, arms)
    rows = [
        {**evidence.row(arm, metric, stated[arm]), "factors": list(factors)}
        for arm, factors in arms.items()
    ]
    made = _steps if ablation["kind"] == "cumulative" else _designed
    return {
        "kind": ablation["kind"],
        "metric": metric,
        "rows": rows,
        "effects": made(arms, metric, rows, evidence, contrast),
    }


def _stated(
    tables: Sequence[Mapping[str, Any]], metric: str, arms: Iterable[str]
) -> dict[str, float | None]:
    """The paper's figure by arm. One arm may stand in two tables with two figures: the table that
    states the most of these arms is the study's own."""
    counts = [sum(metric in table["figures"].get(arm, {}) for arm in arms) for table in tables]
    own = [tables[counts.index(max(counts))]] if counts else []
    return {arm: claimed(own, arm, metric) for arm in arms}


def _steps(
    arms: Mapping[str, Sequence[str]],
    metric: str,
    rows: Sequence[Mapping[str, Any]],
    evidence: Evidence,
    contrast: Contrast,
) -> list[dict[str, Any]]:
    found = []
    for (before, old), (arm, new) in itertools.pairwise(arms.items()):
        added = [factor for factor in new if factor not in old] or [arm]
        step: dict[str, Any] = {
            "effect": f"+ {' + '.join(added)}",
            "from": before,
            "to": arm,
            "published_figure": _arithmetic(rows, [arm], [before]),
        }
        for protocol in PROTOCOLS:
            pair = evidence.pair(arm, before, protocol)
            gain = _gain(evidence, protocol, [arm], [before], metric, contrast)
            step[COLUMNS[protocol]] = gain
            if not isinstance(pair, str):
                step[COLUMNS[protocol]] = gain | {"mcnemar": pair["mcnemar"]}
        found.append(step)
    return found


def _designed(
    arms: Mapping[str, Sequence[str]],
    metric: str,
    rows: Sequence[Mapping[str, Any]],
    evidence: Evidence,
    contrast: Contrast,
) -> list[dict[str, Any]]:
    found = []
    for factors, plus, minus in factorial(arms):
        # A mean over the levels of the other factors: with each further factor of an interaction
        # half as many pairs of differences stand on either side.
        scale = 2.0 ** (len(factors) - 1)
        effect: dict[str, Any] = {"effect": " × ".join(factors)}
        figure = _arithmetic(rows, plus, minus)
        effect["published_figure"] = None if figure is None else scale * figure
        for protocol in PROTOCOLS:
            gain = _gain(evidence, protocol, plus, minus, metric, contrast)
            ends = {k: gain[k] for k in ("value", "low", "high")}
            effect[COLUMNS[protocol]] = gain | {
                k: None if v is None else scale * v for k, v in ends.items()
            }
        found.append(effect)
    return found


def factorial(
    arms: Mapping[str, Sequence[str]],
) -> list[tuple[tuple[str, ...], list[str], list[str]]]:
    """(factors, arms counted positive, arms counted negative) of each effect of a 2^k design.

    Main effects first: mean over the other factors' levels of (on minus off). An interaction of
    two is how much the one's effect grows when the other is on: (both - b) - (a - neither).
    Empty where the arms are not each combination of the factors once.
    """
    factors = list(dict.fromkeys(factor for own in arms.values() for factor in own))
    cells = {frozenset(own): arm for arm, own in arms.items()}
    if len(cells) != len(arms) or len(arms) != 2 ** len(factors):
        return []
    effects = []
    for size in range(1, len(factors) + 1):
        for chosen in itertools.combinations(factors, size):
            sides: tuple[list[str], list[str]] = ([], [])
            for own, arm in cells.items():
                sides[len(set(chosen) - own) % 2].append(arm)
            effects.append((chosen, *sides))
    return effects


def _arithmetic(
    rows: Sequence[Mapping[str, Any]], plus: Sequence[str], minus: Sequence[str]
) -> float | None:
    """Mean of the paper's figures for some arms minus that for others, if it states them all."""
    stated = {row["arm"]: row["published_figure"] for row in rows}
    if any(stated[arm] is None for arm in [*plus, *minus]):
        return None
    first, second = (sum(stated[arm] for arm in side) / len(side) for side in (plus, minus))
    return float(first - second)


def _gain(
    evidence: Evidence,
    protocol: str,
    plus: Sequence[str],
    minus: Sequence[str],
    metric: str,
    contrast: Contrast,
) -> Estimate:
    """The measured difference: paired on the scored images where it is one of their metrics."""
    ends = [[evidence.estimate(arm, protocol, metric) for arm in side] for side in (plus, minus)]
    for arm, end in zip([*plus, *minus], itertools.chain(*ends), strict=True):
        if end["value"] is None:
            return absent(f"{arm}: {end['why']}")
    if metric in metrics:
        return contrast(protocol, plus, minus, metric)
    first, second = (sum(end["value"] for end in side) / len(side) for side in ends)
    return {"value": first - second, "low": None, "high": None}


def paired(plus: Sequence[Path], minus: Sequence[Path], metric: str) -> Estimate:
    """Runs `plus` minus as many runs `minus` on the images that all of them scored.

    The answers on either side are pooled, and patients (where unknown, images) resampled with the
    answers of all runs together. For a mean over images, such as accuracy, pooling gives the mean
    over runs. Raises InputError where they share no image.
    """
    found = judgement.align([*plus, *minus])
    frames = list(found.frames.values())
    sides = [
        judgement.scored(pd.concat(part), found.classes)
        for part in (frames[: len(plus)], frames[len(plus) :])
    ]
    units = found.units * len(plus)
    return dict(intervals.difference(sides[0], sides[1], units, metrics=[metric])[metric])
