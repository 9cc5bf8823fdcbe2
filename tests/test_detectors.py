"""RetinaNet and CenterNet: what their box branches are trained on, and that they learn it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leukoscope.bundle.contract import OUTPUTS
from leukoscope.compat import import_timm
from leukoscope.models import detectors
from leukoscope.models.classifier import Classifier, build_head, seeded
from leukoscope.models.detectors import CenterNet, Detector, RetinaNet
from leukoscope.models.graph import classifier_graph

import_timm()  # makes torchvision importable
CHANNELS = (32, 48, 64)


class TinyBody(nn.Module):
    """Maps of stride 8, 16 and 32, as a ResNet's C3 to C5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_halving(3, 16), _halving(16, 24))
        self.stages = nn.ModuleList(
            _halving(before, after)
            for before, after in zip((24, *CHANNELS), CHANNELS, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        value = self.stem(images)
        maps = []
        for stage in self.stages:
            value = stage(value)
            maps.append(value)
        return maps


def _halving(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def tiny(kind: type[RetinaNet] | type[CenterNet]) -> RetinaNet | CenterNet:
    with seeded(0):
        if kind is RetinaNet:
            network: RetinaNet | CenterNet = RetinaNet(TinyBody(), CHANNELS, width=32)
            # The paper's start suits 256 channels; through 32 it would let nothing pass.
            for module in [*network.class_subnet, *network.box_subnet]:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
            return network
        return CenterNet(TinyBody(), CHANNELS, widths=(48, 32, 24))


def cells(n: int, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Synthetic images (n, 3, size, size) of one dark ellipse each, and its boxes."""
    rng = np.random.default_rng(seed)
    side = rng.uniform(0.3, 0.6, (n, 2))
    corner = rng.uniform(0.05, 0.95 - side)
    boxes = np.concatenate([corner, side], axis=1)
    y, x = np.mgrid[:size, :size] / size
    centre = corner + side / 2
    distance = ((x - centre[:, 0, None, None]) / side[:, 0, None, None] * 2) ** 2 + (
        (y - centre[:, 1, None, None]) / side[:, 1, None, None] * 2
    ) ** 2
    images = np.repeat((distance < 1)[:, None], 3, axis=1) * -2.0 + 1
    images += rng.normal(0, 0.1, images.shape)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(boxes, dtype=torch.float32)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """(n,) IoU of boxes row by row, by hand."""
    low = torch.maximum(one[:, :2], other[:, :2])
    high = torch.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    return shared / (one[:, 2:].prod(dim=1) + other[:, 2:].prod(dim=1) - shared)


kinds = pytest.mark.parametrize("kind", [RetinaNet, CenterNet])


def fitted(
    kind: type[RetinaNet] | type[CenterNet], images: Tensor, boxes: Tensor
) -> tuple[RetinaNet | CenterNet, list[float]]:
    network = tiny(kind).train()
    steps = 80
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    losses = []
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        part = torch.randperm(len(images), generator=draw)[:16]
        _, branches = network.with_boxes(images[part])
        loss = network.box_loss(branches, boxes[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return network.eval(), losses


@kinds
def test_the_box_branch_learns_where_the_cell_is(
    kind: type[RetinaNet] | type[CenterNet],
) -> None:
    images, boxes = cells(32)
    network, losses = fitted(kind, images, boxes)
    assert np.mean(losses[-10:]) < 0.15 * np.mean(losses[:10])
    with torch.no_grad():
        found = network.predicted_boxes(network.with_boxes(images)[1])
        others, theirs = cells(32, seed=1)
        unseen = network.predicted_boxes(network.with_boxes(others)[1])
    assert overlap(found, boxes).mean() > 0.75
    # On images it hasn't seen it finds the cell, which the one best box for all doesn't.
    average = boxes.mean(dim=0).expand_as(theirs)
    assert overlap(unseen, theirs).mean() > 0.5 > overlap(average, theirs).mean() + 0.05
    assert (found >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= 1 + 1e-6).all()


@kinds
def test_a_detector_is_a_backbone(kind: type[RetinaNet] | type[CenterNet]) -> None:
    network = tiny(kind).eval()
    assert isinstance(network, Detector)
    images, _ = cells(2)
    with torch.no_grad():
        feature_map, branches = network.with_boxes(images)
        assert torch.equal(feature_map, network(images))
        assert network.predicted_boxes(branches).shape == (2, 4)
    stride = 8 if kind is RetinaNet else 4
    assert feature_map.shape == (2, network.num_features, 64 // stride, 64 // stride)
    classifier = Classifier(network, build_head([{"layer": "relu"}], network.num_features, 3))
    assert classifier_graph(classifier, (64, 64), OUTPUTS)  # which checks that both give the same


def test_retinanets_map_averages_its_levels() -> None:
    network = tiny(RetinaNet).eval()
    assert isinstance(network, RetinaNet)
    images, _ = cells(2)
    with torch.no_grad():
        levels = network._levels(images)
        means = [network.class_subnet(level).mean(dim=(2, 3)) for level in levels]
        assert [level.shape[2] for level in levels] == [8, 4, 2, 1, 1]
        expected = torch.stack(means).mean(dim=0)
        assert torch.allclose(network(images).mean(dim=(2, 3)), expected, atol=1e-5)


@kinds
def test_images_without_a_known_box_add_nothing(
    kind: type[RetinaNet] | type[CenterNet],
) -> None:
    network = tiny(kind).eval()
    images, boxes = cells(3)
    with torch.no_grad():
        whole = network.with_boxes(images)[1]
        alone = network.with_boxes(images[:1])[1]
        boxes[1] = math.nan
        boxes[2, 2] = 0
        expected = network.box_loss(alone, boxes[:1])
        assert network.box_loss(whole, boxes) == pytest.approx(float(expected), rel=1e-5)
    nothing = network.box_loss(network.with_boxes(images[:2])[1], boxes[1:])
    nothing.backward()
    assert nothing.item() == 0


def test_offsets_are_torchvisions_and_decode_to_the_box() -> None:
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import box_convert

    _, boxes = cells(50)
    _, anchors = cells(50, seed=1)
    offsets = detectors.encode(boxes, anchors)
    one, other = (box_convert(part, "xywh", "xyxy") for part in (boxes, anchors))
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(one, other)
    assert torch.allclose(offsets, expected, atol=1e-5)
    assert torch.allclose(detectors.decode(offsets, anchors), boxes, atol=1e-6)


def test_anchors_by_hand() -> None:
    anchors = detectors.anchor_boxes([(2, 3), (1, 2)], (16, 24)) * torch.tensor([24, 16, 24, 16])
    assert len(anchors) == (6 + 2) * 9
    # The second position of the first row, the scale 1 and the ratio 1: 32 px around (12, 4).
    assert torch.allclose(anchors[9 + 1], torch.tensor([-4.0, -12, 32, 32]))
    # Ratios keep the area: height twice the width for the third.
    tall = torch.tensor([12 - 16 / 2**0.5, 4 - 16 * 2**0.5, 32 / 2**0.5, 32 * 2**0.5])
    assert torch.allclose(anchors[9 + 2], tall)
    # The second level: stride 16, sides of 64 px, the last scale 2^(2/3).
    assert anchors[-2, 2:].tolist() == pytest.approx([64 * 2 ** (2 / 3)] * 2)
    assert (anchors[-2, :2] + anchors[-2, 2:] / 2).tolist() == pytest.approx([24, 8])


def test_anchors_are_assigned_by_overlap_and_the_best_always() -> None:
    anchors = torch.tensor(
        [[0.0, 0, 0.4, 0.4], [0, 0, 0.4, 0.2], [0, 0, 0.2, 0.36], [0.5, 0.5, 0.1, 0.1]]
    )
    boxes = torch.tensor([[0.0, 0, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4]])
    positive, negative = detectors.assign(anchors, boxes)
    assert positive.tolist() == [[True, True, False, False], [False, False, False, True]]
    # An overlap of .45 is neither; .0625 is the second cell's best.
    assert negative.tolist() == [[False, False, False, True], [True, True, True, False]]


def test_retinanets_targets_give_the_box_back() -> None:
    network = tiny(RetinaNet)
    _, boxes = cells(8)
    anchors = detectors.anchor_boxes([(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], (64, 64))
    positive, _ = detectors.assign(anchors, boxes)
    perfect = detectors.AnchorBranches(
        detectors.encode(boxes[:, None], anchors[None]), positive * 40.0 - 20, anchors
    )
    assert torch.allclose(network.predicted_boxes(perfect), boxes, atol=1e-5)
    assert network.box_loss(perfect, boxes) < 1e-6


def test_centernets_targets_give_the_box_back() -> None:
    network = tiny(CenterNet)
    _, boxes = cells(8)
    extent = (15.5, 12.0)  # an image of 62 x 48 px, on a map that padding makes 16 x 16
    heat, position, offset = detectors.centre_targets(boxes, extent, (16, 16))
    assert torch.equal(heat.flatten(1).max(dim=1).values, torch.ones(8))
    assert torch.equal(heat.flatten(1).argmax(dim=1), position)
    assert ((offset >= 0) & (offset < 1)).all()
    maps = (torch.ones(8, 2, 16, 16) * value[:, :, None, None] for value in (offset, boxes[:, 2:]))
    offsets, sizes = maps
    at_centre = torch.zeros(8, 256).scatter_(1, position[:, None], 40).reshape(8, 1, 16, 16) - 20
    perfect = detectors.CentreBranches(at_centre, offsets, sizes, extent)
    assert torch.allclose(network.predicted_boxes(perfect), boxes, atol=1e-5)
    assert network.box_loss(perfect, boxes) < 1e-6


def test_the_centres_gaussian_and_its_loss_by_hand() -> None:
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    heat, position, offset = detectors.centre_targets(boxes, (20.0, 20.0), (20, 20))
    assert position.item() == 10 * 20 + 10
    assert offset.tolist() == [[0, 0]]
    radius = float(detectors.gaussian_radius(torch.tensor(10.0), torch.tensor(10.0)))
    # Least of: moved (10 - r)² = 2 · 82.35 / 2, inwards (10 - 2 r)² = 70, outwards 100 / .7.
    cases = [
        10 - math.sqrt(1.4 / 1.7 * 100),
        (10 - math.sqrt(70)) / 2,
        (math.sqrt(100 / 0.7) - 10) / 2,
    ]
    assert radius == pytest.approx(min(cases), abs=1e-4)
    sigma = (2 * math.floor(radius) + 1) / 6
    assert float(heat[0, 0, 12, 9]) == pytest.approx(math.exp(-5 / (2 * sigma**2)), abs=1e-6)
    with seeded(0):
        logits = torch.randn(1, 1, 20, 20)
    expected = 0.0
    for row in range(20):
        for column in range(20):
            p = 1 / (1 + math.exp(-float(logits[0, 0, row, column])))
            y = float(heat[0, 0, row, column])
            if y == 1:
                expected -= (1 - p) ** 2 * math.log(p)
            else:
                expected -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    found = detectors.centre_loss(logits, heat, position)
    assert float(found) == pytest.approx(expected, rel=1e-4)
