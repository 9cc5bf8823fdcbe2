"""Splits within the training rows, for models that learn from what other models predict."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from leukoscope.errors import InputError, some


@dataclass(frozen=True)
class InnerSplits:
    """(training rows, held-out rows) of each part; every row is held out once.

    `torn` are the classes of a single group, whose rows stand on both sides for want of another.
    """

    parts: list[tuple[np.ndarray, np.ndarray]]
    torn: list[int]


def inner_splits(
    labels: np.ndarray,
    groups: Iterable[Hashable],
    folds: int,
    seed: int,
    images: Iterable[Hashable] | None = None,
) -> InnerSplits:
    """At most `folds` stratified parts that keep groups together, no class held out wholly.

    A class of one group alone would be missing whenever that group is held out; then the group is
    split up by `images` (n,), whose views and replicas stay together, by rows where the class has
    a single image, and the class is named in `torn`. Raises InputError where a
    class has a single row, which can't be on two sides.
    """
    group = _numbered(groups)
    image = np.arange(len(labels)) if images is None else _numbered(images)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        lone = [str(c) for c in classes[counts < 2]]
        raise InputError(
            f"Class number {some(lone)} has a single image for training; "
            "svm and stacking need two for their inner split",
            fix="Add images of it, leave it out, or choose another classifier.",
            field="classical.classifier",
        )
    torn = [int(c) for c in classes if len(np.unique(group[labels == c])) == 1]
    for label in classes:
        own = labels == label
        if len(np.unique(image[own])) == 1:
            image[own] = image.max() + 1 + np.arange(own.sum())
    split_up = np.isin(labels, torn)
    group[split_up] = group.max() + 1 + image[split_up]
    parts = _grouped_parts(labels, group, folds, seed)
    # Patients may share their classes in such a way that no grouping works at all.
    for finer in (image, np.arange(len(labels))):
        if parts is None:
            torn = [int(c) for c in classes]
            parts = _grouped_parts(labels, finer, folds, seed)
    assert parts is not None, "two rows of each class always make two parts"
    return InnerSplits(parts, torn)


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
    """Integers from 0, by first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])


def _grouped_parts(
    labels: np.ndarray, group: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The parts, as many as work up to `folds`; None where no number of them does."""
    from sklearn.model_selection import StratifiedGroupKFold

    classes, counts = np.unique(labels, return_counts=True)
    for number in range(min(folds, len(np.unique(group)), counts.max()), 1, -1):
        splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # A class of fewer rows than parts is fine: it need not be in every held-out part.
            warnings.filterwarnings("ignore", message="The least populated class")
            parts = list(splitter.split(labels, labels, group))
        if all(len(h) and len(np.unique(labels[t])) == len(classes) for t, h in parts):
            return parts
    return None
