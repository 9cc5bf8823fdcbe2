"""Novelty on synthetic features with the structure that networks' features have."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from leukoscope.bundle.inference import Answers
from leukoscope.errors import InputError
from leukoscope.evaluate.novelty import fit, score

CLASSES, DIMENSIONS = 4, 200
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def world(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "means": generator.normal(0, 1, (CLASSES, DIMENSIONS)) + 4,
        "axes": generator.normal(0, 1, (12, DIMENSIONS)),
    }


def cells(n: int, seed: int, *, shift: float = 0.0, noise: float = 0.3) -> Sample:
    """Synthetic features, labels and logits: classes that vary along a few shared axes."""
    generator = np.random.default_rng(seed)
    known = world()
    labels = np.arange(n) % CLASSES
    along = generator.normal(0, 1, (n, 12)) + shift
    features = known["means"][labels] + 0.4 * along @ known["axes"]
    features = features + generator.normal(0, noise, (n, DIMENSIONS))
    return features, labels, features @ (known["means"] - known["means"].mean(axis=0)).T / 10


def midway(n: int, seed: int) -> np.ndarray:
    """Features that vary as cells do, around the centre of all classes."""
    features, labels, _ = cells(n, seed)
    means = world()["means"]
    return features - means[labels] + means.mean(axis=0)


@pytest.fixture(scope="module")
def statistics() -> dict[str, Any]:
    features, labels, _ = cells(800, 1)
    validation, _, logits = cells(300, 2)
    return fit(features, labels, validation, logits)


def area(statistics: dict[str, Any], foreign: np.ndarray, logits: np.ndarray) -> float:
    own, _, own_logits = cells(300, 3)
    scores = [score(own, own_logits, statistics), score(foreign, logits, statistics)]
    truth = np.repeat([0, 1], [len(own), len(foreign)])
    return float(roc_auc_score(truth, np.concatenate(scores)))


def test_acceptance_is_kept_on_new_images(statistics: dict[str, Any]) -> None:
    own, _, logits = cells(1000, 4)
    accepted = (score(own, logits, statistics) <= statistics["threshold"]).mean()
    assert accepted == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("kind", ["other world", "off the subspace", "between", "far along"])
def test_foreign_features_score_higher(statistics: dict[str, Any], kind: str) -> None:
    generator = np.random.default_rng(9)
    foreign, _, logits = {
        "other world": lambda: (generator.normal(4, 1, (100, DIMENSIONS)), None, None),
        "off the subspace": lambda: cells(100, 5, noise=0.6),
        "between": lambda: (midway(100, 5), None, None),
        "far along": lambda: cells(100, 6, shift=3),
    }[kind]()
    # Whatever the head says: also when it is as sure as it ever is of its own images.
    sure = cells(100, 7)[2]
    assert area(statistics, foreign, sure if logits is None else logits) >= 0.97


def test_confidence_never_makes_an_image_familiar(statistics: dict[str, Any]) -> None:
    features, _, logits = cells(50, 8)
    plain = score(features, logits, statistics)
    assert (score(features, logits + 1000, statistics) <= plain + 1e-9).all()
    foreign = np.random.default_rng(90).normal(4, 1, (50, DIMENSIONS))
    loud = score(foreign, np.eye(CLASSES)[np.arange(50) % CLASSES] * 1e4, statistics)
    assert (loud > statistics["threshold"]).all()
    assert (score(features, logits - 1000, statistics) > plain).all()


def test_statistics_are_small_plain_json(statistics: dict[str, Any]) -> None:
    text = json.dumps(statistics, allow_nan=False)
    assert len(text) < 70_000
    again = json.loads(text)
    features, _, logits = cells(20, 10)
    np.testing.assert_array_equal(
        score(features, logits, again), score(features, logits, statistics)
    )


def test_blank_and_broken_features_are_novel(statistics: dict[str, Any]) -> None:
    features, _, logits = cells(3, 11)
    features[0] = 0
    features[1, 5] = np.nan
    logits[2, 0] = np.inf
    scores = score(features, logits, statistics)
    assert scores[0] > statistics["threshold"]
    assert np.isinf(scores[1:]).all()
    assert score(features[:0], logits[:0], statistics).shape == (0,)


@pytest.mark.parametrize(("n", "d", "k"), [(2, 3, 2), (12, 4, 1), (40, 1, 2), (30, 500, 3)])
def test_small_and_odd_sets_still_give_a_finite_score(n: int, d: int, k: int) -> None:
    generator = np.random.default_rng(n)
    features = generator.random((n, d)) + 0.1
    features[0, 0] = 5
    if d == 1:
        features[::2] *= -1
    logits = generator.normal(size=(n, k))
    found = fit(features, np.arange(n) % k, features, logits)
    assert np.isfinite(score(features, logits, found)).all()
    json.dumps(found, allow_nan=False)


def test_bad_input_is_one_sentence(statistics: dict[str, Any]) -> None:
    features, labels, logits = cells(20, 12)
    with pytest.raises(InputError, match="allowed: \\(n, 200\\)"):
        score(features[:, :50], logits, statistics)
    with pytest.raises(InputError, match="same features"):
        fit(np.ones((20, 5)), labels, np.ones((20, 5)), logits)
    with pytest.raises(InputError, match="at least two training images"):
        fit(features, labels[:3], features, logits)
    with pytest.raises(InputError, match="acceptance of 95"):
        fit(features, labels, features, logits, acceptance=95)


def test_only_the_predicted_class_alone_is_beyond_doubt() -> None:
    probs = np.array([[0.7, 0.3, 0], [0.7, 0.3, 0], [0.7, 0.3, 0], [0.7, 0.3, 0], [0.7, 0.3, 0]])
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    said = Answers(probs, sets, np.array([0.5, 0.5, 0.5, 0.5, 1.5]), np.zeros((5, 2)))
    assert [said.flag(row) for row in range(5)] == ["", "doubtful", "doubtful", "doubtful", "novel"]
