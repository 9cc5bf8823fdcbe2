"""Tests of whether two classifiers differ, with degenerate cases named instead of p = 0."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leukoscope.errors import InputError
from leukoscope.evaluate.intervals import Groups, difference, unit_keys
from leukoscope.evaluate.metrics import per_class
from leukoscope.evaluate.predictions import Predictions

Test = dict[str, float | int | str | None]


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> Test:
    """McNemar's test (1947) on the same n images; (n,) booleans. See `mcnemar_counts`."""
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    _same_length(a, b)
    return mcnemar_counts(int((a & ~b).sum()), int((~a & b).sum()))


def mcnemar_counts(b: int, c: int) -> Test:
    """{b, c, chi2, chi2_corrected, p, exact_p, degenerate} from the discordant counts.

    b: only the first is right; c: only the second. p belongs to chi2 without correction;
    chi2_corrected is Edwards' (1948), 0 where b = c; exact_p is binomial, two-sided. Without
    discordant images chi2 and p are None, exact_p is 1, and `degenerate` says so.
    """
    from scipy.stats import binomtest, chi2

    if min(b, c) < 0:
        raise InputError(
            f"Got discordant counts {b} and {c}; allowed: 0 or more",
            fix="Count images that only one of the two gets right.",
            field="b",
        )
    total = b + c
    if total == 0:
        return {
            "b": 0,
            "c": 0,
            "chi2": None,
            "chi2_corrected": None,
            "p": None,
            "exact_p": 1.0,
            "degenerate": "both are right on exactly the same images",
        }
    statistic = (b - c) ** 2 / total
    return {
        "b": b,
        "c": c,
        "chi2": statistic,
        "chi2_corrected": max(abs(b - c) - 1, 0) ** 2 / total,
        "p": float(chi2.sf(statistic, 1)),
        "exact_p": float(binomtest(min(b, c), total, 0.5).pvalue),
        "degenerate": None,
    }


def permutation_test(
    a: np.ndarray,
    b: np.ndarray,
    groups: Groups | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float | int | bool]:
    """Paired sign-flip test that exchanges the two models for whole patients at a time.

    a, b: (n,) correctness or any score an image. groups: (n,) patients, None where unknown.
    Two-sided on the mean difference. Exact where the sign patterns are no more than `resamples`,
    otherwise (hits + 1) / (resamples + 1) (Phipson & Smyth 2010).
    Returns {p, difference, groups, exact}.
    """
    scores_a, scores_b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _same_length(scores_a, scores_b)
    gaps = scores_a - scores_b
    units = np.unique(np.array(unit_keys(groups, range(len(gaps)))), return_inverse=True)[1]
    sums = np.bincount(units, weights=gaps)
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    # Patients of the same absolute difference are interchangeable: only how many keep their sign
    # matters, so few patterns stand for all, each with its binomial probability.
    observed = abs(sums.sum())
    close = observed - 1e-9 * max(1.0, float(sizes @ counts))
    exact = bool(np.log1p(counts).sum() <= np.log(resamples))
    if exact:
        p = _enumerate(sizes, counts, close)
    else:
        kept = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
        hits = np.abs((2 * kept - counts) @ sizes) >= close
        p = float((hits.sum() + 1) / (resamples + 1))
    return {"p": p, "difference": float(gaps.mean()), "groups": len(sums), "exact": exact}


def _enumerate(sizes: np.ndarray, counts: np.ndarray, close: float) -> float:
    """Probability under all sign patterns that the absolute sum reaches `close`."""
    from scipy.stats import binom

    sums, weights = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        kept = np.arange(count + 1)
        sums = (sums[:, None] + (2 * kept - count) * size).ravel()
        weights = (weights[:, None] * binom.pmf(kept, count, 0.5)).ravel()
    return min(1.0, float(weights[np.abs(sums) >= close].sum()))


