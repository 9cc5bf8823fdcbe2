"""How much of a heat map's energy lies in the cell and in its nucleus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from leukoscope.explain.gradcam import enlarged
from leukoscope.imaging.cells import box_of

FEW = 3  # groups below which an interval of a mean says nothing


def cell_of(nucleus: np.ndarray) -> np.ndarray:
    """The box of the cell around its nucleus (imaging.cells.box_of), bool (H, W) both."""
    box = box_of(nucleus)
    cell = np.zeros_like(nucleus)
    cell[box.y : box.y + box.height, box.x : box.x + box.width] = True
    return cell


def share(heat: np.ndarray, mask: np.ndarray) -> float | None:
    """The share of a heat map's sum inside a mask, in [0, 1]; None where the map is all zeros.

    heat: (h, w) in [0, 1], enlarged to the mask's size first. mask: bool (H, W). This is the
    proportion of the energy-based pointing game (Wang et al. 2020, Score-CAM, section 4.3).
    """
    large = enlarged(heat, *mask.shape).astype(np.float64)
    total = large.sum()
    return float(large[mask].sum() / total) if total > 0 else None


def mean_interval(
    values: Sequence[float | None], groups: Sequence[object] | None = None, level: float = 0.95
) -> dict[str, Any]:
    """{value, low, high, n, groups}: a mean over groups (patients) with Student's t interval.

    Each group counts once, by the mean of its values; without `groups`, or where one is None, a
    value is its own group. None values are left out. value is None without values, low and high
    below three groups.
    """
    known: dict[object, list[float]] = {}
    for place, value in enumerate(values):
        group = None if groups is None else groups[place]
        if value is not None:
            known.setdefault(("alone", place) if group is None else group, []).append(value)
    means = np.array([np.mean(each) for each in known.values()])
    found: dict[str, Any] = {"value": float(means.mean()) if len(means) else None, "low": None,
                             "high": None, "n": sum(map(len, known.values())),
                             "groups": len(means)}  # fmt: skip
    if len(means) >= FEW:
        error = means.std(ddof=1) / np.sqrt(len(means))
        reach = float(stats.t.ppf((1 + level) / 2, len(means) - 1) * error)
        found |= {"low": found["value"] - reach, "high": found["value"] + reach}
    return found
