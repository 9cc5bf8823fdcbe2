"""Feature space: t-SNE of features, and the training images nearest to an image."""

from __future__ import annotations

import numpy as np

from leukoscope.compat import require
from leukoscope.errors import InputError

PERPLEXITY, LEAST = 30.0, 8
COMPONENTS = 50  # principal components that t-SNE starts from, as its authors do
_BLOCK = 4096  # training rows at a time: 80,000 x 1280 float16 are never all float32


def unit(features: np.ndarray) -> np.ndarray:
    """(n, d) rows of length 1, float32; a row of zeros stays."""
    rows = np.asarray(features, np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def perplexity_for(n: int) -> float:
    """30, or less for few points: each needs three times as many neighbours."""
    return min(PERPLEXITY, (n - 1) / 3)


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """(n, 2) places of (n, d) features on a plane (van der Maaten & Hinton 2008), by openTSNE.

    Distances are by cosine, and perplexity is `perplexity_for`. The same features and seed give
    the same places, whatever the number of cores. Raises InputError below 8 images, and where
    openTSNE is not installed.
    """
    if len(features) < LEAST:
        raise InputError(
            f"t-SNE of {len(features)} images; it needs {LEAST} or more",
            fix="Give more images.",
            field="images",
        )
    library = require("openTSNE", "train")
    from sklearn.decomposition import PCA

    rows = unit(features)
    components = min(COMPONENTS, *rows.shape)
    rows = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(rows)
    embedding = library.TSNE(perplexity=perplexity_for(len(rows)), random_state=seed, n_jobs=1)
    return np.asarray(embedding.fit(rows), np.float64)


def nearest(
    query: np.ndarray, training: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `training` most similar to `query` by cosine: (k,) places and (k,) similarities.

    query: (d,); training: (n, d) rows of length 1, of any float type; allowed: (n,) bool, which
    may be named. Most similar first, of equals the first; fewer than k where fewer are allowed.
    """
    own = unit(query[None])[0]
    similarity = np.concatenate(
        [training[i : i + _BLOCK].astype(np.float32) @ own for i in range(0, len(training), _BLOCK)]
    )
    if allowed is not None:
        similarity[~allowed] = -np.inf
    order = np.argsort(-similarity, kind="stable")[:k]
    order = order[np.isfinite(similarity[order])]
    return order, similarity[order]
