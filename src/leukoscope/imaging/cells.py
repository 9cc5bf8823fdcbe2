"""White cells in fields of view: find them by their nuclei, crop them square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from leukoscope.errors import InputError, UnreadableError
from leukoscope.imaging.pipeline import require_rgb
from leukoscope.imaging.segmentation import equivalent_diameter, nuclear_dye, nucleus

NUCLEAR_CONTRAST = 0.3
"""Mean `nuclear_dye` below which a component is no nucleus (red cells have about .2)."""

LOBE_GAP = 0.25
"""Nuclei closer than this are lobes of one, in diameters of the field's largest component."""
CYTOPLASM = 0.3
"""What cytoplasm adds to the extent of a nucleus, relative to its longer side."""
MOST = 5_000
"""Nuclei of a field: more are no smear, and each costs whoever crops and reads it."""


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in pixels: its left, top corner and its size."""

    x: int
    y: int
    width: int
    height: int

    @property
    def area(self) -> int:
        return self.width * self.height

    def intersection_over_union(self, other: Box) -> float:
        """Area of the intersection over that of the union, in [0, 1]."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        common = max(across, 0) * max(down, 0)
        return common / (self.area + other.area - common)


def find_cells(field: np.ndarray, most: int = MOST) -> list[Box]:
    """Boxes of the whole white cells in a field, uint8 RGB (H, W, 3), by row, then column.

    Nuclei are segmented, lobes of one nucleus joined, nuclei that touch separated, and each is
    widened to its cell. No scale is assumed; without nuclei the list is empty. Raises InputError
    for another kind of image, UnreadableError, with the reason alone, for more than `most` nuclei.
    """
    boxes = list(_boxes(_nuclei(field, most)).values())
    if len(boxes) > most:
        raise _too_many(len(boxes), most)
    return sorted(boxes, key=lambda box: (box.y, box.x))


def _too_many(found: int, most: int) -> UnreadableError:
    return UnreadableError(
        f"it shows {found:,} nuclei, more than the {most:,} allowed in one field",
        fix="Cut it into smaller fields.",
    )


def main_nucleus(image: np.ndarray) -> np.ndarray:
    """The nucleus, bool (H, W), of the cell that a single-cell image, uint8 RGB (H, W, 3), shows.

    Of the nuclei of `find_cells` the one with the largest `box_of`, of equals the one nearest to
    the middle; False everywhere where none is found. Raises what `find_cells` does.
    """
    return _main(_nuclei(image))


def main_of(mask: np.ndarray) -> np.ndarray:
    """As `main_nucleus`, of the nuclei that a mask, bool (H, W), marks."""
    return _main(_joined(mask.astype(np.uint8)))


def _main(labels: np.ndarray) -> np.ndarray:
    height, width = labels.shape

    def rank(numbered: tuple[int, Box]) -> tuple[int, float]:
        box = numbered[1]
        across, down = box.x + box.width / 2 - width / 2, box.y + box.height / 2 - height / 2
        return box.area, -(across**2 + down**2)

    # No pixel has label -1.
    best, _ = max(_boxes(labels).items(), key=rank, default=(-1, None))
    return labels == best


def _boxes(labels: np.ndarray) -> dict[int, Box]:
    """The cell's box around each nucleus of labels (H, W), by label, in one pass over them."""
    places = enumerate(ndimage.find_objects(labels), start=1)
    return {
        label: _around(at[1].start, at[0].start, at[1].stop, at[0].stop, labels.shape)
        for label, at in places
        if at is not None
    }


def main_cell(image: np.ndarray) -> Box:
    """The box of the cell that a single-cell image, uint8 RGB (H, W, 3), shows.

    `box_of` its `main_nucleus`; the whole image where none is found.
    """
    return box_of(main_nucleus(image))


def box_of(nucleus: np.ndarray) -> Box:
    """The whole cell's box around its nucleus, a boolean mask (H, W), clipped to the image.

    Cytoplasm adds about a third to a nucleus's extent, and a cell is rounder than its nucleus.
    An empty mask gives the whole image.
    """
    x, y, width, height = cv2.boundingRect(nucleus.astype(np.uint8))
    if width == 0:
        return Box(0, 0, nucleus.shape[1], nucleus.shape[0])
    return _around(x, y, x + width, y + height, nucleus.shape)


