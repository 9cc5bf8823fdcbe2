"""Intervals: Wilson for one proportion, bootstrap by patient for every metric.

The metrics are the scalars of metrics.json and those of each class, by their dotted names
(`per_class.<name>.recall`). How whole patients are drawn is in `resampling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from leukoscope.errors import InputError, some
from leukoscope.evaluate import resampling
from leukoscope.evaluate.metrics import PROPORTIONS, Predictions, class_metric
from leukoscope.evaluate.resampling import SLOW_RESAMPLES, Groups, Interval, unit_keys

__all__ = ["FEW_GROUPS", "SLOW_RESAMPLES", "Groups", "Interval", "bootstrap", "describe",
           "difference", "mean_interval", "mean_sd", "unit_keys", "wilson"]  # fmt: skip

FEW_GROUPS = 10


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), in [0, 1]; n of at least 1."""
    from scipy.stats import binomtest

    if not 0 <= successes <= n or n < 1:
        raise InputError(
            f"Got {successes} of {n}; allowed: 0 to n of at least one",
            fix="Check the counts.",
            field="successes",
        )
    test = binomtest(int(successes), int(n))
    low, high = test.proportion_ci(resampling.checked(level), method="wilson")
    return float(low), float(high)


def mean_sd(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """{mean, sd, n} across folds or seeds; sd with n - 1, None below two; None values left out."""
    array = np.array([value for value in values if value is not None], dtype=np.float64)
    return {
        "mean": float(array.mean()) if len(array) else None,
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "n": len(array),
    }


def mean_interval(
    values: np.ndarray,
    groups: Groups | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval | None]:
    """Interval of the mean of each column of (n, m) values, resampling whole groups.

    groups: as of `bootstrap`. None for a column where the data hold no interval.
    """
    units = resampling.unit_numbers(groups, len(values))
    count = _count(units)
    with_n = np.column_stack([values, np.ones(len(values))])
    sums = resampling.sums_by_unit(with_n, units, count)
    drawn = np.concatenate([w @ sums for w in resampling.draws(count, resamples, 1000, seed)])
    means = drawn[:, :-1] / drawn[:, -1:]
    return [
        resampling.expanded(column, float(value), count, level)
        for column, value in zip(means.T, np.mean(values, axis=0), strict=True)
    ]


def bootstrap(
    predictions: Predictions,
    groups: Groups | None = None,
    *,
    metrics: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval | None]:
    """Interval of every metric, resampling whole groups (patients).

    groups: (n,) the patient of each image, None where unknown (its own group); without groups
    every image is one. metrics: names, default all that these predictions define, of each class
    too.
    Returns {name: (low, high)}, by expanded percentiles (Hesterberg 2015), which widen plain ones
    for few groups; for a class's metric those groups count that have such images. Resamples that
    don't define a metric are left out of its interval. None where the data hold no interval: one
    group only, or every resample gives the same value (a proportion of 0 or 1 then gets Wilson's,
    over groups). `describe` puts that into words.
    """
    units = resampling.unit_numbers(groups, len(predictions))
    found = resampling.measured(predictions, metrics)
    values = {name: value for name, value in found.items() if value is not None}
    count = _count(units)
    if count < 2:
        return dict.fromkeys(values)
    drawn = resampling.resampled([(predictions, units)], count, list(values), resamples, seed)[0]
    independent = resampling.contributors(predictions, units, count, list(values))
    result: dict[str, Interval | None] = {}
    for name, value in values.items():
        n = independent[name]
        result[name] = resampling.expanded(drawn[name], value, n, level)
        if result[name] is None and value in (0.0, 1.0) and n > 1 and _is_proportion(name):
            result[name] = wilson(round(value * n), n, level)
    return result


def describe(
    predictions: Predictions,
    groups: Groups | None = None,
    found: Mapping[str, Interval | None] | None = None,
) -> dict[str, Any]:
    """{unit: patient|image, groups: count, note: str|None}: what must stand beside the intervals.

    found: the result of `bootstrap`, so that missing intervals are named.
    """
    units = resampling.unit_numbers(groups, len(predictions))
    count = _count(units)
    unknown = len(units) if groups is None else sum(map(resampling.is_missing, groups))
    notes = []
    if unknown == len(units):
        notes.append(
            "Resampled by image because patients are unknown: if patients gave several images, "
            "the true intervals are wider."
        )
    elif unknown:
        notes.append(f"{unknown} images without a patient count as patients of their own.")
    slow = [name for name in found or {} if not resampling.is_additive(name)]
    if slow:
        overall = [name for name in slow if not name.startswith("per_class.")]
        by_class = ["roc_auc by class"] if len(overall) < len(slow) else []
        named = some([*overall, *by_class], 15)
        notes.append(f"{named}: from at most {SLOW_RESAMPLES} resamples.")
    if count < FEW_GROUPS:
        notes.append(f"Unreliable: only {count} independent groups (at least {FEW_GROUPS} needed).")
    else:
        notes += _rare_classes(predictions, units, count, found or {})
    missing = [name for name, interval in (found or {}).items() if interval is None]
    if missing:
        why = "one group only" if count < 2 else "every resample gives the same value"
        if count > 1 and any(name.startswith("per_class.") for name in missing):
            why += ", or one group only speaks to it"
        notes.append(f"No interval for {some(missing, 15)}: {why}.")
    return {
        "unit": "image" if unknown == len(units) else "patient",
        "groups": count,
        "note": " ".join(notes) or None,
    }


def difference(
    a: Predictions,
    b: Predictions,
    groups: Groups | None = None,
    *,
    images: Sequence[str] | None = None,
    images_b: Sequence[str] | None = None,
    groups_b: Groups | None = None,
    metrics: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, float | None]]:
    """{metric: {value, low, high}} of a minus b, resampling the patients of both together.

    images: (n,) ids of a's images, images_b of b's; default: both sets are row by row the same
    images. groups and groups_b likewise (groups_b defaults to groups where the images are shared).
    Each metric is taken over the model's own images; a patient drawn twice counts twice in both.
    A resample that doesn't define a metric in both is left out of its interval.
    """
    ids: Sequence[Any] = range(len(a)) if images is None else images
    ids_b: Sequence[Any] = ids if images_b is None else images_b
    if groups_b is None and images_b is None:
        groups_b = groups
    owners = _owners(a, ids, groups, "images") | _owners(b, ids_b, groups_b, "images_b")
    everyone = [*ids, *ids_b]
    keys = unit_keys([owners.get(image) for image in everyone], everyone)
    units = np.unique(np.array(keys), return_inverse=True)[1]
    count = _count(units)
    values_a, values_b = resampling.measured(a, metrics), resampling.measured(b, metrics)
    gaps = {
        name: x - y
        for name, x in values_a.items()
        if x is not None and (y := values_b.get(name)) is not None
    }
    both = [(a, units[: len(a)]), (b, units[len(a) :])]
    drawn = resampling.resampled(both, count, list(gaps), resamples, seed) if count > 1 else None
    independent = [resampling.contributors(*source, count, list(gaps)) for source in both]
    result: dict[str, dict[str, float | None]] = {}
    for name in values_a:
        interval, agree = None, gaps.get(name) == 0
        if drawn and name in gaps:
            fewer = min(counts[name] for counts in independent)
            shifts = drawn[0][name] - drawn[1][name]
            interval = resampling.expanded(shifts, gaps[name], fewer, level)
            agree = agree and not np.nan_to_num(shifts).any()
        # Models that agree in every resample differ by nothing; any other constant says no more.
        low, high = interval or ((0.0, 0.0) if agree else (None, None))
        result[name] = {"value": gaps.get(name), "low": low, "high": high}
    return result


