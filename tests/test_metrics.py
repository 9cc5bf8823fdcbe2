"""Every metric against scikit-learn, and against the figures of the papers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.evaluate.metrics import (
    ADDITIVE,
    SCALARS,
    class_auc,
    compute,
    metrics,
    scalars,
    summarise,
)
from leukoscope.evaluate.predictions import Predictions


def from_matrix(matrix: list[list[int]], classes: tuple[str, ...]) -> Predictions:
    counts = np.array(matrix)
    rows, columns = np.indices(counts.shape)
    repeat = counts.ravel()
    return Predictions(
        np.repeat(rows.ravel(), repeat), np.repeat(columns.ravel(), repeat), None, classes
    )


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    """Any predictions: one image, one class, absent classes, ties, all right and all wrong."""
    k = draw(st.integers(2, 5))
    n = draw(st.integers(1, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = generator.choice(k, size=draw(st.integers(1, k)), replace=False)
    labels = generator.choice(present, size=n)
    if draw(st.booleans()):  # coarse: many ties
        parts = generator.integers(0, 3, size=(n, k)).astype(float)
        parts[np.arange(n), generator.integers(0, k, n)] += 1
    else:
        parts = generator.gamma(0.5, size=(n, k)) + 1e-6
    probs = parts / parts.sum(axis=1, keepdims=True)
    kind = draw(st.sampled_from(["free", "right", "wrong", "constant"]))
    predicted = {
        "free": probs.argmax(axis=1),
        "right": labels,
        "wrong": (labels + 1) % k,
        "constant": np.full(n, generator.integers(0, k)),
    }[kind]
    return Predictions(labels, predicted, probs, tuple("abcde"[:k]))


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def sklearn_auc(p: Predictions) -> list[float]:
    truth = np.eye(len(p.classes))[p.labels]
    return [
        reference.roc_auc_score(truth[:, c], p.probs[:, c])
        if 0 < truth[:, c].sum() < len(p)
        else np.nan
        for c in range(len(p.classes))
    ]


def sklearn_ece(p: Predictions) -> float:
    """From scikit-learn's calibration curve of the most probable class, weighted by its bins."""
    confidence = p.probs.max(axis=1)
    right = (p.probs.argmax(axis=1) == p.labels).astype(int)
    accuracy, stated = quietly(calibration_curve, right, confidence, n_bins=15, pos_label=1)
    counts = np.bincount(np.digitize(confidence, np.linspace(0, 1, 16)[1:-1], right=True))
    return float(np.abs(accuracy - stated) @ counts[counts > 0] / len(p))


def expected(p: Predictions) -> dict[str, float]:
    y, z, names = p.labels, p.predicted, list(range(len(p.classes)))

    def averaged(score: Callable[..., float], average: str) -> float:
        return quietly(score, y, z, labels=names, average=average, zero_division=np.nan)

    ovr = reference.multilabel_confusion_matrix(y, z, labels=names)
    negatives = ovr[:, 0].sum(axis=1)
    specificity = [row[0, 0] / total for row, total in zip(ovr, negatives, strict=True) if total]
    auc = sklearn_auc(p)
    return {
        "accuracy": reference.accuracy_score(y, z),
        "balanced_accuracy": quietly(reference.balanced_accuracy_score, y, z),
        "macro_f1": averaged(reference.f1_score, "macro"),
        "micro_f1": averaged(reference.f1_score, "micro"),
        "weighted_f1": averaged(reference.f1_score, "weighted"),
        # Its default: a class with images that was never predicted counts as 0.
        "macro_precision": quietly(
            reference.precision_score, y, z, average="macro", zero_division=0
        ),
        "macro_recall": averaged(reference.recall_score, "macro"),
        "macro_specificity": float(np.mean(specificity)) if specificity else np.nan,
        "mean_ovr_accuracy": float((ovr[:, 0, 0] + ovr[:, 1, 1]).mean() / len(y)),
        "cohen_kappa": quietly(reference.cohen_kappa_score, y, z, labels=names),
        "mcc": quietly(reference.matthews_corrcoef, y, z),
        "roc_auc_ovr": float(np.nanmean(auc)) if not np.isnan(auc).all() else np.nan,
        "log_loss": quietly(reference.log_loss, y, p.probs, labels=names),
        "brier": quietly(reference.brier_score_loss, y, p.probs, labels=names, scale_by_half=False),
        "ece": sklearn_ece(p),
    }


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_every_metric_agrees_with_scikit_learn(p: Predictions) -> None:
    values, reasons = scalars(p)
    references = expected(p)
    assert set(references) == set(metrics)  # a newly registered metric needs its reference
    for name, value in references.items():
        if values[name] is None:
            # scikit-learn calls an undefined Matthews correlation 0; here it has a reason instead.
            assert np.isnan(value) or (name == "mcc" and value == 0), name
            assert reasons[name]
        else:
            assert values[name] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_per_class_values_agree_with_scikit_learn(p: Predictions) -> None:
    names = range(len(p.classes))
    precision, recall, f1, support = quietly(
        reference.precision_recall_fscore_support,
        p.labels,
        p.predicted,
        labels=list(names),
        zero_division=np.nan,
    )
    result = summarise(p)
    matrix = reference.confusion_matrix(p.labels, p.predicted, labels=list(names))
    assert result["confusion_matrix"] == matrix.tolist()
    specificity, ovr_accuracy = (
        [quietly(score, p.labels == c, p.predicted == c, **options) for c in names]
        for score, options in (
            (reference.recall_score, {"pos_label": False, "zero_division": np.nan}),
            (reference.accuracy_score, {}),
        )
    )
    columns = {
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
        "ovr_accuracy": ovr_accuracy,
        "roc_auc": sklearn_auc(p),
    }
    assert {*columns, "support"} == set(result["per_class"][p.classes[0]])
    for c, name in enumerate(p.classes):
        row = result["per_class"][name]
        assert row["support"] == support[c]
        for column, values in columns.items():
            if row[column] is None:
                assert np.isnan(values[c])
                assert result["undefined"][f"per_class.{name}.{column}"]
            else:
                assert row[column] == pytest.approx(values[c], abs=1e-9)


