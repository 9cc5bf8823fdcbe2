"""Losses, mixup and learning rates against libraries and hand-computed values."""

from __future__ import annotations

import kornia
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import SWALR

from leukoscope.train.objective import classification_loss, mixing, mixup, soft_labels
from leukoscope.train.schedule import learning_rates
from leukoscope.train.settings import Averaging

NONE = Averaging()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 4, generator=generator) * 3, torch.arange(12) % 4


def test_gamma_zero_is_cross_entropy(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    found = classification_loss(logits, soft_labels(labels, 4))
    torch.testing.assert_close(found, cross_entropy(logits, labels))


def test_weights_are_those_of_the_true_class(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    found = classification_loss(logits, soft_labels(labels, 4), class_weights=weights)
    each = cross_entropy(logits, labels, reduction="none") * weights[labels]
    torch.testing.assert_close(found, each.mean())


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_is_kornias(batch: tuple[torch.Tensor, torch.Tensor], gamma: float) -> None:
    logits, labels = batch
    found = classification_loss(logits, soft_labels(labels, 4), gamma=gamma)
    expected = kornia.losses.focal_loss(logits, labels, alpha=None, gamma=gamma, reduction="none")
    torch.testing.assert_close(found, expected.sum(dim=1).mean(), rtol=1e-4, atol=1e-5)


def test_focal_loss_of_one_image_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    found = classification_loss(logits, soft_labels(torch.tensor([0]), 3), gamma=2)
    assert float(found) == pytest.approx(-(0.3**2) * np.log(0.7), rel=1e-5)


def test_mixed_labels_sum_to_one_and_follow_the_images() -> None:
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 2, 2)
    targets = soft_labels(torch.arange(8), 8)
    mixed, labels = mixup(images, targets, *mixing(8, 0.4, np.random.default_rng(3)))
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(8))
    # Image k is constant k, so its mixture must be the mean of k under its mixed label.
    torch.testing.assert_close(mixed[:, 0, 0, 0], labels @ torch.arange(8.0))
    weight = float(np.random.default_rng(3).beta(0.4, 0.4))
    own = labels.diagonal()
    partner_is_self = own == 1
    torch.testing.assert_close(
        own[~partner_is_self], torch.full_like(own[~partner_is_self], weight)
    )
    again, _ = mixup(images, targets, *mixing(8, 0.4, np.random.default_rng(3)))
    assert torch.equal(mixed, again)


def test_the_weight_is_drawn_from_a_beta_distribution() -> None:
    from scipy.stats import beta, kstest

    images, targets = torch.tensor([[0.0], [1.0]]), soft_labels(torch.tensor([0, 1]), 2)
    drawn = []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        _, labels = mixup(images, targets, *mixing(len(images), 0.4, rng))
        if float(labels[0, 0]) < 1:  # otherwise each image is its own partner
            drawn.append(float(labels[0, 0]))
    assert kstest(drawn, beta(0.4, 0.4).cdf).pvalue > 0.01


def test_cosine_annealing_at_given_epochs() -> None:
    rates = learning_rates(1e-4, 50, "cosine", NONE)
    expected = 1e-4 * (1 + np.cos(np.pi * np.arange(50) / 50)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert learning_rates(3e-4, 4, "constant", NONE) == [3e-4] * 4


def test_averaging_hands_over_to_torchs_swalr() -> None:
    rates = learning_rates(0.1, 10, "constant", Averaging(start=4, factor=0.5, anneal_epochs=3))
    assert rates[:4] == pytest.approx([0.1] * 4)
    assert rates[6:] == pytest.approx([0.05] * 4)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    swalr = SWALR(optimizer, swa_lr=0.05, anneal_epochs=3, anneal_strategy="cos")
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        swalr.step()
    np.testing.assert_allclose(rates[3:], expected, rtol=1e-6)