def paired_t(a: Sequence[float | None], b: Sequence[float | None]) -> Test:
    """{t, p, degenerate} of the paired t-test, two-sided; pairs with a None are left out.

    Constant differences have no spread to compare with (t would be infinite or 0 / 0), so t and p
    are None and `degenerate` says why; likewise with fewer than two pairs.
    """
    from scipy.stats import ttest_rel

    if len(a) != len(b):
        _same_length(np.asarray(a), np.asarray(b))
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < 2:
        return {"t": None, "p": None, "degenerate": f"{len(pairs)} pairs, at least 2 needed"}
    first, second = np.array(pairs, dtype=np.float64).T
    gaps = first - second
    if np.ptp(gaps) <= 1e-12 * max(1.0, float(np.abs(first).max())):
        why = f"every difference is {gaps[0]:.4g}: without spread the test is not defined"
        return {"t": None, "p": None, "degenerate": why}
    found = ttest_rel(first, second)
    return {"t": float(found.statistic), "p": float(found.pvalue), "degenerate": None}


def delong(labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray) -> Test:
    """{auc_a, auc_b, difference, se, z, p, degenerate} of two correlated ROC areas.

    DeLong et al. 1988 by the midranks of Sun & Xu 2014. labels: (n,) booleans or 0/1, at least
    two of each; scores: (n,), larger means positive. Assumes independent images.
    """
    from scipy.stats import norm, rankdata

    positive = np.asarray(labels).astype(bool)
    scores = np.array([scores_a, scores_b], dtype=np.float64)
    _same_length(positive, scores[0])
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise InputError(
            f"Got {m} positive and {n} negative images; allowed: at least 2 of each",
            fix="Compare on more images.",
            field="labels",
        )
    everyone = rankdata(scores, axis=1)
    above = (everyone[:, positive] - rankdata(scores[:, positive], axis=1)) / n
    below = 1 - (everyone[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m
    area = above.mean(axis=1)
    covariance = np.cov(above) / m + np.cov(below) / n
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    gap = float(area[0] - area[1])
    result: Test = {"auc_a": float(area[0]), "auc_b": float(area[1]), "difference": gap}
    if variance <= 1e-15:
        why = "the difference has no variance: equal rankings or perfect separation"
        return result | {"se": 0.0, "z": None, "p": None, "degenerate": why}
    z = gap / variance**0.5
    p = float(2 * norm.sf(abs(z)))
    return result | {"se": variance**0.5, "z": z, "p": p, "degenerate": None}


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p-values (1979) in the given order; None stays None and isn't counted."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in pvalues if p is not None]
    if not known:
        return list(pvalues)
    adjusted = iter(multipletests(known, method="holm")[1])
    return [None if p is None else float(next(adjusted)) for p in pvalues]


def compare(
    models: Mapping[str, Predictions],
    images: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    groups: Mapping[str, Groups] | Groups | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """comparison.json of DESIGN.md: every pair of models, and Holm's p with more than two.

    images: ids in the order of the predictions, one sequence where all models saw the same images
    in the same order, otherwise a mapping by model; groups (patients) likewise. McNemar, the
    permutation test and DeLong's run on the images that both saw (`shared`); differences on each
    model's own.
    Raises InputError for fewer than two models, different classes or contradicting labels.
    """
    if len(models) < 2:
        raise InputError(
            f"Got {len(models)} models to compare; at least two are needed",
            fix="Name two runs or files of predictions.",
            field="models",
        )
    same = range(len(next(iter(models.values()))))
    ids = {name: _of(images, name, same) for name in models}
    owners = {name: _of(groups, name, None) for name in models}
    pairs = [
        _pair(a, b, models, ids, owners, resamples, seed)
        for a, b in itertools.combinations(models, 2)
    ]
    if len(models) > 2:
        adjusted = [
            holm([pair["mcnemar"]["p"] for pair in pairs]),
            holm([pair["mcnemar"]["exact_p"] for pair in pairs]),
            holm([pair["permutation_p"] for pair in pairs]),
        ]
        for pair, values in zip(pairs, zip(*adjusted, strict=True), strict=True):
            names = ("mcnemar_p", "mcnemar_exact_p", "permutation_p")
            pair["holm"] = dict(zip(names, values, strict=True))
    return {"pairs": pairs}


def _of(given: Any, name: str, default: Any) -> Any:
    if given is None:
        return default
    return given[name] if isinstance(given, Mapping) else given


def _pair(
    a: str,
    b: str,
    models: Mapping[str, Predictions],
    ids: dict[str, Any],
    owners: dict[str, Any],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    first, second = models[a], models[b]
    _comparable(a, b, first, second)
    gaps = difference(
        first,
        second,
        owners[a],
        images=ids[a],
        images_b=ids[b],
        groups_b=owners[b],
        resamples=resamples,
        seed=seed,
    )
    rows_a, rows_b = _shared(ids[a], ids[b])
    _same_labels(a, b, first, second, rows_a, rows_b, ids[a])
    right_a, right_b = first.correct[rows_a], second.correct[rows_b]
    own = None if owners[a] is None else [owners[a][row] for row in rows_a]
    permutation = permutation_test(right_a, right_b, own, resamples=resamples, seed=seed)
    return {
        "a": a,
        "b": b,
        "shared": len(rows_a),
        "mcnemar": mcnemar(right_a, right_b),
        "permutation_p": permutation["p"],
        "difference": gaps,
        "paired_t": _paired_t_by_class(first, second),
        "delong": _delong_by_class(first, second, rows_a, rows_b),
    }


def _comparable(a: str, b: str, first: Predictions, second: Predictions) -> None:
    if set(first.classes) != set(second.classes):
        only = sorted(set(first.classes) ^ set(second.classes))
        raise InputError(
            f"{a} and {b} have different classes: only one of them knows {', '.join(only)}",
            fix="Compare models of the same classes.",
            field="classes",
        )


def _shared(ids_a: Sequence[Any], ids_b: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a and of b that show the same images, in a's order."""
    place = {image: row for row, image in enumerate(ids_b)}
    rows = [(row, place[image]) for row, image in enumerate(ids_a) if image in place]
    if not rows:
        raise InputError(
            "The two sets of predictions share no image",
            fix="Compare predictions on the same test images.",
            field="images",
        )
    pairs = np.array(rows, dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def _same_labels(
    a: str,
    b: str,
    first: Predictions,
    second: Predictions,
    rows_a: np.ndarray,
    rows_b: np.ndarray,
    ids: Sequence[Any],
) -> None:
    names_a = np.array(first.classes)[first.labels[rows_a]]
    names_b = np.array(second.classes)[second.labels[rows_b]]
    bad = np.flatnonzero(names_a != names_b)
    if len(bad):
        at = bad[0]
        raise InputError(
            f"Image {ids[rows_a[at]]} is labelled {names_a[at]} in {a} and {names_b[at]} in {b} "
            f"({len(bad)} such images)",
            fix="Evaluate both on the same labels.",
            field="label",
        )


def _paired_t_by_class(first: Predictions, second: Predictions) -> dict[str, Test]:
    table_a, table_b = per_class(first)[0], per_class(second)[0]
    names = [key for key in next(iter(table_a.values())) if key != "support"]
    return {
        key: paired_t(
            [table_a[c][key] for c in first.classes], [table_b[c][key] for c in first.classes]
        )
        for key in names
    }


def _delong_by_class(
    first: Predictions, second: Predictions, rows_a: np.ndarray, rows_b: np.ndarray
) -> dict[str, Test]:
    """DeLong's test of each class against the rest; `p_holm` is over the classes. Empty unless
    both models give probabilities."""
    if first.probs is None or second.probs is None:
        return {}
    found: dict[str, Test] = {}
    for place, name in enumerate(first.classes):
        own = first.labels[rows_a] == place
        if min(own.sum(), (~own).sum()) < 2:
            why = f"{own.sum()} images of the class and {(~own).sum()} of others; 2 of each needed"
            blank = dict.fromkeys(("auc_a", "auc_b", "difference", "se", "z", "p"))
            found[name] = {**blank, "degenerate": why}
        else:
            other = second.probs[rows_b, second.classes.index(name)]
            found[name] = delong(own, first.probs[rows_a, place], other)
    adjusted = holm([test["p"] for test in found.values()])  # type: ignore[misc]
    return {
        name: test | {"p_holm": p} for (name, test), p in zip(found.items(), adjusted, strict=True)
    }


def _same_length(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise InputError(
            f"Got arrays of shape {a.shape} and {b.shape}; allowed: one dimension, equal length, "
            "at least one value",
            fix="Compare on the same images.",
            field="a",
        )
