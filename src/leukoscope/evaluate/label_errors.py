"""Likely label errors by confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leukoscope.evaluate.calibration import checked


@dataclass(frozen=True)
class Suspects:
    """Images whose given label held-out predictions confidently contradict, worst first.

    rows: (m,) positions in the input. suggested: (m,) the class that each seems to be instead.
    thresholds: (k,) mean self-confidence of each class, NaN of a class without an image. joint:
    (k, k) int, the confident joint: images of a given label (rows) that confidently are of a class
    (columns); images that are confidently of none are not counted.
    """

    rows: np.ndarray
    suggested: np.ndarray
    thresholds: np.ndarray
    joint: np.ndarray


def suspects(probs: np.ndarray, labels: np.ndarray) -> Suspects:
    """Find likely label errors in probabilities (n, k) that no training image of them shaped.

    labels: (n,) integers, the given ones. A class's threshold is the mean probability that images
    labelled so get for it; an image confidently is of the most probable class among those whose
    threshold it reaches (equation 1 there, ties to the first class). Suspects are the off-diagonal
    of that confident joint, ordered by the probability of the given label minus that of the
    suggested one, lowest first. Raises InputError for shapes, ranges or values out of place.
    """
    probs, labels = checked(probs, labels, "probs")
    n, k = probs.shape
    counts = np.bincount(labels, minlength=k)
    own = probs[np.arange(n), labels]
    sums = np.bincount(labels, weights=own, minlength=k)
    thresholds = np.divide(sums, counts, out=np.full(k, np.nan), where=counts > 0)
    # The mean of equal numbers may be larger than each of them by rounding.
    reached = probs >= thresholds - 1e-12
    confident = np.where(reached, probs, -1.0).argmax(axis=1)
    known = reached.any(axis=1)
    joint = np.zeros((k, k), dtype=np.int64)
    np.add.at(joint, (labels[known], confident[known]), 1)
    rows = np.flatnonzero(known & (confident != labels))
    margin = own[rows] - probs[rows, confident[rows]]
    rows = rows[np.argsort(margin, kind="stable")]
    return Suspects(rows, confident[rows], thresholds, joint)
