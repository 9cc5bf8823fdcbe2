"""Tests of significance against SciPy and statsmodels, and against the figures of the papers."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats import contingency_tables, multitest

from leukoscope.errors import InputError
from leukoscope.evaluate.predictions import Predictions
from leukoscope.evaluate.significance import (
    compare,
    delong,
    holm,
    mcnemar,
    mcnemar_counts,
    paired_t,
    permutation_test,
)

# Mustapha & Uzun Ozsahin 2025, per class in the order of PAPERS.md, in percent.
CONVNEXT = {"P": [94, 95, 95, 95, 94], "R": [92, 98, 95, 96, 91], "F1": [93, 97, 95, 96, 92]}
RESNET50 = {"P": [86, 99, 91, 94, 89], "R": [95, 83, 91, 94, 94], "F1": [90, 90, 91, 94, 91]}


@pytest.mark.parametrize(
    ("metric", "t", "p"),
    [("P", 1.3761, 0.2408), ("R", 0.9087, 0.4149), ("F1", 3.3024, 0.0299)],
)
def test_recipe_1_paired_t(metric: str, t: float, p: float) -> None:
    found = paired_t(CONVNEXT[metric], RESNET50[metric])
    assert found["t"] == pytest.approx(t, abs=5e-5)
    assert found["p"] == pytest.approx(p, abs=5e-5)
    assert found["degenerate"] is None


def test_recipe_1_fourth_test_is_degenerate_not_p_0() -> None:
    """Its t = infinity for accuracy: the same 95 against 91 % in every class."""
    found = paired_t([95] * 5, [91] * 5)
    assert found["t"] is None
    assert found["p"] is None
    assert "every difference is 4" in str(found["degenerate"])
    fractions = paired_t([0.95, 0.85, 0.75], [0.91, 0.81, 0.71])
    assert fractions["degenerate"]


def test_recipe_5_mcnemar() -> None:
    found = mcnemar_counts(383, 286)
    assert found["chi2"] == pytest.approx(14.06, abs=0.005)
    assert found["p"] == pytest.approx(0.000176, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_agrees_with_statsmodels(b: int, c: int) -> None:
    found = mcnemar_counts(b, c)
    table = [[5, b], [c, 7]]
    if b + c == 0:
        assert found["chi2"] is None
        assert found["exact_p"] == 1
        assert found["degenerate"]
        return
    plain = contingency_tables.mcnemar(table, exact=False, correction=False)
    exact = contingency_tables.mcnemar(table, exact=True)
    assert found["chi2"] == pytest.approx(plain.statistic, abs=1e-9)
    assert found["p"] == pytest.approx(plain.pvalue, abs=1e-9)
    assert found["exact_p"] == pytest.approx(exact.pvalue, abs=1e-9)
    if b != c:  # statsmodels corrects even a difference of 0, R and we don't
        corrected = contingency_tables.mcnemar(table, exact=False, correction=True)
        assert found["chi2_corrected"] == pytest.approx(corrected.statistic, abs=1e-9)
    else:
        assert found["chi2_corrected"] == 0


def test_mcnemar_of_arrays_counts_who_is_right() -> None:
    found = mcnemar(np.array([1, 1, 1, 0, 0]), np.array([1, 0, 0, 1, 0]))
    assert (found["b"], found["c"]) == (2, 1)


def test_permutation_without_groups_is_the_exact_mcnemar() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 200)) < [[0.8], [0.7]]
    found = permutation_test(a, b)
    assert found["exact"]
    assert found["p"] == pytest.approx(mcnemar(a, b)["exact_p"], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_permutation_by_patient_agrees_with_all_sign_patterns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 8, size=60)
    a, b = generator.normal(size=(2, 60))
    sums = np.array([(a - b)[groups == g].sum() for g in range(8)])
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    brute = (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).mean()
    exact = permutation_test(a, b, groups)
    drawn = permutation_test(a, b, groups, resamples=255)
    assert exact["exact"]
    assert not drawn["exact"]
    assert exact["p"] == pytest.approx(brute, abs=1e-12)
    assert drawn["p"] == pytest.approx(brute, abs=0.12)


def test_permutation_respects_patients() -> None:
    """Ten patients of 50 alike images each are ten observations, not five hundred."""
    better = np.repeat([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], 50)
    groups = np.repeat(np.arange(10), 50)
    assert permutation_test(better, 1 - better)["p"] < 1e-10
    assert permutation_test(better, 1 - better, groups)["p"] == pytest.approx(0.34375)
    assert permutation_test(better, better, groups)["p"] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_paired_t_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = paired_t(a, b)
    if found["degenerate"]:
        assert np.ptp(np.subtract(a, b)) < 1e-11
        return
    expected = stats.ttest_1samp(np.subtract(a, b), 0)
    assert found["t"] == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
    assert found["p"] == pytest.approx(expected.pvalue, abs=1e-9)


def test_paired_t_leaves_out_undefined_values() -> None:
    assert paired_t([1, None, 3, 2], [0, 5, 1, None]) == paired_t([1, 3], [0, 1])
    assert "at least 2" in str(paired_t([1, None], [0, 1])["degenerate"])


def placements_variance(positive: np.ndarray, scores: np.ndarray) -> float:
    """DeLong's variance by its definition, every pair compared: slow and plain."""
    columns = []
    for row in scores:
        pairs = np.sign(row[positive][:, None] - row[~positive][None]) / 2 + 0.5
        columns.append((pairs.mean(axis=1), pairs.mean(axis=0)))
    v = columns[0][0] - columns[1][0], columns[0][1] - columns[1][1]
    return float(v[0].var(ddof=1) / len(v[0]) + v[1].var(ddof=1) / len(v[1]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_delong_agrees_with_its_definition(seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    positive = np.arange(40) < generator.integers(2, 38)
    scores = generator.normal(size=(2, 40)) + positive
    scores = scores.round(0) if ties else scores
    found = delong(positive, *scores)
    assert found["auc_a"] == pytest.approx(roc_auc_score(positive, scores[0]), abs=1e-9)
    assert found["auc_b"] == pytest.approx(roc_auc_score(positive, scores[1]), abs=1e-9)
    variance = placements_variance(positive, scores)
    if found["degenerate"]:
        assert variance < 1e-12
        return
    assert found["se"] == pytest.approx(variance**0.5, abs=1e-9)
    z = float(found["difference"] or 0) / variance**0.5
    assert found["p"] == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-9)


def test_delong_of_a_model_with_itself_is_degenerate() -> None:
    scores = np.arange(10.0)
    found = delong(scores > 4, scores, scores)
    assert found["p"] is None
    assert found["degenerate"]
    with pytest.raises(InputError, match="at least 2 of each"):
        delong(scores > 8, scores, scores)


def test_holm_agrees_with_statsmodels_and_passes_none() -> None:
    values = [0.01, None, 0.04, 0.03, 0.005]
    known = [v for v in values if v is not None]
    expected = multitest.multipletests(known, method="holm")[1]
    found = holm(values)
    assert found[1] is None
    assert [v for v in found if v is not None] == pytest.approx(expected, abs=1e-12)
    assert holm([None]) == [None]


def models(count: int, n: int = 90) -> dict[str, Predictions]:
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 3, n)
    result = {}
    for index in range(count):
        probs = generator.gamma(0.6, size=(n, 3)) + np.eye(3)[labels] * index / 2
        probs /= probs.sum(axis=1, keepdims=True)
        result[f"m{index}"] = Predictions(labels, probs.argmax(axis=1), probs, ("x", "y", "z"))
    return result


def test_compare_has_the_shape_of_comparison_json() -> None:
    patients = np.repeat([f"p{i}" for i in range(15)], 6)
    found = compare(models(2), [f"i{i}" for i in range(90)], patients, resamples=500)
    json.dumps(found, allow_nan=False)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["shared"]) == ("m0", "m1", 90)
    assert {"b", "c", "chi2", "chi2_corrected", "p", "exact_p"} < set(pair["mcnemar"])
    assert 0 < pair["permutation_p"] <= 1
    assert "holm" not in pair
    gap = pair["difference"]["macro_f1"]
    assert gap["low"] < gap["value"] < gap["high"]
    assert set(pair["paired_t"]["f1"]) == {"t", "p", "degenerate"}
    one, two = models(2).values()
    assert one.probs is not None
    assert two.probs is not None
    for place, name in enumerate("xyz"):
        own = delong(one.labels == place, one.probs[:, place], two.probs[:, place])
        assert pair["delong"][name] == own | {"p_holm": pair["delong"][name]["p_holm"]}
        assert pair["delong"][name]["p_holm"] >= own["p"]
    assert (
        holm([pair["delong"][name]["p"] for name in "xyz"])
        == [pair["delong"][name]["p_holm"] for name in "xyz"]
    )  # fmt: skip