def test_every_registered_metric_is_reported_or_has_a_reason() -> None:
    p = Predictions(np.array([0, 1, 1]), np.array([0, 0, 1]), None, ("a", "b"))
    values, reasons = scalars(p)
    assert set(values) == set(metrics) == set(SCALARS)
    assert {name for name, value in values.items() if value is None} == set(reasons)
    assert set(reasons) == {"roc_auc_ovr", "log_loss", "brier", "ece"}
    assert set(ADDITIVE) == set(SCALARS) - {"roc_auc_ovr"}


def test_binary_brier_is_twice_scikit_learns_and_scale_is_said() -> None:
    generator = np.random.default_rng(3)
    positive = generator.random(50)
    p = Predictions(
        generator.integers(0, 2, 50),
        (positive > 0.5).astype(int),
        np.column_stack([1 - positive, positive]),
        ("no", "yes"),
    )
    half = reference.brier_score_loss(p.labels, positive)
    assert metrics["brier"](p) == pytest.approx(2 * half, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # Bin (.8, .867]: confidences .85, .85, one right. Bin (.6, .667]: .62, wrong.
    probs = np.array([[0.85, 0.15], [0.85, 0.15], [0.38, 0.62]])
    p = Predictions(np.array([0, 1, 0]), probs.argmax(axis=1), probs, ("a", "b"))
    assert metrics["ece"](p) == pytest.approx((2 * 0.35 + 0.62) / 3, abs=1e-12)


def test_weighted_auc_is_the_auc_of_repeated_images() -> None:
    generator = np.random.default_rng(1)
    probs = generator.integers(1, 5, size=(30, 3)).astype(float)
    probs /= probs.sum(axis=1, keepdims=True)
    p = Predictions(generator.integers(0, 3, 30), probs.argmax(axis=1), probs, ("a", "b", "c"))
    weights = generator.integers(0, 4, size=(5, 30))
    for row, found in zip(weights, class_auc(p, weights.astype(float)), strict=True):
        again = class_auc(p.take(np.repeat(np.arange(30), row)))[0]
        np.testing.assert_allclose(found, again, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(predictions(), st.integers(0, 2**32 - 1))
def test_weighted_auc_agrees_with_scikit_learn(p: Predictions, seed: int) -> None:
    """The bootstrap's areas: weights are how often an image was drawn, 0 too."""
    weights = np.random.default_rng(seed).integers(0, 4, len(p)).astype(float)
    found = class_auc(p, weights[None])[0]
    for c, area in enumerate(found):
        truth = p.labels == c
        if 0 < weights[truth].sum() < weights.sum():
            scores = (truth, p.probs[:, c])
            exact = reference.roc_auc_score(*scores, sample_weight=weights)
            assert area == pytest.approx(exact, abs=1e-9)
        else:
            assert np.isnan(area)


def test_shape_of_metrics_json() -> None:
    result = compute(["a", "b", "b"], ["a", "a", "b"], None, ["a", "b", "c"], level="patient")
    json.dumps(result, allow_nan=False)
    assert list(result)[:2] == ["n", "level"]
    assert result["level"] == "patient"
    assert set(SCALARS) < set(result)
    keys = ["precision", "recall", "specificity", "f1", "ovr_accuracy", "roc_auc", "support"]
    assert list(result["per_class"]["c"]) == keys
    assert result["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert result["undefined"]["per_class.c.precision"] == "the class was never predicted"
    assert result["per_class"]["c"]["precision"] is None
    assert "Left out of macro_f1: c" in " ".join(result["notes"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 2])}, "labels has 2 in row 1"),
        ({"predicted": np.array([0])}, "2 labels and 1 predictions"),
        ({"labels": np.array([0.0, 1.0])}, "one dimension of integers"),
        ({"probs": np.array([[0.5, 0.5], [0.9, 0.2]])}, "in row 1"),
        ({"probs": np.array([[2.0, -1.0], [0.5, 0.5]])}, "in row 0"),
        ({"probs": np.array([[np.nan, 1.0], [0.5, 0.5]])}, "in row 0"),
        ({"probs": np.ones((2, 3)) / 3}, "shape (2, 3)"),
        ({"classes": ("a", "a")}, "2 class names of which 1"),
        ({"labels": np.array([], int), "predicted": np.array([], int)}, "no predictions"),
    ],
)
def test_bad_predictions_are_named(change: dict[str, Any], message: str) -> None:
    good = {
        "labels": np.array([0, 1]),
        "predicted": np.array([0, 1]),
        "probs": None,
        "classes": ("a", "b"),
    }
    with pytest.raises(InputError) as problem:
        Predictions(**{**good, **change})
    assert message in problem.value.message
    assert problem.value.fix


