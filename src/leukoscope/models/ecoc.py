"""Error-correcting output codes of RBF support vector machines, decoded by their losses."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from leukoscope.compat import require
from leukoscope.parallel import ahead
from leukoscope.progress import track

ONEDAL_ROWS = 10_000  # from so many on oneDAL fits a machine, where it is installed
Coding = Literal["one_vs_rest", "one_vs_one"]
_CACHE_MB = 500  # kernel rows that each machine of libsvm's may keep while it trains
_ONEDAL_CACHE_MB = 3000  # oneDAL's machines, which follow each other; twice as fast as by 1500
_CHUNK_BYTES = 256 * 2**20  # kernel values that are in memory at once while predicting


def by_onedal(rows: int) -> bool:
    """Whether support vector machines of so many rows are fitted by scikit-learn-intelex.

    Its solutions are those of libsvm within both solvers' tolerance, in a fifteenth of the time.
    """
    return rows >= ONEDAL_ROWS and importlib.util.find_spec("sklearnex") is not None


def coding_matrix(classes: int, coding: Coding) -> np.ndarray:
    """The (classes, machines) int8 code: +1 and -1 are a machine's two sides, 0 stays out of it.

    One against the rest has a machine a class, one against one a machine a pair. Two classes are
    one problem, hence one machine, either way.
    """
    if classes == 2:
        return np.array([[1], [-1]], dtype=np.int8)
    if coding == "one_vs_rest":
        return (2 * np.eye(classes) - 1).astype(np.int8)
    first, second = np.triu_indices(classes, k=1)
    code = np.zeros((classes, len(first)), dtype=np.int8)
    code[first, np.arange(len(first))] = 1
    code[second, np.arange(len(second))] = -1
    return code


def decode(scores: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Loss-weighted decoding: (n, machines) binary scores to (n, classes) class scores <= 0.

    A class's score is the negative mean, over the machines it takes part in, of the hinge loss
    max(0, 1 - m s) / 2, m the class's code and s the machine's score (Allwein et al. 2000;
    Escalera et al. 2009, loss-weighted decoding; the default of MATLAB's fitcecoc).
    """
    weights = 2 * np.abs(code).sum(axis=1, dtype=float)
    positive, negative = (code > 0).T / weights, (code < 0).T / weights
    return -(np.maximum(0, 1 - scores) @ positive + np.maximum(0, 1 + scores) @ negative)


class OutputCodeSVM(ClassifierMixin, BaseEstimator):
    """Binary RBF support vector machines over a coding matrix, with loss-weighted decoding.

    `c` is the machines' penalty; `gamma` the kernel's rate, `scale` 1 / (d · variance of the
    features). It is fixed once for all machines, so they share one kernel: the fitted model holds
    every support vector once, and n rows cost n · vectors · d multiplications however many
    machines there are.

    Training is libsvm's: between n² and n³ kernel evaluations of d multiplications a machine on
    one core (machines run side by side), beside one float64 copy of the features. From
    `ONEDAL_ROWS` on it is oneDAL's where scikit-learn-intelex is installed, on all cores, with up
    to 3 GB of kernel rows beside the features: the same optimum within the tolerance of both
    solvers (1e-3), and the same numbers at every run.
    """

    def __init__(
        self, coding: Coding = "one_vs_rest", c: float = 1.0, gamma: float | str = "scale"
    ) -> None:
        self.coding = coding
        self.c = c
        self.gamma = gamma

    def fit(self, X: np.ndarray, y: np.ndarray) -> OutputCodeSVM:  # noqa: N803 - scikit-learn's
        """Fit on features (n, d) and labels (n,) of at least two classes."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # noqa: N806
        check_classification_targets(y)
        self.classes_, label = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("OutputCodeSVM needs two classes, got 1 class")
        self.code_ = coding_matrix(len(self.classes_), self.coding)
        self.gamma_ = self._rate(X)
        machines = self._machines(X, self.code_[label].T)
        used = np.unique(np.concatenate([support for support, _, _ in machines]))
        self.support_vectors_ = X[used]
        self.dual_coef_ = np.zeros((len(machines), len(used)))
        for row, (support, weights, _) in zip(self.dual_coef_, machines, strict=True):
            row[np.searchsorted(used, support)] = weights
        self.intercept_ = np.array([intercept for _, _, intercept in machines])
        return self

    def _rate(self, features: np.ndarray) -> float:
        if self.gamma != "scale":
            return float(self.gamma)
        variance = float(features.var(dtype=np.float64))
        return 1 / (features.shape[1] * variance) if variance > 0 else 1.0

    def _machines(
        self, features: np.ndarray, sides: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """Of each machine, a row of `sides` (machines, n) over {-1, 0, 1}: its support vectors' row
        numbers, their weights, and its intercept."""
        settings: dict[str, Any] = {"C": self.c, "gamma": self.gamma_}
        fitted: Iterator[tuple[np.ndarray, np.ndarray, float]]
        if by_onedal(len(features)):
            svm = require("sklearnex.svm", "fast").SVC
            settings["cache_size"] = _ONEDAL_CACHE_MB
            fitted = (_machine(svm(**settings), features, side) for side in sides)
        else:
            settings["cache_size"] = _CACHE_MB
            rows = features.astype(np.float64)  # converted here, the machines share it
            fitted = ahead(lambda side: _machine(SVC(**settings), rows, side), sides, len(sides))
        return list(track(fitted, "Support vector machines", len(sides)))

    def binary_scores(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """(n, machines) signed margins: above 0 on the +1 side, from 1 on without loss."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806
        vectors = self.support_vectors_.astype(np.float64)
        step = max(1, _CHUNK_BYTES // (8 * len(vectors)))
        parts = [
            rbf_kernel(X[start : start + step].astype(np.float64), vectors, self.gamma_)
            @ self.dual_coef_.T
            for start in range(0, len(X), step)
        ]
        return np.concatenate(parts) + self.intercept_

    def class_scores(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """(n, classes) scores as `decode` gives them, in the order of `classes_`."""
        return decode(self.binary_scores(X), self.code_)

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """The class scores; of two classes, as scikit-learn has it, (n,) second minus first."""
        scores = self.class_scores(X)
        return scores if len(self.classes_) > 2 else scores[:, 1] - scores[:, 0]

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """(n,) the class of the highest score."""
        best = self.class_scores(X).argmax(axis=1)
        return self.classes_[best]


def _machine(
    machine: SVC, features: np.ndarray, side: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Row numbers of a machine's support vectors, their weights, and its intercept."""
    taking_part = np.flatnonzero(side)
    rows = features if len(taking_part) == len(side) else features[taking_part]
    machine.fit(rows, side[taking_part])
    intercept = float(np.ravel(machine.intercept_)[0])
    return taking_part[machine.support_], machine.dual_coef_[0], intercept
