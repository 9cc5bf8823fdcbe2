"""Resampling of whole groups (patients): the engine under `intervals`.

Images of one patient resemble each other, so whole patients are drawn; an image without a patient
is a patient of its own. Metrics given by sums over images come from one matrix product of
resampling weights and sums by patient, so that 10,000 resamples of 12,184 predictions take
seconds; areas under the ROC curve from weighted midranks, on the first 2,000 of the resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pandas import isna

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.evaluate.metrics import (
    ADDITIVE,
    Additive,
    Predictions,
    Undefined,
    additive_by_class,
    class_auc,
    class_metric,
    mean_auc,
    metrics,
    per_class,
    scalars,
)

_BLOCK = 2_000_000  # weights held at a time: 16 MB, so that they stay near the processor
SLOW_RESAMPLES = 2_000
"""Resamples at most of a metric that is no function of sums, such as roc_auc_ovr."""

Interval = tuple[float, float]
Groups = Sequence[Any] | np.ndarray


# --- groups ---------------------------------------------------------------------------------------


def is_missing(group: Any) -> bool:
    """Whether a group's name says that it is unknown."""
    return group == "" if isinstance(group, str) else bool(isna(group))


def same_count(groups: Groups, ids: Sequence[Any]) -> None:
    """InputError unless there is a group for each id."""
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
    same_count(groups, ids)
    return [
        f"image:{image}" if is_missing(group) else f"patient:{group}"
        for group, image in zip(groups, ids, strict=True)
    ]


def unit_numbers(groups: Groups | None, n: int) -> np.ndarray:
    """(n,) the number of each image's resampling unit, from 0."""
    if groups is None:
        return np.arange(n)
    return np.unique(np.array(unit_keys(groups, range(n))), return_inverse=True)[1]


# --- what is measured -----------------------------------------------------------------------------


