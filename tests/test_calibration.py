"""Temperature, reliability and prediction sets against SciPy, scikit-learn and crepes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from crepes import ConformalClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax as scipy_softmax
from sklearn.calibration import calibration_curve

from leukoscope.errors import InputError
from leukoscope.evaluate.calibration import (
    ALWAYS_INCLUDED,
    always_included,
    coverage,
    fit_conformal,
    fit_temperature,
    prediction_sets,
    reliability,
    softmax,
)
from leukoscope.evaluate.metrics import metrics
from leukoscope.evaluate.predictions import Predictions


def calibrated(n: int, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels drawn from their own softmax."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (n, k))
    uniform = generator.random((n, 1))
    labels = (softmax(logits).cumsum(axis=1) < uniform).sum(axis=1).clip(0, k - 1)
    return logits, labels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 20))
def test_softmax_agrees_with_scipy(seed: int, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 300, (5, 4))
    expected = scipy_softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(softmax(logits, temperature), expected, atol=1e-12)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_found_and_mends_calibration(true: float) -> None:
    logits, labels = calibrated(6000)
    found = fit_temperature(logits * true, labels)
    assert found == pytest.approx(true, rel=0.05)
    probs = softmax(logits * true, found)
    p = Predictions(labels, probs.argmax(axis=1), probs, tuple("abcd"))
    assert metrics["ece"](p) < 0.02


def test_temperature_is_the_least_loss_on_a_grid() -> None:
    logits, labels = calibrated(500, seed=2)
    logits *= 3

    def loss(temperature: float) -> float:
        return -np.log(softmax(logits, temperature)[np.arange(500), labels]).mean()

    grid = np.geomspace(1, 10, 2000)
    assert fit_temperature(logits, labels) == pytest.approx(
        grid[np.argmin([loss(t) for t in grid])], rel=0.05
    )


@pytest.mark.parametrize("n", [1, 10, 300])
def test_perfect_separation_gives_no_certainty(n: int) -> None:
    labels = np.arange(n) % 3
    logits = np.eye(3)[labels] * 5
    probs = softmax(logits, fit_temperature(logits, labels))
    assert probs.max() == pytest.approx(1 - 1 / (n + 2), abs=1e-4)


@pytest.mark.parametrize("logits", [np.zeros((4, 3)), np.eye(3)[[1, 2, 0, 1]] * 50])
def test_temperature_of_useless_logits_stays_in_range(logits: np.ndarray) -> None:
    assert 0.02 <= fit_temperature(logits, np.array([0, 1, 2, 0])) <= 50


def test_reliability_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    positive = generator.uniform(0.5, 1, 400)
    labels = (generator.random(400) < positive).astype(int)
    rows = reliability(np.column_stack([1 - positive, positive]), labels, bins=10)
    accuracy, confidence = calibration_curve(labels, positive, n_bins=10)
    filled = [row for row in rows if row["n"]]
    assert [row["accuracy"] for row in filled] == pytest.approx(accuracy, abs=1e-9)
    assert [row["confidence"] for row in filled] == pytest.approx(confidence, abs=1e-9)
    assert sum(row["n"] for row in rows) == 400
    assert rows[0] == {"low": 0.0, "high": 0.1, "n": 0, "confidence": None, "accuracy": None}


def test_reliability_gives_the_calibration_error() -> None:
    logits, labels = calibrated(500, seed=5)
    probs = softmax(logits, 0.5)
    rows = [row for row in reliability(probs, labels) if row["n"]]
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 500
    p = Predictions(labels, probs.argmax(axis=1), probs, tuple("abcd"))
    assert metrics["ece"](p) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("coverage", [0.803, 0.905, 0.953])
def test_prediction_sets_agree_with_crepes(coverage: float) -> None:
    """crepes rounds the rank up, so its sets are the same or larger, by one rank at most."""
    logits, labels = calibrated(1200, seed=7)
    probs = softmax(logits)
    ours = prediction_sets(probs[600:], fit_conformal(probs[:600], labels[:600], coverage))
    rounded_up = by_crepes(probs, labels, coverage)
    assert (ours <= rounded_up).all()
    counts = np.bincount(labels[:600])
    below = coverage - 1 / (counts.min() + 1)
    assert (by_crepes(probs, labels, below) <= ours).all()


def by_crepes(probs: np.ndarray, labels: np.ndarray, coverage: float) -> np.ndarray:
    """Prediction sets of rows 600 and on, calibrated on those before."""
    reference = ConformalClassifier()
    own = 1 - probs[np.arange(600), labels[:600]]
    reference.fit(own, bins=labels[:600])
    columns = [
        reference.predict_set(
            np.repeat(1 - probs[600:, [c]], 4, axis=1),
            bins=np.full(600, c),
            confidence=coverage,
            smoothing=False,
        )[:, 0]
        for c in range(4)
    ]
    return np.column_stack(columns).astype(bool)


def test_every_class_is_covered() -> None:
    """Over many calibration draws the mean coverage of each class is nominal, few images or many;
    rounding the rank up would give .923 with 12 images a class."""
    for images in (12, 45, 100):
        held = []
        for seed in range(200):
            logits, labels = calibrated(4 * images + 1000, seed=seed)
            probs = softmax(logits * 2)  # overconfident: the promise must not need calibration
            cut = 4 * images
            thresholds = fit_conformal(probs[:cut], labels[:cut], 0.9)
            if ALWAYS_INCLUDED in thresholds:
                continue
            sets = prediction_sets(probs[cut:], thresholds)[np.arange(1000), labels[cut:]]
            held.append([sets[labels[cut:] == c].mean() for c in range(4)])
        means = np.mean(held, axis=0)
        assert np.abs(means - 0.9).max() < 0.012, (images, means)


def test_rare_classes_are_always_included_and_said_so() -> None:
    probs = np.full((9, 3), 1 / 3)
    thresholds = fit_conformal(probs, np.array([0] * 9), 0.9)
    assert thresholds[0] == pytest.approx(2 / 3)
    assert thresholds[1:] == [ALWAYS_INCLUDED, ALWAYS_INCLUDED]
    assert always_included(thresholds, ["a", "b", "c"]) == ["b", "c"]
    assert prediction_sets(np.array([[1.0, 0, 0]]), thresholds).tolist() == [[True, True, True]]
    assert fit_conformal(probs[:8], np.array([0] * 8), 0.9)[0] == ALWAYS_INCLUDED
    assert json.loads(json.dumps(thresholds)) == thresholds


def test_coverage_counts_what_sets_hold() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], dtype=bool)
    found = coverage(sets, np.array([0, 1, 2, 0]))
    assert found["n"] == 4 and found["coverage"] == 0.5 and found["mean_size"] == 1.25
    assert found["single"] == found["empty"] == 0.25
    low, high = found["coverage_ci"]
    assert low < 0.5 < high and low == pytest.approx(1 - high)


def test_bad_input_is_one_sentence() -> None:
    probs, labels = np.full((2, 2), 0.5), np.array([0, 1])
    with pytest.raises(InputError, match="above 0"):
        softmax(probs, 0)
    with pytest.raises(InputError, match="between 0 and 1"):
        fit_conformal(probs, labels, 90)
    with pytest.raises(InputError, match="labels 0 to 2"):
        fit_conformal(probs, np.array([0, 2]))
    with pytest.raises(InputError, match="not finite in row 1"):
        fit_temperature(np.array([[0.0, 1], [np.nan, 1]]), labels)
    with pytest.raises(InputError, match="one threshold a class"):
        prediction_sets(probs, [0.5])
    with pytest.raises(InputError, match="shape"):
        reliability(probs, labels[:1])
    with pytest.raises(InputError, match="0 bins"):
        reliability(probs, labels, bins=0)


def test_what_predict_needs_starts_fast() -> None:
    """softmax, prediction sets and novelty scores must not load SciPy or scikit-learn."""
    code = (
        "import sys, leukoscope.evaluate.calibration, leukoscope.evaluate.novelty\n"
        "print([m for m in ('scipy', 'sklearn', 'pandas', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
