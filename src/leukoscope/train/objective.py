"""What training minimises: cross-entropy or focal loss of hard, weighted or mixed labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot


def soft_labels(labels: Tensor, classes: int) -> Tensor:
    """(n,) integer labels as (n, classes) float probabilities."""
    return one_hot(labels, classes).float()


def mixing(n: int, alpha: float, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """The weight of a batch, from Beta(alpha, alpha) (Zhang et al. 2018, eq. 1), and the partner
    of each of its n images."""
    return float(rng.beta(alpha, alpha)), rng.permutation(n)


def mixup(
    images: Tensor, targets: Tensor, weight: float, partner: np.ndarray, n: int | None = None
) -> tuple[Tensor, Tensor]:
    """The first n (or all) of images (m, …) and soft labels (m, k), each with `weight` mixed with
    that of its partner (n,)."""

    def mixed(values: Tensor) -> Tensor:
        other = values[torch.from_numpy(partner).to(values.device)]
        return values[:n] * weight + other * (1 - weight)

    return mixed(images), mixed(targets)


def classification_loss(
    logits: Tensor, targets: Tensor, *, gamma: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean over images of -sum_c w_c t_c (1 - p_c)^gamma log p_c, a scalar in nats.

    logits (n, k), targets (n, k) probabilities, class_weights (k,). gamma 0 is cross-entropy; above
    it is the focal loss of the true class (Lin et al. 2017, eq. 4) with p by softmax. The equation
    of Haque et al. 2024 adds up focal losses of all classes, which would reward doubt.
    """
    log_p = log_softmax(logits, dim=1)
    each = -targets * log_p
    if gamma:
        each = each * (1 - log_p.exp()).clamp_min(0) ** gamma
    if class_weights is not None:
        each = each * class_weights
    return each.sum(dim=1).mean()
