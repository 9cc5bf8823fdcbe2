"""What a classifier said, checked once where it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leukoscope.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Predictions:
    """What a classifier said about n images of k classes.

    labels, predicted: (n,) integer positions in `classes`. probs: (n, k) in [0, 1], rows summing
    to 1 within 1e-3, columns in the order of `classes`; None where unknown. `predicted` need not
    be the row's maximum (a foreign tool may use own thresholds).
    Raises InputError naming the first bad row.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probs: np.ndarray | None
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        _check_classes(self.classes)
        labels = _positions(self.labels, len(self.classes), "labels")
        object.__setattr__(self, "labels", labels)
        predicted = _positions(self.predicted, len(self.classes), "predicted")
        object.__setattr__(self, "predicted", predicted)
        _check_length(len(labels), len(predicted))
        if self.probs is not None:
            probs = np.asarray(self.probs, dtype=np.float64)
            _check_probs(probs, len(labels), len(self.classes))
            object.__setattr__(self, "probs", probs)

    @classmethod
    def from_names(
        cls,
        labels: Sequence[str],
        predicted: Sequence[str],
        probs: np.ndarray | None,
        classes: Sequence[str],
    ) -> Predictions:
        """Predictions from class names; UnknownNameError with the nearest match otherwise."""
        classes = tuple(classes)
        _check_classes(classes)
        rows = [_lookup(names, classes) for names in (labels, predicted)]
        return cls(rows[0], rows[1], probs, classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """(n,) whether the predicted class is the true one."""
        return self.labels == self.predicted

    def take(self, rows: np.ndarray) -> Predictions:
        """The predictions of these rows (positions or a mask)."""
        probs = None if self.probs is None else self.probs[rows]
        return Predictions(self.labels[rows], self.predicted[rows], probs, self.classes)


def _check_classes(classes: tuple[str, ...]) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise InputError(
            f"Got {len(classes)} class names of which {len(set(classes))} are different",
            fix="Give each class one name of its own.",
            field="classes",
        )


def _positions(values: np.ndarray, k: int, field: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{field} is an array of shape {array.shape} and type {array.dtype}; "
            "allowed: one dimension of integers",
            fix="Use Predictions.from_names for class names.",
            field=field,
        )
    bad = np.flatnonzero((array < 0) | (array >= k))
    if len(bad):
        raise InputError(
            f"{field} has {array[bad[0]]} in row {bad[0]}; allowed: 0 to {k - 1}",
            fix="Check the order and number of classes.",
            field=field,
        )
    return array.astype(np.int64)


def _check_length(labels: int, predicted: int) -> None:
    if labels != predicted:
        raise InputError(
            f"Got {labels} labels and {predicted} predictions",
            fix="Give one label and one prediction an image.",
            field="predicted",
        )
    if labels == 0:
        raise InputError(
            "Got no predictions; at least one is needed",
            fix="Check that the file has rows below its header.",
            field="labels",
        )


def _check_probs(probs: np.ndarray, n: int, k: int) -> None:
    if probs.shape != (n, k):
        raise InputError(
            f"probs has shape {probs.shape}; allowed: {(n, k)}, a row an image, a column a class",
            fix="Give a probability for every class, in the order of the classes.",
            field="probs",
        )
    with np.errstate(invalid="ignore"):
        outside = ~((probs >= -1e-6) & (probs <= 1 + 1e-6)).all(axis=1)
    bad = np.flatnonzero(outside | ~(np.abs(probs.sum(axis=1) - 1) <= 1e-3))
    if len(bad):
        row = probs[bad[0]]
        raise InputError(
            f"probs has {np.array2string(row, precision=4, threshold=8)} in row {bad[0]} "
            f"(sum {row.sum():.4g}); allowed: values in 0 to 1 that sum to 1",
            fix="Give probabilities, not logits or percentages.",
            field="probs",
        )


def _lookup(names: Sequence[str], classes: tuple[str, ...]) -> np.ndarray:
    place = {name: position for position, name in enumerate(classes)}
    unknown = next((name for name in names if name not in place), None)
    if unknown is not None:
        raise UnknownNameError("class", str(unknown), classes, field="label")
    return np.array([place[name] for name in names], dtype=np.int64)
