"""RetinaNet and CenterNet adapted to images of one cell: a class head's map, and a box branch.

Each is a backbone like any other (images to a feature map) with a second output that finds the
cell. Boxes are (n, 4) float: x and y of the upper left corner, width and height, as fractions of
the image. A row that isn't finite or has no area says that the image's cell wasn't found: it adds
nothing to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, logsigmoid, smooth_l1_loss

from leukoscope.compat import import_timm

SCALES = tuple(2 ** (step / 3) for step in range(3))
RATIOS = (0.5, 1.0, 2.0)  # height by width
SMALLEST_ANCHOR = 32.0  # px on the first level, doubled on each that follows
POSITIVE, NEGATIVE = 0.5, 0.4  # IoU from which an anchor is the cell, below which background
PRIOR = 0.01  # the share of positions that a fresh network calls a cell
STRIDE = 4  # px between neighbouring positions of CenterNet's map
SIZE_WEIGHT = 0.1  # of CenterNet's size beside its other losses (Zhou et al. 2019, section 3)
OVERLAP = 0.7  # IoU that every box within a Gaussian's radius keeps (CornerNet)


Total = Callable[[Tensor], Tensor]
"""Sums a count over the processes that share a batch."""


def _own(count: Tensor) -> Tensor:
    return count


@runtime_checkable
class Detector(Protocol):
    """A backbone that also says where the cell is."""

    def with_boxes(self, images: Tensor) -> tuple[Tensor, Any]:
        """The feature map and the outputs of the box branches, from one pass."""

    def box_loss(self, branches: Any, boxes: Tensor, over_all: Total = _own) -> Tensor:
        """The loss of the images whose box is known, a scalar; 0 where there are none.

        `over_all` sums a count over the processes that share the batch: their losses add up to
        the batch's.
        """

    def predicted_boxes(self, branches: Any) -> Tensor:
        """(n, 4) boxes of the images' cells, in the form that `box_loss` takes."""


@dataclass(frozen=True)
class AnchorBranches:
    """RetinaNet's: (n, a, 4) offsets and (n, a) objectness logits of `anchors` (a, 4)."""

    offsets: Tensor
    objectness: Tensor
    anchors: Tensor


@dataclass(frozen=True)
class CentreBranches:
    """CenterNet's: (n, 1, h, w) logits of a centre; (n, 2, h, w) its offset and the box's size.

    `extent` is the image's width and height in positions of the map, which the padding of
    strided convolutions makes larger than the image where its sides are no multiple of 32.
    """

    centre: Tensor
    offset: Tensor
    size: Tensor
    extent: tuple[float, float]


class RetinaNet(nn.Module):
    """RetinaNet (Lin et al. 2017) around a body that gives the maps C3, C4 and C5.

    A feature pyramid of 256 channels, P3 to P7; a class subnet and a box subnet of four 3x3
    convolutions, each shared by all levels. The feature map is the class subnet's output, every
    level enlarged to P3's resolution, averaged over levels: a linear head after its mean gives the
    subnet's prediction averaged over positions and levels. With one cell an image there is nothing
    to tell boxes of different classes apart, so the box subnet says by an objectness of its own,
    trained with the focal loss, which anchor's box is the cell's.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        import_timm()  # makes torchvision importable
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

        self.body = body
        self.pyramid = FeaturePyramidNetwork(
            list(channels), width, extra_blocks=LastLevelP6P7(channels[-1], width)
        )
        self.class_subnet = _subnet(width)
        self.box_subnet = _subnet(width)
        anchors = len(SCALES) * len(RATIOS)
        self.offsets = nn.Conv2d(width, 4 * anchors, 3, padding=1)
        self.objectness = nn.Conv2d(width, anchors, 3, padding=1)
        for module in (self.offsets, self.objectness):
            _start(module)
        nn.init.constant_(self.objectness.bias, _logit(PRIOR))  # type: ignore[arg-type]
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) images to an (n, 256, h / 8, w / 8) feature map."""
        return self._feature_map(self._levels(images))

    def with_boxes(self, images: Tensor) -> tuple[Tensor, AnchorBranches]:
        levels = self._levels(images)
        feature_map = self._feature_map(levels)
        towers = [self.box_subnet(level) for level in levels]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        return feature_map, AnchorBranches(
            torch.cat([_by_anchor(self.offsets(tower), 4) for tower in towers], dim=1),
            torch.cat([_by_anchor(self.objectness(tower), 1) for tower in towers], 1).squeeze(2),
            anchor_boxes(shapes, (images.shape[2], images.shape[3])).to(images.device),
        )

    def box_loss(self, branches: AnchorBranches, boxes: Tensor, over_all: Total = _own) -> Tensor:
        from torchvision.ops import sigmoid_focal_loss

        known = _known(boxes)
        boxes = boxes[known].float()
        offsets = branches.offsets[known].float()
        objectness = branches.objectness[known].float()
        positive, negative = assign(branches.anchors, boxes)
        judged = positive | negative
        found = over_all(positive.sum()).clamp(min=1)
        focal = sigmoid_focal_loss(objectness, positive.to(objectness.dtype))
        wanted = encode(boxes[:, None], branches.anchors[None])
        where = _smooth_l1(offsets[positive], wanted[positive])
        return ((focal * judged).sum() + where) / found

    def predicted_boxes(self, branches: AnchorBranches) -> Tensor:
        best = branches.objectness.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        return _within(decode(branches.offsets[rows, best].float(), branches.anchors[best]))

    def _levels(self, images: Tensor) -> list[Tensor]:
        maps = {str(level): value for level, value in enumerate(self.body(images))}
        return list(self.pyramid(maps).values())

    def _feature_map(self, levels: list[Tensor]) -> Tensor:
        size = levels[0].shape[2:]
        outputs = [self.class_subnet(level) for level in levels]
        return torch.stack([interpolate(output, size) for output in outputs]).mean(dim=0)


