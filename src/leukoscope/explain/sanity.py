"""Do heat maps depend on what was learned? (Adebayo et al. 2018, Sanity checks for saliency maps.)

A map that stays much the same when the weights are drawn at random shows the image's edges, not
the classifier's reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from leukoscope.explain.autograd import class_maps
from leukoscope.explain.energy import FEW, mean_interval
from leukoscope.models.classifier import Classifier

LIMIT = 0.5
"""Maps change where the whole interval of their mean rank correlation lies below this, and stay
much the same where it lies above."""
DRAWS = 3  # random networks, so that no single one decides


def randomised(
    trained: Classifier,
    untrained: Callable[[int], Classifier],
    images: Tensor,
    classes: Sequence[int],
) -> dict[str, Any]:
    """Spearman's rank correlation between maps with trained and with random weights.

    untrained: a seed to the same architecture with random weights. images: (n, 3, h, w), in the
    network's own format; classes: (n,), whose maps are compared, at the maps' own resolution.

    Returns {head, whole, passed, why}: of a random head on the trained backbone, and of a network
    that is random throughout, {value, low, high, n, groups}, the mean over images with its
    interval, each image by its mean over three draws. A map of one value has no ranks: such pairs
    are left out. `passed`: both intervals lie below `LIMIT`; False where one lies above; else None,
    with `why`.
    """
    own = _maps(trained, images, classes)
    correlations: dict[str, list[list[float]]] = {
        part: [[] for _ in classes] for part in ("head", "whole")
    }
    for seed in range(1, DRAWS + 1):
        blank = untrained(seed)
        for part, backbone in (("head", trained.backbone), ("whole", blank.backbone)):
            others = _maps(Classifier(backbone, blank.head), images, classes)
            for place, pair in enumerate(zip(own, others, strict=True)):
                found = rank_correlation(*pair)
                correlations[part][place] += [] if found is None else [found]
    result: dict[str, Any] = {
        part: mean_interval([float(np.mean(each)) if each else None for each in values])
        for part, values in correlations.items()
    }
    return result | _verdict([(result[part]["low"], result[part]["high"]) for part in correlations])


def _verdict(intervals: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    known = [(low, high) for low, high in intervals if low is not None and high is not None]
    if any(low > LIMIT for low, _ in known):
        return {"passed": False, "why": ""}
    if len(known) < len(intervals):
        return {"passed": None, "why": f"fewer than {FEW} images have maps that can be ranked"}
    if all(high < LIMIT for _, high in known):
        return {"passed": True, "why": ""}
    return {"passed": None, "why": f"an interval holds {LIMIT:g}, so that more images are needed"}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's between two maps of one shape, in [-1, 1]; None where one has a single value."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a.ravel(), b.ravel()).statistic)


def _maps(classifier: Classifier, images: Tensor, classes: Sequence[int]) -> list[np.ndarray]:
    """The map of each image's class, one image at a time: a dozen large networks' activations
    would fill a small computer's memory."""
    return [
        class_maps(classifier, image[None], [k])[0, 0].cpu().numpy()
        for image, k in zip(images, classes, strict=True)
    ]
