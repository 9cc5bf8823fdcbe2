"""Novelty: how far an image is from what a classifier was trained on.

Three squared terms, each in units of its median over validation images: the Mahalanobis distance to
the nearest class mean, inside the principal subspace of the training features (Lee et al. 2018);
the distance from that subspace (the residual of ViM, Wang et al. 2022); and the free energy of the
logits (Liu et al. 2020), counted only where it is higher than usual. A linear head is often surer
of foreign images than of its own (energy alone: AUROC 0.06 on foreign smears), so low energy is no
evidence that an image belongs. Features are scaled to unit length first (Mueller & Hein 2025).

`score` needs numpy only.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from leukoscope.errors import InputError

_ENERGY_WEIGHT = 0.5
_SHRINKAGE = 0.02
_LARGEST_SAMPLE = 10_000  # training images looked at; more change little and cost memory
_TINY = 1e-12


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    validation_features: np.ndarray,
    validation_logits: np.ndarray,
    *,
    acceptance: float = 0.95,
    components: int = 64,
) -> dict[str, Any]:
    """Statistics for `score`, as plain JSON (about 220 kB for 1280 features).

    features (n, d) and labels (n,) of training images; features (m, d) and logits (m, k) of
    validation images, which set the scales and the threshold: `acceptance` of images like them
    score at most `threshold`. components: dimensions of the subspace at most; a tenth of n too.
    Raises InputError for shapes that don't fit, no spread or no images.
    """
    _check(features, labels, validation_features, validation_logits, acceptance)
    features, labels = _sample(np.asarray(features), np.asarray(labels))
    rows = _unit(features)
    mean, basis = _subspace(rows, components)
    # Everything below is computed from what is stored, so that rounding can't shift the threshold.
    statistics: dict[str, Any] = {
        "mean": _rounded(mean),
        "components": len(basis),
        "basis": _encode(basis, "<f2"),
    }
    inside, _ = _project(rows, statistics)
    names, place = np.unique(labels, return_inverse=True)
    means = np.stack([inside[place == index].mean(axis=0) for index in range(len(names))])
    whitening = _whitening(inside, inside - means[place])
    statistics["whitening"] = _encode(whitening, "<f4")
    statistics["class_means"] = [_rounded(row) for row in means @ whitening]
    distance, residual = _distances(validation_features, statistics)
    energy = _energy(validation_logits)
    middle = float(np.median(energy))
    statistics |= {
        "distance_scale": float(np.median(distance)),
        "residual_scale": float(np.median(residual)),
        "energy_middle": middle,
        "energy_scale": float(1.4826 * np.median(np.abs(energy - middle))),
        "acceptance": acceptance,
    }
    scores = np.sort(score(validation_features, validation_logits, statistics))
    rank = min(int(np.ceil((len(scores) + 1) * acceptance)), len(scores))
    statistics["threshold"] = float(scores[rank - 1])
    return statistics


def score(features: np.ndarray, logits: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """Novelty of each image, (n,), at least 0, larger is more novel; flagged above `threshold`.

    features (n, d) and logits (n, k) as in `fit`. Not finite features or logits score infinity.
    Raises InputError where d is not the statistics' own.
    """
    features, logits = np.asarray(features), np.asarray(logits)
    if features.ndim != 2 or features.shape[1] != len(statistics["mean"]):
        raise InputError(
            f"Got features of shape {features.shape}; allowed: (n, {len(statistics['mean'])})",
            fix="Use the features of the network that the statistics were fitted on.",
            field="features",
        )
    finite = np.isfinite(features).all(axis=1) & np.isfinite(logits).all(axis=1)
    distance, residual = _distances(features[finite], statistics)
    energy = _energy(logits[finite]) - statistics["energy_middle"]
    total = _in_units(distance, statistics["distance_scale"])
    total += _in_units(residual, statistics["residual_scale"])
    surplus = _in_units(np.maximum(energy, 0), statistics["energy_scale"])
    result = np.full(len(features), np.inf)
    result[finite] = np.sqrt(total + _ENERGY_WEIGHT * surplus**2)
    return result


def coordinates(features: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """Where features (n, d) lie, (n, c): Euclid's distance of two places is their Mahalanobis
    distance inside the principal subspace, within-class covariance as unit. Rows of features that
    aren't finite aren't either."""
    inside, _ = _project(_unit(features), statistics)
    return inside @ _decode(statistics, "whitening", "<f4")


def _check(
    features: np.ndarray,
    labels: np.ndarray,
    validation_features: np.ndarray,
    validation_logits: np.ndarray,
    acceptance: float,
) -> None:
    shapes = [np.shape(a) for a in (features, labels, validation_features, validation_logits)]
    fits = (
        [len(shape) for shape in shapes] == [2, 1, 2, 2]
        and shapes[0][0] == shapes[1][0] > 1
        and shapes[2][0] == shapes[3][0] > 0
        and shapes[0][1] == shapes[2][1] > 0
    )
    if not fits:
        raise InputError(
            f"Got training features {shapes[0]} with labels {shapes[1]} and validation features "
            f"{shapes[2]} with logits {shapes[3]}; allowed: (n, d), (n,), (m, d), (m, k)",
            fix="Give features of at least two training images and one validation image.",
            field="features",
        )
    if not 0 < acceptance < 1:
        raise InputError(
            f"Got an acceptance of {acceptance}; allowed: between 0 and 1",
            fix="Use 0.95 to accept 95 % of ordinary images.",
            field="acceptance",
        )


def _sample(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_LARGEST_SAMPLE` rows, each class in proportion."""
    order = np.argsort(labels, kind="stable")
    kept = order[:: -(-len(order) // _LARGEST_SAMPLE)]
    return features[kept], labels[kept]


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1 (all-zero rows stay), float64."""
    rows = np.asarray(features, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)


def _subspace(rows: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and principal axes (c, d) of the rows."""
    from sklearn.decomposition import PCA

    most = min(components, rows.shape[1], max(1, len(rows) // 10))
    if float(rows.var(axis=0).sum()) < _TINY:
        raise InputError(
            f"All {len(rows)} training images have the same features",
            fix="Check that the images differ and that the network's weights are loaded.",
            field="features",
        )
    solver = "randomized" if most < 0.8 * min(rows.shape) else "full"
    found = PCA(most, svd_solver=solver, random_state=0).fit(rows)
    return found.mean_, found.components_[found.explained_variance_ > _TINY]


def _whitening(inside: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """(c, c) matrix that gives the residuals from class means unit covariance.

    The within-class covariance is shrunk a little towards the total variances, so that classes
    without spread in some direction don't make every other image infinitely far.
    """
    within = residuals.T @ residuals / len(residuals)
    shrunk = (1 - _SHRINKAGE) * within + _SHRINKAGE * np.diag(inside.var(axis=0))
    values, vectors = np.linalg.eigh(shrunk)
    return vectors / np.sqrt(np.maximum(values, _TINY))


def _project(rows: np.ndarray, statistics: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Principal coordinates (n, c) of unit rows, and squared distance from the subspace (n,)."""
    centred = rows - np.array(statistics["mean"])
    basis = _decode(statistics, "basis", "<f2")
    inside = centred @ basis.T
    return inside, ((centred - inside @ basis) ** 2).sum(axis=1)


def _distances(features: np.ndarray, statistics: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (n,): to the nearest class mean inside the subspace, and from it."""
    inside, residual = _project(_unit(features), statistics)
    whitened = inside @ _decode(statistics, "whitening", "<f4")
    means = np.array(statistics["class_means"])
    squared = np.stack([((whitened - mean) ** 2).sum(axis=1) for mean in means])
    return squared.min(axis=0), residual


def _energy(logits: np.ndarray) -> np.ndarray:
    """Free energy -log sum exp of the logits, (n,)."""
    logits = np.asarray(logits, dtype=np.float64)
    top = logits.max(axis=1)
    return -(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))


def _in_units(values: np.ndarray, scale: float) -> np.ndarray:
    """values / scale; a term that doesn't vary on validation images says nothing: 0."""
    return values / scale if scale > _TINY else np.zeros_like(values)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _encode(matrix: np.ndarray, kind: str) -> str:
    """(c, d) as base64 of little-endian floats: a fraction of its size as JSON numbers."""
    return base64.b64encode(matrix.astype(kind).tobytes()).decode("ascii")


def _decode(statistics: dict[str, Any], name: str, kind: str) -> np.ndarray:
    raw = np.frombuffer(base64.b64decode(statistics[name]), dtype=kind)
    return raw.reshape(statistics["components"], -1).astype(np.float64)