def test_unknown_label_is_named_with_its_nearest_match() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'monocyte'"):
        compute(["monocite"], ["monocyte"], None, ["lymphocyte", "monocyte"])


# --- figures of the papers ------------------------------------------------------------------------


def test_recipe_3_phase_1_report() -> None:
    """Audina et al. 2026, table 6; the one unstated Pro-B error went to Early Pre-B."""
    classes = ("Benign", "Pre-B", "Pro-B", "Early Pre-B")
    matrix = [[71, 2, 1, 3], [0, 141, 0, 3], [4, 14, 101, 1], [11, 11, 0, 125]]
    result = summarise(from_matrix(matrix, classes))
    published = {
        "Benign": (82.56, 92.21, 87.12, 77),
        "Pre-B": (83.93, 97.92, 90.38, 144),
        "Pro-B": (99.02, 84.17, 90.99, 120),
        "Early Pre-B": (94.70, 85.03, 89.61, 147),
    }
    for name, (precision, recall, f1, support) in published.items():
        row = result["per_class"][name]
        assert [100 * row[key] for key in ("precision", "recall", "f1")] == pytest.approx(
            [precision, recall, f1], abs=0.005
        )
        assert row["support"] == support
    scalar = {"accuracy": 89.75, "macro_precision": 90.05, "macro_recall": 89.83}
    scalar |= {"macro_f1": 89.52, "weighted_f1": 89.78, "micro_f1": 89.75}
    for name, value in scalar.items():
        assert 100 * result[name] == pytest.approx(value, abs=0.0051), name


def test_recipe_5_accuracy_is_95_86_and_its_98_35_is_one_vs_rest() -> None:
    """Patel et al. 2025: correct of total per class; where the errors went doesn't matter here."""
    stated = [(2428, 2582), (2983, 3046), (2528, 2657), (1684, 1738), (2057, 2161)]
    matrix = np.diag([correct for correct, _ in stated])
    for c, (correct, total) in enumerate(stated):
        matrix[c, (c + 1) % 5] = total - correct
    classes = ("CBFB_MYH11", "control", "NPM1", "PML_RARA", "RUNX1_RUNX1T1")
    result = summarise(from_matrix(matrix.tolist(), classes))
    assert result["n"] == 12184
    assert 100 * result["accuracy"] == pytest.approx(95.86, abs=0.005)
    assert 100 * result["mean_ovr_accuracy"] == pytest.approx(98.35, abs=0.005)
    recalls = [100 * result["per_class"][name]["recall"] for name in classes]
    assert recalls == pytest.approx([94.04, 97.93, 95.14, 96.89, 95.19], abs=0.005)
    assert 100 * result["macro_recall"] == pytest.approx(95.84, abs=0.005)