class CenterNet(nn.Module):
    """CenterNet (Zhou et al. 2019, "Objects as points") around a body whose last map is C5.

    Three upsampling stages of 256, 128 and 64 channels lead from stride 32 to 4, as in the paper's
    residual variant, with 3x3 convolutions and bilinear enlarging in place of deformable and
    transposed ones. Three branches on the last map, which is the feature map: a heat map of
    centres, the centre's offset within its position, and the box's width and height, given as
    fractions of the image and compared in positions of the map.
    """

    def __init__(
        self, body: nn.Module, channels: Sequence[int], widths: Sequence[int] = (256, 128, 64)
    ) -> None:
        super().__init__()
        self.body = body
        stages: list[nn.Module] = []
        before = channels[-1]
        for width in widths:
            stages += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        self.upsampling = nn.Sequential(*stages)
        self.centre = _branch(before, 1)
        self.offset = _branch(before, 2)
        self.size = _branch(before, 2)
        nn.init.constant_(self.centre[-1].bias, _logit(0.1))  # type: ignore[arg-type]
        self.num_features = before

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) images to an (n, 64, h / 4, w / 4) feature map."""
        return self.upsampling(self.body(images)[-1])

    def with_boxes(self, images: Tensor) -> tuple[Tensor, CentreBranches]:
        feature_map = self(images)
        height, width = images.shape[2:]
        return feature_map, CentreBranches(
            self.centre(feature_map),
            self.offset(feature_map),
            self.size(feature_map),
            (width / STRIDE, height / STRIDE),
        )

    def box_loss(self, branches: CentreBranches, boxes: Tensor, over_all: Total = _own) -> Tensor:
        known = _known(boxes)
        boxes = boxes[known].float()
        logits = branches.centre[known].float()
        heat, position, offset = centre_targets(boxes, branches.extent, logits.shape[2:])
        extent = boxes.new_tensor(branches.extent)
        size = at(branches.size[known], position).float() * extent
        heat_loss = centre_loss(logits, heat, position)
        offset_loss = _smooth_l1(at(branches.offset[known], position).float(), offset)
        size_loss = _smooth_l1(size, boxes[:, 2:] * extent)
        found = over_all(torch.tensor(len(boxes), device=boxes.device)).clamp(min=1)
        return (heat_loss + offset_loss + SIZE_WEIGHT * size_loss) / found

    def predicted_boxes(self, branches: CentreBranches) -> Tensor:
        position = branches.centre.flatten(1).argmax(dim=1)
        columns = branches.centre.shape[3]
        corner = torch.stack([position % columns, position // columns], dim=1)
        extent = torch.tensor(branches.extent, device=corner.device)
        centre = (corner + at(branches.offset, position).float()) / extent
        size = at(branches.size, position).float().clamp(min=0)
        return _within(torch.cat([centre - size / 2, size], dim=1))


def anchor_boxes(shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """(a, 4) anchors of all levels as boxes: nine at each position (Lin et al. 2017, section 4).

    shapes: (height, width) of each level, stride 8, 16, …; size: of the image in px.
    """
    height, width = size
    parts = []
    for level, (rows, columns) in enumerate(shapes):
        stride = 8 * 2**level
        side = SMALLEST_ANCHOR * 2**level
        sides = torch.tensor(
            [(side * s / math.sqrt(r), side * s * math.sqrt(r)) for s in SCALES for r in RATIOS]
        )
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres = (torch.stack([x, y], dim=2).reshape(-1, 1, 2) + 0.5) * stride
        corners = centres - sides / 2
        parts.append(torch.cat([corners, sides.expand_as(corners)], dim=2).reshape(-1, 4))
    return torch.cat(parts) / torch.tensor([width, height, width, height])


def assign(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(n, a) which anchors are each image's cell, and which are background.

    IoU of at least .5 and the best anchor always; below .4; what lies between is neither.
    """
    from torchvision.ops import box_convert, box_iou

    overlap = box_iou(*(box_convert(part, "xywh", "xyxy") for part in (boxes, anchors)))
    best = torch.zeros_like(overlap, dtype=torch.bool)
    if len(boxes):
        best[torch.arange(len(boxes)), overlap.argmax(dim=1)] = True
    positive = (overlap >= POSITIVE) | best
    return positive, (overlap < NEGATIVE) & ~positive


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(…, 4) offsets of boxes from anchors (Girshick et al. 2014, appendix C, eq. 6 to 9)."""
    sides = anchors[..., 2:]
    shift = (boxes[..., :2] + boxes[..., 2:] / 2 - anchors[..., :2] - sides / 2) / sides
    shift, scale = torch.broadcast_tensors(shift, (boxes[..., 2:] / sides).log())
    return torch.cat([shift, scale], dim=-1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """(…, 4) boxes of such offsets; a box is at most 62.5 times its anchor, as in detectron."""
    sides = anchors[..., 2:]
    centres = anchors[..., :2] + sides / 2 + offsets[..., :2] * sides
    size = offsets[..., 2:].clamp(max=math.log(1000 / 16)).exp() * sides
    return torch.cat([centres - size / 2, size], dim=-1)


def centre_targets(
    boxes: Tensor, extent: tuple[float, float], shape: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, 1, h, w) heat map, (n,) the centre's flat position, (n, 2) its offset within it.

    A Gaussian around the centre, 1 there (Zhou et al. 2019, section 3). Its width is a third of
    the radius within which the box, moved, still overlaps itself by .7 (Law & Deng 2018).
    """
    rows, columns = shape
    scaled = boxes * boxes.new_tensor([*extent, *extent])
    centre = scaled[:, :2] + scaled[:, 2:] / 2
    last = centre.new_tensor([columns - 1, rows - 1])
    cell = torch.minimum(centre.floor().clamp(min=0), last)
    sigma = (2 * gaussian_radius(scaled[:, 2], scaled[:, 3]).floor() + 1) / 6
    x = torch.arange(columns, device=boxes.device) - cell[:, :1]
    y = torch.arange(rows, device=boxes.device) - cell[:, 1:]
    squared = x[:, None, :] ** 2 + y[:, :, None] ** 2
    heat = torch.exp(-squared / (2 * sigma[:, None, None] ** 2))
    position = (cell[:, 1] * columns + cell[:, 0]).long()
    return heat[:, None], position, centre - cell


