"""Calibration: temperature, reliability, and prediction sets that keep their promise.

Everything fitted here is plain JSON, since it travels in a bundle's contract. `softmax` and
`prediction_sets` need numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from leukoscope.errors import InputError
from leukoscope.evaluate.metrics import ECE_BINS, confidence_bins

TEMPERATURES = (0.02, 50.0)
ALWAYS_INCLUDED = 1.0
"""A class's threshold where it has too few calibration images: it is in every prediction set."""


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (n, k) of logits (n, k) divided by a temperature above 0."""
    if not temperature > 0:
        raise InputError(
            f"Got a temperature of {temperature}; allowed: above 0",
            fix="Use 1 for no change.",
            field="temperature",
        )
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least log loss on validation logits (n, k) (Guo et al. 2017).

    labels: (n,) integers. The loss is convex in 1 / T. As in Platt (1999), the target is
    1 - 1 / (n + 2) for the true class rather than 1, the rest shared evenly: a validation set
    that is separated perfectly then gives a confidence that n images can support, not certainty.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits, labels = checked(logits, labels, "logits")
    n, k = logits.shape
    if k == 1:
        return 1.0
    doubt = 1 / (n + 2)
    target = np.full((n, k), doubt / (k - 1))
    target[np.arange(n), labels] = 1 - doubt
    wanted = float((target * logits).sum(axis=1).mean())

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        return float(logsumexp(sharpness * logits, axis=1).mean() - sharpness * wanted)

    # Convex in 1 / T and monotone between the two: one minimum on the log scale as well.
    found = minimize_scalar(
        loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-9}
    )
    return float(np.exp(found.x))


def reliability(
    probs: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS
) -> list[dict[str, float | int | None]]:
    """Rows {low, high, n, confidence, accuracy} of the reliability diagram.

    Equal-width bins (low, high] of the most probable class's probability; confidence and accuracy
    are means over the bin's images, None where it holds none.
    """
    probs, labels = checked(probs, labels, "probs")
    if bins < 1:
        raise InputError(f"Got {bins} bins; allowed: at least one", fix="Use 15.", field="bins")
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    place = confidence_bins(confidence, bins)
    rows: list[dict[str, float | int | None]] = []
    for index in range(bins):
        inside = place == index
        some = bool(inside.any())
        rows.append(
            {
                "low": index / bins,
                "high": (index + 1) / bins,
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()) if some else None,
                "accuracy": float(correct[inside].mean()) if some else None,
            }
        )
    return rows


def fit_conformal(probs: np.ndarray, labels: np.ndarray, coverage: float = 0.9) -> list[float]:
    """Thresholds (k,) of class-conditional conformal prediction (Vovk 2012, Mondrian).

    probs (n, k) and labels (n,) of calibration images. Nonconformity is 1 - p of the true class; a
    class's threshold is its (n_c + 1) coverage-th smallest, interpolated between the two nearest
    (Hutson 1999), so that sets hold the true class with a probability of about `coverage`, for
    each class by itself. Rounded up instead, 45 images give .913 for .9. A class with too few
    images (fewer than coverage / (1 - coverage)) gets ALWAYS_INCLUDED.
    """
    probs, labels = checked(probs, labels, "probs")
    if not 0 < coverage < 1:
        raise InputError(
            f"Got a coverage of {coverage}; allowed: between 0 and 1",
            fix="Use 0.9 for sets that hold the true class nine times of ten.",
            field="coverage",
        )
    thresholds = []
    for c in range(probs.shape[1]):
        scores = np.sort(1 - probs[labels == c, c])
        rank = (len(scores) + 1) * coverage  # counted from 1
        # The subtrahend keeps 0.9 * 10 from counting as more than 9.
        enough = rank >= 1 and rank - 1e-9 <= len(scores)
        found = np.interp(rank, np.arange(1, len(scores) + 1), scores) if enough else None
        thresholds.append(ALWAYS_INCLUDED if found is None else float(found))
    return thresholds


def always_included(thresholds: list[float], classes: list[str]) -> list[str]:
    """The classes that are in every prediction set, for want of calibration images."""
    return [
        name
        for name, threshold in zip(classes, thresholds, strict=True)
        if threshold >= ALWAYS_INCLUDED
    ]


def prediction_sets(probs: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """(n, k) booleans: which classes stay possible for each image; a row may be empty.

    An empty row says that the image is unlike every class's calibration images.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 2 or probs.shape[1] != len(thresholds):
        raise InputError(
            f"Got probs of shape {probs.shape} and {len(thresholds)} thresholds",
            fix="Give one threshold a class.",
            field="thresholds",
        )
    # Single precision in between must not push a calibration image over its own threshold.
    return 1 - probs <= np.asarray(thresholds) + 1e-7


def coverage(sets: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How prediction sets (n, k) keep their promise on n images with labels (n,).

    `n`; `coverage`, the share of sets that hold the true class, with its 95 % interval
    `coverage_ci` (Wilson); `mean_size` of a set; `empty` and `single`, shares of sets of no and of
    one class.
    """
    from leukoscope.evaluate.intervals import wilson

    held, size = sets[np.arange(len(labels)), labels], sets.sum(axis=1)
    return {
        "n": len(labels),
        "coverage": float(held.mean()),
        "coverage_ci": list(wilson(int(held.sum()), len(held))),
        "mean_size": float(size.mean()),
        "empty": float((size == 0).mean()),
        "single": float((size == 1).mean()),
    }


def checked(values: Any, labels: Any, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, k) as float64 and labels (n,) as int64; InputError naming `field` where they don't
    fit each other, hold a value that isn't finite or a label that isn't in 0 to k - 1."""
    values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or labels.shape != values.shape[:1] or len(labels) == 0:
        raise InputError(
            f"Got {field} of shape {values.shape} and labels of shape {labels.shape}; "
            "allowed: (n, k) and (n,) with at least one row",
            fix="Give one label a row.",
            field=field,
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InputError(
            f"{field} has a value that is not finite in row {row}",
            fix="Check the model's output.",
            field=field,
        )
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise InputError(
            f"Got labels {labels.min()} to {labels.max()} for {values.shape[1]} classes",
            fix="Check the order and number of classes.",
            field="labels",
        )
    return values, labels.astype(np.int64)