def test_delong_in_compare_names_what_it_lacks() -> None:
    two = models(2)
    rows = np.r_[np.flatnonzero(two["m0"].labels != 2), np.flatnonzero(two["m0"].labels == 2)[:1]]
    (pair,) = compare({name: model.take(rows) for name, model in two.items()}, resamples=50)[
        "pairs"
    ]
    assert "1 images of the class" in pair["delong"]["z"]["degenerate"]
    assert pair["delong"]["z"]["p_holm"] is None
    silent = {n: Predictions(m.labels, m.predicted, None, m.classes) for n, m in two.items()}
    assert compare(silent, resamples=50)["pairs"][0]["delong"] == {}


def test_compare_adjusts_when_more_than_two() -> None:
    found = compare(models(3), resamples=200)
    assert len(found["pairs"]) == 3
    raw = [pair["mcnemar"]["exact_p"] for pair in found["pairs"]]
    assert [pair["holm"]["mcnemar_exact_p"] for pair in found["pairs"]] == holm(raw)


def test_compare_pairs_overlapping_images_by_id() -> None:
    full = models(2)
    rows = np.arange(89, 29, -1)
    part = {"m0": full["m0"], "m1": full["m1"].take(rows)}
    ids = {"m0": list(range(90)), "m1": rows.tolist()}
    (pair,) = compare(part, ids, resamples=200)["pairs"]
    assert pair["shared"] == 60
    right = full["m0"].correct[30:], full["m1"].correct[30:]
    assert pair["mcnemar"] == mcnemar(*right)


def test_compare_with_itself_is_degenerate_not_significant() -> None:
    one = models(1)["m0"]
    (pair,) = compare({"a": one, "b": one}, resamples=200)["pairs"]
    assert pair["permutation_p"] == 1
    assert pair["mcnemar"]["p"] is None
    assert pair["difference"]["accuracy"] == {"value": 0, "low": 0, "high": 0}
    assert pair["paired_t"]["f1"]["degenerate"]


def test_compare_refuses_what_cannot_be_compared() -> None:
    one, two = models(2).values()
    with pytest.raises(InputError, match="at least two"):
        compare({"a": one})
    other = Predictions(two.labels, two.predicted, None, ("x", "y", "other"))
    with pytest.raises(InputError, match="different classes"):
        compare({"a": one, "b": other})
    with pytest.raises(InputError, match="share no image"):
        compare({"a": one, "b": two}, {"a": range(90), "b": range(100, 190)}, resamples=10)
    moved = Predictions((two.labels + 1) % 3, two.predicted, None, two.classes)
    with pytest.raises(InputError, match="is labelled"):
        compare({"a": one, "b": moved}, resamples=10)
    with pytest.raises(InputError, match="Name every image once"):
        compare({"a": one, "b": two.take(np.arange(5))}, resamples=10)
