"""Intervals: Wilson for one proportion, bootstrap by patient for every metric.

Images of one patient resemble each other, so whole patients are resampled; an image without a
patient is a patient of its own. Metrics given by sums over images come from one matrix product of
resampling weights and sums by patient, so that 10,000 resamples of 12,184 predictions take
seconds; the area under the ROC curve from weighted midranks, on the first 2,000 of the resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pandas import isna

from leukoscope.errors import InputError, some
from leukoscope.evaluate.metrics import (
    ADDITIVE,
    Predictions,
    Undefined,
    metrics,
    scalars,
    weighted_auc,
)

FEW_GROUPS = 10
_BLOCK = 2_000_000  # weights held at a time: 16 MB, so that they stay near the processor
SLOW_RESAMPLES = 2_000
"""Resamples at most of a metric that is no function of sums, such as roc_auc_ovr."""

Interval = tuple[float, float]
Groups = Sequence[Any] | np.ndarray


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), in [0, 1]; n of at least 1."""
    from scipy.stats import binomtest

    if not 0 <= successes <= n or n < 1:
        raise InputError(
            f"Got {successes} of {n}; allowed: 0 to n of at least one",
            fix="Check the counts.",
            field="successes",
        )
    low, high = binomtest(int(successes), int(n)).proportion_ci(_checked(level), method="wilson")
    return float(low), float(high)


