"""Balancing classes, by weight or by replication. Both are given training labels only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Replicas(NamedTuple):
    """Rows of a balanced training part: `places` (m,) in the given labels, and which `copies` (m,)
    they are, 0 for the original."""

    places: np.ndarray
    copies: np.ndarray


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """w_c = N / (n_c C), (C,) float32, of integer labels (N,) in [0, C).

    Audina et al. 2026, eq. for class weights; scikit-learn's `balanced`. Every class must occur
    (ValueError otherwise).
    """
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or not counts.all():
        raise ValueError(f"labels of {classes} classes, each at least once; got counts {counts}")
    return (len(labels) / (counts * classes)).astype(np.float32)


def replicate(labels: np.ndarray, rng: np.random.Generator) -> Replicas:
    """Every class as large as the largest one: each image replicated in full as often as fits,
    the remainder drawn at random without replacement from the same class (Patel et al. 2025).

    labels: integers (n,). The originals come first, in order.
    """
    counts = np.bincount(labels)
    places, copies = [np.arange(len(labels))], [np.zeros(len(labels), np.int64)]
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(labels == label)
        full, rest = divmod(int(counts.max()), len(members))
        drawn = np.sort(rng.permutation(members)[:rest])
        places += [np.tile(members, full - 1), drawn]
        copies += [np.repeat(np.arange(1, full), len(members)), np.full(rest, full)]
    return Replicas(np.concatenate(places), np.concatenate(copies))
