"""Differential and agreement equal what `evaluate` and scikit-learn compute."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from leukoscope.evaluate.intervals import wilson
from leukoscope.review.differential import Share, agreement, count

CLASSES = ["neutrophil", "lymphocyte", "monocyte", "erythroblast"]


def test_shares_are_of_leukocytes_with_the_rest_beside() -> None:
    labels = ["neutrophil"] * 6 + ["lymphocyte"] * 2 + ["erythroblast"] * 3 + ["artefact"] * 5
    shares = count(labels, CLASSES)
    assert [(s.name, s.count, s.share) for s in shares] == [
        ("neutrophil", 6, 0.75),
        ("lymphocyte", 2, 0.25),
        ("monocyte", 0, 0.0),
        ("erythroblast", 3, None),
        ("artefact", 5, None),
    ]


def test_no_leukocyte_no_share() -> None:
    assert count(["artefact"], CLASSES)[0] == Share("neutrophil", 0, None, None, None)
    assert [s.count for s in count([], CLASSES)] == [0, 0, 0, 0]


@given(st.integers(0, 300), st.integers(0, 300))
def test_intervals_are_those_of_evaluate(some: int, others: int) -> None:
    if some + others == 0:
        return
    share = count(["neutrophil"] * some + ["lymphocyte"] * others, CLASSES)[0]
    low, high = wilson(some, some + others)
    assert share.low == pytest.approx(low, abs=1e-12)
    assert share.high == pytest.approx(high, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_cohens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.choice(CLASSES, 80)
    second = np.where(rng.random(80) < 0.7, first, rng.choice([*CLASSES, "artefact"], 80))
    found = agreement(first.tolist(), second.tolist())
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert found.share == pytest.approx(np.mean(first == second))
    assert found.agreed == int(np.sum(first == second))


def test_what_is_undefined_says_why() -> None:
    assert agreement([], []).kappa is None
    assert agreement([], []).share is None
    alike = agreement(["monocyte"] * 3, ["monocyte"] * 3)
    assert (alike.share, alike.kappa) == (1.0, None)
    assert "one class only" in alike.reason