def _count(units: np.ndarray) -> int:
    return int(units.max()) + 1


def _is_proportion(name: str) -> bool:
    inner = name.startswith("per_class.") and name.rpartition(".")[2] in PROPORTIONS
    return inner or name in ("accuracy", "micro_f1")


def _rare_classes(
    predictions: Predictions, units: np.ndarray, count: int, found: Mapping[str, Any]
) -> list[str]:
    """A sentence on the classes that too few groups have images of."""
    names = {class_metric(name, "recall"): name for name in predictions.classes}
    known = [name for name in names if name in found]
    independent = resampling.contributors(predictions, units, count, known)
    rare = [names[name] for name in known if independent[name] < FEW_GROUPS]
    if not rare:
        return []
    return [
        f"Intervals of {some(rare, 15)} are unreliable: fewer than {FEW_GROUPS} independent "
        "groups have such images."
    ]


def _owners(
    predictions: Predictions, ids: Sequence[Any], groups: Groups | None, field: str
) -> dict[Any, Any]:
    """The known patient of each image; InputError unless every image is named once."""
    if len(ids) != len(predictions) or len(set(ids)) != len(ids):
        raise InputError(
            f"Got {len(ids)} image ids, {len(set(ids))} of them different, "
            f"for {len(predictions)} predictions",
            fix="Name every image once; models on different images need a list each.",
            field=field,
        )
    if groups is None:
        return {}
    resampling.same_count(groups, ids)
    pairs = zip(ids, groups, strict=True)
    return {image: group for image, group in pairs if not resampling.is_missing(group)}
