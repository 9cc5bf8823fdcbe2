"""Likely label errors: by hand, and where errors were planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukoscope.errors import InputError
from leukoscope.evaluate.label_errors import suspects

BY_HAND = np.array(
    [
        [0.9, 0.1, 0.0],  # labelled 0: confidently 0
        [0.7, 0.2, 0.1],  # labelled 0: confidently 0, if less so
        [0.1, 0.8, 0.1],  # labelled 0: confidently 1
        [0.2, 0.8, 0.0],  # labelled 1: confidently 1
        [0.6, 0.4, 0.0],  # labelled 1: confidently 0
        [0.3, 0.3, 0.4],  # labelled 1: confidently of none
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_thresholds_joint_and_order_by_hand() -> None:
    found = suspects(BY_HAND, LABELS)
    # Class 0: (.9 + .7 + .1) / 3; class 1: (.8 + .4 + .3) / 3; class 2 has no image.
    assert found.thresholds[:2] == pytest.approx([1.7 / 3, 0.5])
    assert np.isnan(found.thresholds[2])
    assert found.joint.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    # Margins: .1 - .8 for image 2, .4 - .6 for image 4.
    assert found.rows.tolist() == [2, 4]
    assert found.suggested.tolist() == [1, 0]


def test_an_image_may_disagree_without_being_a_suspect() -> None:
    """Argmax alone isn't confident: the class's own images are surer than this one."""
    probs = np.array([[0.95, 0.05], [0.97, 0.03], [0.45, 0.55], [0.02, 0.98], [0.04, 0.96]])
    found = suspects(probs, np.array([0, 0, 0, 1, 1]))
    assert found.thresholds[1] == pytest.approx(0.97)
    assert len(found.rows) == 0


def test_equal_confidence_reaches_its_own_mean() -> None:
    probs = np.tile([0.1, 0.9], (7, 1))
    assert suspects(probs, np.ones(7, dtype=int)).joint.tolist() == [[0, 0], [0, 7]]


@pytest.mark.parametrize(("share", "least"), [(0.02, 0.65), (0.08, 0.8), (0.2, 0.9)])
def test_planted_errors_are_found(share: float, least: float) -> None:
    """Most planted errors are among the suspects, and few suspects are anything else."""
    rng = np.random.default_rng(3)
    k, n = 6, 3000
    truth = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k)) + 5.0 * np.eye(k)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    planted = rng.random(n) < share
    given_labels = np.where(planted, (truth + rng.integers(1, k, n)) % k, truth)
    found = suspects(probs, given_labels)
    hits = planted[found.rows]
    assert hits.sum() >= least * planted.sum()
    assert hits.mean() >= 0.95
    assert (found.suggested[hits] == truth[found.rows][hits]).mean() >= 0.97


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_what_holds_of_any_input(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs, labels = rng.dirichlet(np.full(k, 0.3), n), rng.integers(0, k, n)
    found = suspects(probs, labels)
    assert (found.suggested != labels[found.rows]).all()
    assert len(found.rows) == found.joint.sum() - np.trace(found.joint) <= n
    reached = probs[found.rows, found.suggested]
    assert (reached >= found.thresholds[found.suggested] - 1e-9).all()
    margin = probs[found.rows, labels[found.rows]] - reached
    assert (np.diff(margin) >= 0).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="labels"):
        suspects(BY_HAND, LABELS[:2])
    with pytest.raises(InputError, match="not finite"):
        suspects(BY_HAND * np.nan, LABELS)