def _around(x: int, y: int, last_x: int, last_y: int, shape: tuple[int, ...]) -> Box:
    """`box_of` a nucleus from its first pixel to just past its last one, in an image (H, W)."""
    width, height = last_x - x, last_y - y
    longer = max(width, height)
    across = max(width, 0.75 * longer) + CYTOPLASM * longer
    down = max(height, 0.75 * longer) + CYTOPLASM * longer
    left, top = x + (width - across) / 2, y + (height - down) / 2
    limits = shape[::-1] * 2
    corners = np.rint([left, top, left + across, top + down]).clip(0, limits).astype(int)
    first_x, first_y, last_x, last_y = corners.tolist()
    return Box(first_x, first_y, last_x - first_x, last_y - first_y)


def crop(field: np.ndarray, boxes: Sequence[Box], margin: float = 0.1) -> list[np.ndarray]:
    """One square crop a box, uint8 RGB, centred on it, `margin` of its longer side added around.

    Beyond the field's border the nearest pixels are repeated. Raises InputError where a box lies
    outside the field or `margin` outside 0..10.
    """
    require_rgb(field)
    return [_cut(field, square(box, margin)) for box in boxes]


def square(box: Box, margin: float = 0.1) -> Box:
    """The square around a box with `margin` of its longer side on each side, in pixels."""
    if not 0 <= margin <= 10:
        raise InputError(
            f"The margin is {margin}; it is a fraction of the cell's size from 0 to 10",
            fix="Choose for example 0.1.",
            field="margin",
        )
    side = max(1, round(max(box.width, box.height) * (1 + 2 * margin)))
    left = round(box.x + (box.width - side) / 2)
    top = round(box.y + (box.height - side) / 2)
    return Box(left, top, side, side)


def _cut(field: np.ndarray, box: Box) -> np.ndarray:
    height, width = field.shape[:2]
    rows = np.clip(np.arange(box.y, box.y + box.height), 0, height - 1)
    columns = np.clip(np.arange(box.x, box.x + box.width), 0, width - 1)
    if box.x >= width or box.y >= height or box.x + box.width <= 0 or box.y + box.height <= 0:
        raise InputError(
            f"The box {box} lies outside the field of {width} x {height} pixels",
            fix="Give boxes in pixels of this field.",
            field="boxes",
        )
    return field[rows[:, None], columns]


def _with_contrast(mask: np.ndarray, dye: np.ndarray) -> np.ndarray:
    """The components of a mask 0/255 whose mean dye is a nucleus's; 0/1."""
    count, labels = cv2.connectedComponents(mask)
    sizes, total = np.zeros(count), np.zeros(count)
    for row in range(0, len(labels), 512):  # which takes 8 bytes a pixel for what it counts
        part, values = labels[row : row + 512].ravel(), dye[row : row + 512].ravel()
        sizes += np.bincount(part, minlength=count)
        total += np.bincount(part, weights=values, minlength=count)
    mean = total / np.maximum(sizes, 1)
    mean[0] = 0
    return (mean >= NUCLEAR_CONTRAST)[labels].astype(np.uint8)


def _nuclei(field: np.ndarray, most: int = MOST) -> np.ndarray:
    """A label for each nucleus of uint8 RGB (H, W, 3), as `_joined` gives them."""
    require_rgb(field)
    return _joined(_with_contrast(nucleus(field), nuclear_dye(field)), most)


def _joined(mask: np.ndarray, most: int = MOST) -> np.ndarray:
    """A label for each nucleus (H, W): lobes of one joined, touching ones separated; 0 outside."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count < 2:
        return parts
    if count - 1 > 4 * most:  # lobes of one nucleus are counted once they are joined
        raise _too_many(count - 1, most)
    away = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    reach = LOBE_GAP / 2 * equivalent_diameter(areas.max())
    labelled, labels = cv2.connectedComponents((away <= reach).astype(np.uint8))
    labels[mask == 0] = 0
    # Lobes look like touching nuclei; only against a field's typical size is one too large.
    typical = float(np.median(areas)) if len(areas) >= 3 else np.inf
    for part in np.flatnonzero(areas > 1.6 * typical) + 1:
        x, y, width, height, _ = stats[part].tolist()
        # With the rim around it, from which depth is measured.
        window = slice(max(0, y - 1), y + height + 1), slice(max(0, x - 1), x + width + 1)
        labelled = _separate(labels[window], parts[window] == part, labelled)
    return labels


def _separate(labels: np.ndarray, inside: np.ndarray, unused: int) -> int:
    """Give each of the touching round bodies in `inside` its own label from `unused` on, in place;
    the next unused label."""
    depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)
    bodies, cores = cv2.connectedComponents((depth > 0.7 * depth.max()).astype(np.uint8))
    if bodies < 3:
        return unused
    # Every pixel belongs to the nearest core, which OpenCV numbers in an order of its own.
    outside = (cores == 0).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(
        outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    labels[inside] = unused - 1 + nearest[inside]
    return unused + bodies - 1
