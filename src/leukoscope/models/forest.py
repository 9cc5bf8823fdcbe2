"""A random forest that grows on all cores and answers the same way every time."""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
from sklearn.ensemble import RandomForestClassifier

from leukoscope.parallel import WORKERS


class Forest(RandomForestClassifier):
    """scikit-learn's random forest, grown by as many threads as there are cores.

    Each tree has a seed of its own, so threads don't change it. Answering is left to one thread
    (`n_jobs` None), since several add up the trees' probabilities in any order, whose rounding
    then differs from run to run.
    """

    def fit(self, X: Any, y: Any, sample_weight: np.ndarray | None = None) -> Forest:  # noqa: N803
        """Fit on features (n, d) and labels (n,)."""
        with joblib.parallel_config("threading", n_jobs=WORKERS):
            return super().fit(X, y, sample_weight)