def gaussian_radius(width: Tensor, height: Tensor) -> Tensor:
    """How far a box's two corners may each move and leave it an IoU of .7 with itself.

    The least of three cases (Law & Deng 2018, section 3.2): both corners move the same way, both
    inwards, both outwards. In the units of width and height.
    """
    half, area, t = width + height, width * height, OVERLAP
    moved = (half - (half**2 - 4 * area * (1 - t) / (1 + t)).sqrt()) / 2
    smaller = (half - (half**2 - 4 * area * (1 - t)).sqrt()) / 4
    larger = (((t * half) ** 2 + 4 * t * (1 - t) * area).sqrt() - t * half) / (4 * t)
    return torch.minimum(torch.minimum(moved, smaller), larger)


def centre_loss(logits: Tensor, heat: Tensor, position: Tensor) -> Tensor:
    """The penalty-reduced focal loss (Zhou et al. 2019, eq. 1, α 2, β 4), summed over images."""
    at_centre = at(logits, position)
    positive = -((1 - at_centre.sigmoid()) ** 2) * logsigmoid(at_centre)
    # At the centre (1 - heat) is 0, so that it counts once.
    negative = -((1 - heat) ** 4) * logits.sigmoid() ** 2 * logsigmoid(-logits)
    return positive.sum() + negative.sum()


def at(maps: Tensor, position: Tensor) -> Tensor:
    """(n, c) the values of (n, c, h, w) maps at one flat position (n,) each."""
    index = position[:, None, None].expand(-1, maps.shape[1], 1)
    return maps.flatten(2).gather(2, index).squeeze(2)


def _subnet(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(4):
        convolution = nn.Conv2d(width, width, 3, padding=1)
        _start(convolution)
        layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers)


def _start(convolution: nn.Conv2d) -> None:
    """N(0, .01) and no bias, as the paper's new layers start (Lin et al. 2017, section 4.1)."""
    nn.init.normal_(convolution.weight, std=0.01)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]


def _branch(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, outputs, 1))


def _by_anchor(output: Tensor, values: int) -> Tensor:
    """(n, a · values, h, w) of one level to (n, h · w · a, values)."""
    return output.permute(0, 2, 3, 1).reshape(len(output), -1, values)


def _smooth_l1(given: Tensor, wanted: Tensor) -> Tensor:
    """Summed; quadratic below 1 (Girshick 2015, eq. 3)."""
    return smooth_l1_loss(given, wanted, reduction="sum")


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _known(boxes: Tensor) -> Tensor:
    return boxes.isfinite().all(dim=1) & (boxes[:, 2:] > 0).all(dim=1)


def _within(boxes: Tensor) -> Tensor:
    """The boxes cut at the image's edges."""
    low = boxes[:, :2].clamp(0, 1)
    high = (boxes[:, :2] + boxes[:, 2:]).clamp(0, 1)
    return torch.cat([low, high - low], dim=1)