def measured(
    predictions: Predictions, names: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Metrics by name, None where undefined; default: every scalar, then those of each class.

    Raises UnknownNameError for a name that is neither.
    """
    by_class = class_names(predictions)
    if names is None:
        wanted, inner = None, list(by_class)
    else:
        wanted = [name for name in names if name not in by_class]
        inner = [name for name in names if name in by_class]
        unknown = [name for name in wanted if name not in metrics]
        if unknown:
            raise UnknownNameError("metric", unknown[0], [*metrics, *by_class])
    found = scalars(predictions, wanted)[0] if wanted is None or wanted else {}
    if not inner:
        return found
    table = per_class(predictions)[0]
    for name in inner:
        owner, metric = by_class[name]
        found[name] = table[owner][metric]
    return found if names is None else {name: found[name] for name in names}


def class_names(predictions: Predictions) -> dict[str, tuple[str, str]]:
    """The dotted name of each class's metrics, with class and metric."""
    own = [name.rpartition(".")[2] for name in additive_by_class(["x"])]
    return {
        class_metric(name, metric): (name, metric)
        for name in predictions.classes
        for metric in (*own, "roc_auc")
    }


def is_additive(name: str) -> bool:
    """Whether a metric, of a class too, is a function of sums."""
    return name in ADDITIVE or (name.startswith("per_class.") and not name.endswith(".roc_auc"))


# --- draws ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """An additive metric's sums by resampling unit, (units, m)."""

    by_unit: np.ndarray
    names: list[str]


def resampled(
    sources: list[tuple[Predictions, np.ndarray]],
    count: int,
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> list[dict[str, np.ndarray]]:
    """For each source {metric: (resamples,)}, all sources under the same draws of units.

    sources: predictions with the (n,) unit of each image. A value is NaN where the resample does
    not define the metric.
    """
    if resamples < 1:
        raise InputError(
            f"Got {resamples} resamples; allowed: at least one",
            fix="Use the default of 10000.",
            field="resamples",
        )
    additive = [ADDITIVE | additive_by_class(predictions.classes) for predictions, _ in sources]
    tables = [
        _tables(predictions, units, count, names, own)
        for (predictions, units), own in zip(sources, additive, strict=True)
    ]
    parts: list[dict[str, list[np.ndarray]]] = [{name: [] for name in names} for _ in sources]
    done = 0
    longest = max(count, *(len(units) for _, units in sources), 1)
    for weights in draws(count, resamples, max(1, _BLOCK // longest), seed):
        rows = weights[: max(0, SLOW_RESAMPLES - done)]
        for (predictions, units), own, sums, part in zip(
            sources, additive, tables, parts, strict=True
        ):
            for table in sums:
                totals = weights @ table.by_unit
                # A resample may hold no image of this source: undefined, not a division error.
                totals[~totals.any(axis=1)] = np.nan
                for name in table.names:
                    part[name].append(own[name].finish(totals))
            slow = [name for name in names if name not in own]
            for name, values in _whole(slow, predictions, units, rows).items():
                part[name].append(values)
        done += len(weights)
    return [{name: np.concatenate(values) for name, values in part.items()} for part in parts]


def draws(count: int, resamples: int, block: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (r, count) of how often each unit was drawn, float64, `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count))
        drawn += np.arange(rows)[:, None] * count
        flat = np.bincount(drawn.ravel(), minlength=rows * count)
        yield flat.reshape(rows, count).astype(np.float64)


def sums_by_unit(rows: np.ndarray, units: np.ndarray, count: int) -> np.ndarray:
    """(count, m) sums of the (n, m) rows by their (n,) unit; zeros for a unit without rows."""
    order = np.argsort(units, kind="stable")
    present, starts = np.unique(units[order], return_index=True)
    sums = np.zeros((count, rows.shape[1]))
    sums[present] = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    return sums


def _tables(
    predictions: Predictions,
    units: np.ndarray,
    count: int,
    names: Sequence[str],
    additive: Mapping[str, Additive],
) -> list[_Sums]:
    """Sums by unit, once for all metrics that share the same contributions."""
    shared: dict[Any, list[str]] = {}
    for name in names:
        if name in additive:
            shared.setdefault(additive[name].contributions, []).append(name)
    return [
        _Sums(sums_by_unit(contributions(predictions), units, count), own)
        for contributions, own in shared.items()
    ]


def _whole(
    names: Sequence[str], predictions: Predictions, units: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Values of metrics that are no function of sums, for one block of resamples."""
    if not names:
        return {}
    found = {}
    areas = {class_metric(c, "roc_auc"): at for at, c in enumerate(predictions.classes)}
    if not {"roc_auc_ovr", *areas}.isdisjoint(names):
        values = class_auc(predictions, weights[:, units])
        found = {name: values[:, at] for name, at in areas.items() if name in names}
        found["roc_auc_ovr"] = mean_auc(values)
    for name in names:
        if name not in found:
            found[name] = np.array([_repeated(name, predictions, row[units]) for row in weights])
    return {name: found[name] for name in names}


def _repeated(name: str, predictions: Predictions, weights: np.ndarray) -> float:
    """A metric of the images, each repeated as often as drawn; NaN where undefined."""
    rows = np.repeat(np.arange(len(predictions)), weights.astype(int))
    try:
        return metrics[name](predictions.take(rows)) if len(rows) else np.nan
    except Undefined:
        return np.nan


def contributors(
    predictions: Predictions, units: np.ndarray, count: int, names: Sequence[str]
) -> dict[str, int]:
    """How many units speak to each metric: all, or of a class's metric those that define it.

    The recall of a class rests on the patients that have such images, however many others there
    are; an area under the ROC curve on the fewer of those with and those without.
    """
    additive = additive_by_class(predictions.classes)
    found = dict.fromkeys(names, count)
    inner = [name for name in names if name.startswith("per_class.")]
    if not inner:
        return found
    sums = sums_by_unit(next(iter(additive.values())).contributions(predictions), units, count)

    def defined(name: str) -> int:
        return int((~np.isnan(additive[name].finish(sums))).sum())

    for name in inner:
        owner = name.rpartition(".")[0]
        of = [f"{owner}.recall", f"{owner}.specificity"] if name.endswith(".roc_auc") else [name]
        found[name] = min(map(defined, of))
    return found


def expanded(values: np.ndarray, value: float, count: int, level: float) -> Interval | None:
    """Expanded percentile interval (Hesterberg 2015) over `count` units; None where the values
    don't spread or there are fewer than two units. NaN values are left out.

    Resampling biases some metrics (it raises calibration errors): the interval is extended to the
    measured value where it would leave that out.
    """
    from scipy.stats import norm, t

    values = values[~np.isnan(values)]
    if count < 2 or len(values) == 0 or np.ptp(values) <= 1e-12:
        return None
    tail = (1 - checked(level)) / 2
    wider = float(norm.cdf((count / (count - 1)) ** 0.5 * t.ppf(tail, count - 1)))
    low, high = np.quantile(values, [wider, 1 - wider])
    return min(float(low), value), max(float(high), value)


def checked(level: float) -> float:
    """The level; InputError unless it is between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(
            f"Got a level of {level}; allowed: between 0 and 1",
            fix="Use 0.95 for 95 %.",
            field="level",
        )
    return level