def mean_sd(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """{mean, sd, n} across folds or seeds; sd with n - 1, None below two; None values left out."""
    array = np.array([value for value in values if value is not None], dtype=np.float64)
    return {
        "mean": float(array.mean()) if len(array) else None,
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "n": len(array),
    }


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
    every image is one. metrics: names, default all that these predictions define.
    Returns {name: (low, high)}, by expanded percentiles (Hesterberg 2015), which widen
    plain ones for few groups. None where the data hold no interval: one group only, or
    every resample gives the same value (accuracy then gets Wilson's, over groups). `describe`
    puts that into words.
    """
    units = _units(predictions, groups)
    wanted = scalars(predictions, metrics)[0]
    measured = {name: value for name, value in wanted.items() if value is not None}
    count = _count(units)
    if count < 2:
        return dict.fromkeys(measured)
    values = _resampled([(predictions, units)], count, list(measured), resamples, seed)[0]
    found = {name: _expanded(values[name], value, count, level) for name, value in measured.items()}
    share = float(predictions.correct.mean())
    for name in ("accuracy", "micro_f1"):
        if name in found and found[name] is None and share in (0.0, 1.0):
            found[name] = wilson(round(share * count), count, level)
    return found


def describe(
    predictions: Predictions,
    groups: Groups | None = None,
    found: Mapping[str, Interval | None] | None = None,
) -> dict[str, Any]:
    """{unit: patient|image, groups: count, note: str|None}: what must stand beside the intervals.

    found: the result of `bootstrap`, so that missing intervals are named.
    """
    units = _units(predictions, groups)
    count = _count(units)
    unknown = len(units) if groups is None else sum(map(_is_missing, groups))
    notes = []
    if unknown == len(units):
        notes.append(
            "Resampled by image because patients are unknown: if patients gave several images, "
            "the true intervals are wider."
        )
    elif unknown:
        notes.append(f"{unknown} images without a patient count as patients of their own.")
    slow = [name for name in found or {} if name not in ADDITIVE]
    if slow:
        notes.append(f"{some(slow, 15)}: from at most {SLOW_RESAMPLES} resamples.")
    if count < FEW_GROUPS:
        notes.append(f"Unreliable: only {count} independent groups (at least {FEW_GROUPS} needed).")
    missing = [name for name, interval in (found or {}).items() if interval is None]
    if missing:
        why = "one group only" if count < 2 else "every resample gives the same value"
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
    values_a, values_b = scalars(a, metrics)[0], scalars(b, metrics)[0]
    gaps = {
        name: x - y
        for name, x in values_a.items()
        if x is not None and (y := values_b[name]) is not None
    }
    both = [(a, units[: len(a)]), (b, units[len(a) :])]
    drawn = _resampled(both, count, list(gaps), resamples, seed) if count > 1 else None
    result: dict[str, dict[str, float | None]] = {}
    for name in values_a:
        interval = None
        if drawn and name in gaps:
            interval = _expanded(drawn[0][name] - drawn[1][name], gaps[name], count, level)
        # Models that agree in every resample differ by nothing; any other constant says no more.
        low, high = interval or ((0.0, 0.0) if gaps.get(name) == 0 else (None, None))
        result[name] = {"value": gaps.get(name), "low": low, "high": high}
    return result


# --- groups ---------------------------------------------------------------------------------------


def _is_missing(group: Any) -> bool:
    return group == "" if isinstance(group, str) else bool(isna(group))


def _same_count(groups: Groups, ids: Sequence[Any]) -> None:
    if len(groups) != len(ids):
        raise InputError(
            f"Got {len(groups)} groups for {len(ids)} predictions",
            fix="Give one patient (or None) an image.",
            field="groups",
        )


def unit_keys(groups: Groups | None, ids: Sequence[Any]) -> list[str]:
    """A name for each image's resampling unit: its patient, or itself."""
    if groups is None:
        return [f"image:{image}" for image in ids]
    _same_count(groups, ids)
    return [
        f"image:{image}" if _is_missing(group) else f"patient:{group}"
        for group, image in zip(groups, ids, strict=True)
    ]


def _units(predictions: Predictions, groups: Groups | None) -> np.ndarray:
    """(n,) the number of each image's resampling unit, from 0."""
    if groups is None:
        return np.arange(len(predictions))
    return np.unique(np.array(unit_keys(groups, range(len(predictions)))), return_inverse=True)[1]


def _count(units: np.ndarray) -> int:
    return int(units.max()) + 1


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
    _same_count(groups, ids)
    pairs = zip(ids, groups, strict=True)
    return {image: group for image, group in pairs if not _is_missing(group)}


# --- resampling -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """An additive metric's sums by resampling unit, (units, m)."""

    by_unit: np.ndarray
    names: list[str]


def _resampled(
    sources: list[tuple[Predictions, np.ndarray]],
    count: int,
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> list[dict[str, np.ndarray]]:
    """For each source {metric: (resamples,)}, all sources under the same draws of units."""
    if resamples < 1:
        raise InputError(
            f"Got {resamples} resamples; allowed: at least one",
            fix="Use the default of 10000.",
            field="resamples",
        )
    tables = [_tables(predictions, units, count, names) for predictions, units in sources]
    parts: list[dict[str, list[np.ndarray]]] = [{name: [] for name in names} for _ in sources]
    done = 0
    longest = max(count, *(len(units) for _, units in sources), 1)
    for weights in _weights(count, resamples, max(1, _BLOCK // longest), seed):
        for (predictions, units), sums, part in zip(sources, tables, parts, strict=True):
            for table in sums:
                totals = weights @ table.by_unit
                # A resample may hold no image of this source: undefined, not a division error.
                totals[~totals.any(axis=1)] = np.nan
                for name in table.names:
                    part[name].append(ADDITIVE[name].finish(totals))
            rows = weights[: max(0, SLOW_RESAMPLES - done)]
            for name in (n for n in names if n not in ADDITIVE):
                part[name].append(_whole(name, predictions, units, rows))
        done += len(weights)
    return [{name: np.concatenate(values) for name, values in part.items()} for part in parts]


def _weights(count: int, resamples: int, block: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (r, count) of how often each unit was drawn, float64, `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count))
        drawn += np.arange(rows)[:, None] * count
        flat = np.bincount(drawn.ravel(), minlength=rows * count)
        yield flat.reshape(rows, count).astype(np.float64)


def _tables(
    predictions: Predictions, units: np.ndarray, count: int, names: Sequence[str]
) -> list[_Sums]:
    """Sums by unit, once for all metrics that share the same contributions."""
    shared: dict[Any, list[str]] = {}
    for name in names:
        if name in ADDITIVE:
            shared.setdefault(ADDITIVE[name].contributions, []).append(name)
    order = np.argsort(units, kind="stable")
    present, starts = np.unique(units[order], return_index=True)
    tables = []
    for contributions, own in shared.items():
        rows = contributions(predictions)
        by_unit = np.zeros((count, rows.shape[1]))
        by_unit[present] = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
        tables.append(_Sums(by_unit, own))
    return tables


def _whole(
    name: str, predictions: Predictions, units: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Values of a metric that is no function of sums, for one block of resamples."""
    if name == "roc_auc_ovr":
        return weighted_auc(predictions, weights[:, units])
    values = []
    for row in weights:
        try:
            repeated = np.repeat(np.arange(len(predictions)), row[units].astype(int))
            values.append(metrics[name](predictions.take(repeated)) if len(repeated) else np.nan)
        except Undefined:
            values.append(np.nan)
    return np.array(values)


def _expanded(values: np.ndarray, value: float, count: int, level: float) -> Interval | None:
    """Expanded percentile interval over `count` units; None where the values don't spread.

    Resampling biases some metrics (it raises calibration errors): the interval is extended to the
    measured value where it would leave that out.
    """
    from scipy.stats import norm, t

    values = values[~np.isnan(values)]
    if len(values) == 0 or np.ptp(values) <= 1e-12:
        return None
    tail = (1 - _checked(level)) / 2
    wider = float(norm.cdf((count / (count - 1)) ** 0.5 * t.ppf(tail, count - 1)))
    low, high = np.quantile(values, [wider, 1 - wider])
    return min(float(low), value), max(float(high), value)


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(
            f"Got a level of {level}; allowed: between 0 and 1",
            fix="Use 0.95 for 95 %.",
            field="level",
        )
    return level
