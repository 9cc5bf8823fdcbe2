"""Balancing touches the labels it is given, and those are of training images alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from leukoscope.data.balance import class_weights, replicate

labels_of = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


def test_class_weights_are_scikit_learns_and_the_papers() -> None:
    labels = np.repeat([0, 1, 2, 3], [358, 685, 668, 557])  # Audina et al. 2026, training part
    found = class_weights(labels, 4)
    np.testing.assert_allclose(found, 2268 / (np.array([358, 685, 668, 557]) * 4), rtol=1e-6)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="each at least once"):
        class_weights(np.array([0, 0, 2]), 3)


@given(labels_of, st.integers(0, 9))
def test_replicas_make_every_class_as_large_as_the_largest(labels: np.ndarray, seed: int) -> None:
    found = replicate(labels, np.random.default_rng(seed))
    counts = np.bincount(labels)
    again = np.bincount(labels[found.places], minlength=len(counts))
    assert (again[counts > 0] == counts.max()).all()
    assert not again[counts == 0].any()
    assert found.places[: len(labels)].tolist() == list(range(len(labels)))
    assert not found.copies[: len(labels)].any()
    for label in np.flatnonzero(counts):
        times = np.bincount(found.places, minlength=len(labels))[labels == label]
        full = counts.max() // counts[label]
        assert set(times) <= {full, full + 1}, "in full as often as fits, then some once more"
    pairs = set(zip(found.places.tolist(), found.copies.tolist(), strict=True))
    assert len(pairs) == len(found.places), "each replica has a number of its own"


def test_the_remainder_is_drawn_by_the_generator() -> None:
    labels = np.array([0] * 10 + [1] * 7)
    one, same, other = (replicate(labels, np.random.default_rng(s)).places for s in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
