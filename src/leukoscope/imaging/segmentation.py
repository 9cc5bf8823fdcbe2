"""Nucleus segmentation: the papers' two methods and the best classical one here."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from leukoscope.errors import UnknownNameError
from leukoscope.imaging.colour import (
    background_colour,
    dark,
    density_levels,
    grey,
    histogram,
)
from leukoscope.imaging.pipeline import require_rgb, transforms

Method = Literal["nucleus", "otsu", "hsv"]
Polarity = Literal["dark", "bright"]
Level = Annotated[int, Field(ge=0, le=255)]
WORKING_SIDE = 1024
"""Larger images are segmented at this size by their longer side, in pixels."""
LEVELS = 128
MINIMAL_CONTRAST = 0.05
Hue = Annotated[int, Field(ge=0, le=179)]


def segment(
    image: np.ndarray, method: Method = "nucleus", polarity: Polarity = "dark"
) -> np.ndarray:
    """Nucleus mask of uint8 RGB (H, W, 3): uint8 (H, W), 255 inside and 0 outside.

    `otsu` and `hsv` are the methods of recipes 3 and 5 with their default settings, `nucleus` the
    best one here; `polarity` concerns `otsu` only. Raises UnknownNameError for another method or
    polarity, InputError for another kind of image.
    """
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "nucleus": nucleus,
        "otsu": lambda rgb: otsu(grey(rgb), polarity),
        "hsv": hsv,
    }
    if method not in methods:
        raise UnknownNameError("segmentation method", method, methods, field="method")
    if polarity not in ("dark", "bright"):
        raise UnknownNameError("polarity", polarity, ("dark", "bright"), field="polarity")
    require_rgb(image)
    return methods[method](image)


def otsu(channel: np.ndarray, polarity: Polarity = "dark", kernel: int = 5) -> np.ndarray:
    """Otsu's threshold of a uint8 channel (H, W), then closing by an ellipse: mask 0/255.

    Recipe 3 (Audina et al. 2026): the threshold with the largest variance between the classes (Otsu
    1979), then one dilation and one erosion by an elliptical element of `kernel` pixels.
    The paper takes the brighter pixels; in a bright-field smear these are the background, so that
    the default is `dark`, as its figures show.
    """
    kind = cv2.THRESH_BINARY_INV if polarity == "dark" else cv2.THRESH_BINARY
    _, mask = cv2.threshold(channel, 0, 255, kind | cv2.THRESH_OTSU)
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _ellipse(kernel))


def hsv(
    image: np.ndarray,
    hue_low: int = 110,
    hue_high: int = 175,
    saturation_low: int | None = None,
    value_high: int = 255,
) -> np.ndarray:
    """Pixels of uint8 RGB (H, W, 3) within thresholds of hue, saturation and value: mask 0/255.

    Recipe 5 (Patel et al. 2025), whose text gives no thresholds; HSV after Smith 1978. Hue in
    OpenCV's half degrees (0..179), 110 to 175 is the blue to magenta of Romanowsky stains; a range
    may run over 179 (hue_low > hue_high).
    Without `saturation_low` its threshold is Otsu's for the image.
    """
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    if saturation_low is None:
        saturation_low = int(cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU)[0]) + 1
    above, below = hue >= hue_low, hue <= hue_high
    coloured = above & below if hue_low <= hue_high else above | below
    inside = coloured & (saturation >= saturation_low) & (value <= value_high)
    return inside.astype(np.uint8) * 255


def nucleus(image: np.ndarray) -> np.ndarray:
    """Nuclei of white cells in uint8 RGB (H, W, 3): mask 0/255 (H, W).

    1. Absorptance per channel against the smear's own background, projected on r + g - 1.25 b:
       nuclear dye absorbs red and green, haemoglobin and eosin absorb blue as well.
    2. Three-class Otsu finds background, pale matter and nuclei; the largest nucleus gives the
       scale, with which the projection is smoothed and thresholded again.
    3. Small components (platelets, dye) are dropped, lobes beside a large one kept.
    4. A component that holds two well separated classes is a nucleus with dark cytoplasm: only
       its denser class stays.
    5. The threshold moves towards the middle of the edge around the nuclei found.

    No learned weights; every length is relative to the image or to its largest nucleus. Measured
    by benchmarks/segmentation.py. Where there is no nucleus at all, the densest matter is taken;
    `cells.find_cells` asks for a nucleus's contrast besides.
    """
    height, width = image.shape[:2]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    small = image
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    mask = _nucleus(small)
    if scale < 1:
        # Interpolated and cut at one half, the enlarged outline is smooth.
        mask = cv2.resize(mask * 255, (width, height), interpolation=cv2.INTER_LINEAR)
        return cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1]
    return mask * 255


def nuclear_dye(image: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
    """How much a pixel of uint8 RGB (H, W, 3) looks like a nucleus: float32 (H, W) in [0, 2].

    r + g - 1.25 b of the absorptances 1 - I / background, negative values cut to 0: near 0 for
    glass, about .2 for red cells, .5 and more for nuclei; 0 where the image is `opaque`.
    `background` (3,) as in `colour.optical_density`.
    """
    light = background_colour(image) if background is None else background
    planes = cv2.split(image)
    dye = _dye(planes, light)
    dye[_black(planes, light)] = 0
    return dye


def _dye(planes: Sequence[np.ndarray], light: np.ndarray) -> np.ndarray:
    """`nuclear_dye` of three uint8 planes (H, W), opaque or not."""
    absorptance = np.clip(1 - np.arange(256) / light[:, None], 0, 1)
    dye = _mixed(planes, absorptance, (1, 1, -1.25))
    return np.maximum(dye, 0, out=dye)


def _density(planes: Sequence[np.ndarray], light: np.ndarray) -> np.ndarray:
    """Optical density r + g - .5 b: unlike absorptance it still rises inside dark nuclei."""
    return _mixed(planes, np.minimum(density_levels(light), 2), (1, 1, -0.5))


def _mixed(
    planes: Sequence[np.ndarray], tables: np.ndarray, weights: Sequence[float]
) -> np.ndarray:
    """The weighted sum, float32 (H, W), of three uint8 planes, each looked up in its table."""
    # Weighted in the tables: one look-up a plane and two additions are all the work a pixel makes.
    tables = (tables * np.array(weights)[:, None]).astype(np.float32)
    total = cv2.LUT(planes[0], tables[0])
    for plane, table in zip(planes[1:], tables[1:], strict=True):
        cv2.add(total, cv2.LUT(plane, table), dst=total)
    return total


def _black(planes: Sequence[np.ndarray], light: np.ndarray) -> np.ndarray:
    """Where an image is `opaque` or may be a black area's blurred rim, whose grey looks like dye.

    Single black pixels have no rim.
    """
    black = dark(planes, light)
    if np.count_nonzero(black) <= 0.005 * black.size:
        return black
    rim = max(1, round(0.01 * max(black.shape)))
    kernel = np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)
    return cv2.dilate(black.view(np.uint8), kernel) > 0


def _nucleus(image: np.ndarray) -> np.ndarray:
    light, planes = background_colour(image), cv2.split(image)
    black = _black(planes, light)
    if black.any():
        # Nothing is known of what lies there; it passes for glass.
        for plane, level in zip(planes, np.rint(light), strict=True):
            plane[black] = level
    dye = _dye(planes, light)
    coarse = _smooth(dye, 0.005 * max(image.shape[:2]))
    threshold = _nuclear_threshold(coarse)
    result = np.zeros(dye.shape, np.uint8)
    if threshold is None:
        return result
    # The three-class threshold lies slightly inside the outline that people draw.
    outer = 0.97 * threshold
    dense = _above(coarse, outer)
    diameter = _largest_diameter(_above(coarse[_window(dense)], threshold))
    threshold = outer
    # Farther from all nuclei than this nothing is looked at, and blurs reach less far.
    window = _window(dense, 0.5 * diameter)
    fine = _smooth(dye[window], 0.035 * diameter)
    density = _smooth(_density([plane[window] for plane in planes], light), 0.05 * diameter)
    parts = _parts(_above(fine, threshold))
    result[window] = stained = parts.mask
    cytoplasm = _cytoplasm(parts, density, _surroundings(planes, light, result))
    mask = _at_the_edge(stained & ~cytoplasm, fine, threshold, diameter) & ~cytoplasm
    result[window] = _parts(mask).mask
    return _without_holes(result)


def _surroundings(planes: Sequence[np.ndarray], light: np.ndarray, mask: np.ndarray) -> float:
    """Median optical density outside the mask, of some 3,000 pixels evenly over the image."""
    some = slice(None, None, max(1, min(mask.shape) // 56))
    outside = mask[some, some] == 0
    density = _density([plane[some, some] for plane in planes], light)[outside]
    return _median(density) if density.size else 0.0


def _above(values: np.ndarray, threshold: float) -> np.ndarray:
    """Where values exceed the threshold: uint8 0/1."""
    return (values > threshold).view(np.uint8)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), max(sigma, 0.5))


def _nuclear_threshold(dye: np.ndarray) -> float | None:
    """The upper of two thresholds between three classes; None where there is no contrast.

    Nuclei fill a class evenly: its mean is .6 of its maximum and more. Where it is less, red cells
    fill the class and the nuclei are too few to count (low magnification, mauve red cells), so
    that the class is divided again.
    """
    top = float(dye.max())
    if top < MINIMAL_CONTRAST:
        return None
    counts = histogram((dye * ((LEVELS - 1) / top)).astype(np.uint8))[:LEVELS]
    _, high = _three_classes(counts)
    while True:
        counts[: high + 1] = 0
        if counts @ np.arange(LEVELS) >= 0.52 * np.flatnonzero(counts)[-1] * counts.sum():
            return (high + 1) / (LEVELS - 1) * top
        high = _otsu(counts)


def three_class_otsu(levels: np.ndarray, count: int = 256) -> tuple[int, int]:
    """The two thresholds that best split integer levels 0..count-1 into three classes (Otsu 1979).

    Values above the first threshold and up to the second form the middle class. Maximises the
    between-class variance over all pairs of thresholds at once.
    """
    return _three_classes(histogram(levels)[:count])


def _three_classes(counts: np.ndarray) -> tuple[int, int]:
    """`three_class_otsu` of levels that occur `counts` (n,) times."""
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * np.arange(len(counts)))])
    # Row i, column j: the classes end with the levels i and j.
    ends = np.arange(1, len(counts))
    mass = weight[ends] - weight[ends, None]
    np.maximum(mass, 1e-9, out=mass)
    scores = moment[ends] - moment[ends, None]
    scores *= scores
    scores /= mass
    scores += (moment[ends] ** 2 / np.maximum(weight[ends], 1e-9))[:, None]
    scores += (moment[-1] - moment[ends]) ** 2 / np.maximum(weight[-1] - weight[ends], 1e-9)
    scores += _in_order(len(ends))
    first, second = divmod(int(np.argmax(scores)), len(ends))
    return first, second


@functools.cache
def _in_order(count: int) -> np.ndarray:
    """0 where the column's number exceeds the row's, elsewhere minus infinity: (count, count)."""
    numbers = np.arange(count)
    return np.where(numbers > numbers[:, None], 0.0, -np.inf)


def _otsu(counts: np.ndarray) -> int:
    """Otsu's threshold of levels that occur `counts` (n,) times; the lower class ends with it."""
    weight, moment = np.cumsum(counts), np.cumsum(counts * np.arange(len(counts)))
    above = np.maximum(weight[-1] - weight, 1e-9)
    between = moment**2 / np.maximum(weight, 1e-9) + (moment[-1] - moment) ** 2 / above
    return int(np.argmax(between))


@dataclass(frozen=True)
class Component:
    """A connected nucleus or lobe: its bounding box and area in pixels."""

    x: int
    y: int
    width: int
    height: int
    area: int


def nucleus_components(mask: np.ndarray) -> list[Component]:
    """The connected components of a mask 0/255 (H, W), largest first."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    found = [Component(*map(int, row)) for row in stats[1:]]
    return sorted(found, key=lambda c: (-c.area, c.y, c.x))


def equivalent_diameter(area: float) -> float:
    """Diameter of the disc of that area."""
    return math.sqrt(4 * area / math.pi)


def _largest_diameter(mask: np.ndarray) -> float:
    areas = _components(mask)[1][1:, cv2.CC_STAT_AREA]
    return equivalent_diameter(int(areas.max())) if len(areas) else 0.0


def _components(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Labels, uint16 (H, W), and OpenCV's statistics, (n, 5), of the components of a mask.

    The masks here come from smoothed images of at most WORKING_SIDE, which hold nowhere near the
    65,535 components that uint16 can number; int32 takes three times as long.
    """
    found = cv2.connectedComponentsWithStats(mask, connectivity=connectivity, ltype=cv2.CV_16U)
    return found[1], found[2]


class _Parts(NamedTuple):
    """Components: labels (H, W), OpenCV's statistics of each, which count, and the mask of those
    that do, uint8 0/1 (H, W)."""

    labels: np.ndarray
    stats: np.ndarray
    kept: np.ndarray
    mask: np.ndarray


def _parts(mask: np.ndarray) -> _Parts:
    """The components of a mask 0/1; what is small beside the largest one doesn't count, except
    lobes close to a large one."""
    labels, stats = _components(mask)
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0
    kept = areas >= max(0.15 * areas.max(), 1)
    lobes = np.flatnonzero((areas >= max(0.05 * areas.max(), 1)) & ~kept)
    if lobes.size:
        away = cv2.distanceTransform(1 - kept.view(np.uint8).take(labels), cv2.DIST_L2, 3)
        reach = 0.15 * equivalent_diameter(areas.max())
        for lobe, (x, y, width, height, _) in zip(lobes, stats[lobes], strict=True):
            window = slice(y, y + height), slice(x, x + width)
            kept[lobe] = away[window][labels[window] == lobe].min() <= reach
    if not kept[1:].all():
        mask = kept.view(np.uint8).take(labels)
    return _Parts(labels, stats, kept, mask)


def _cytoplasm(parts: _Parts, density: np.ndarray, around: float) -> np.ndarray:
    """The paler of two classes in each component that clearly holds two: uint8 0/1 (H, W).

    Two numbers tell a nucleus with dark cytoplasm from a nucleus with texture: the contrast of
    the classes relative to that of the denser one against the density `around`, and the share of
    the variance between them (Otsu's separability). The product is .13 in a typical nucleus and
    .20 in the most textured; .25 and more means two things.
    """
    result = np.zeros(density.shape, np.uint8)
    for label in np.flatnonzero(parts.kept):
        x, y, width, height, area = parts.stats[label].tolist()
        window = slice(y, y + height), slice(x, x + width)
        inside = (parts.labels[window] == label).view(np.uint8)
        # The rim is a mixture with the surroundings, no class of its own.
        framed = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        depth = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
        core = depth > 0.04 * equivalent_diameter(area) + 1
        threshold = _two_classes(density[window][core], around)
        if threshold is not None:
            result[window] |= inside & ~_above(density[window], threshold)
    return result


def _at_the_edge(
    mask: np.ndarray, dye: np.ndarray, threshold: float, diameter: float
) -> np.ndarray:
    """Move the threshold 30 % towards halfway between the nuclei's inside and their surroundings.

    Otsu's threshold depends on how much of each class an image holds, the middle of the edge does
    not; alone, though, it runs away where the surroundings are mixed.
    """
    box = _window(mask)
    depth = cv2.distanceTransform(mask[box], cv2.DIST_L2, 3)
    away = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3)
    inside = dye[box][depth > 0.06 * diameter]
    around = dye[(away > 0.08 * diameter) & (away <= 0.3 * diameter)]
    if inside.size == 0 or around.size == 0:
        return mask
    middle = (_median(inside) + _median(around)) / 2
    moved = 0.7 * threshold + 0.3 * middle
    return ((dye > moved) & (away <= 0.1 * diameter)).view(np.uint8)


def _window(mask: np.ndarray, margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of the box around a mask, `margin` pixels and one more on each side."""
    x, y, width, height = cv2.boundingRect(mask)
    more = math.ceil(margin) + 1
    rows = slice(max(0, y - more), y + height + more)
    return rows, slice(max(0, x - more), x + width + more)


def _median(values: np.ndarray) -> float:
    """The (upper) median of float values (n,), quicker to find than the mean of the middle two."""
    middle = values.size // 2
    return float(np.partition(values, middle)[middle])


def _two_classes(values: np.ndarray, around: float) -> float | None:
    """Otsu's threshold of the values where they are two classes, None where they are one."""
    if values.size < 20:
        return None
    low, span = float(values.min()), float(np.ptp(values))
    if span < 1e-6:
        return None
    counts = histogram(((values - low) * (255 / span)).astype(np.uint8))
    cut = _otsu(counts)
    share = int(counts[cut + 1 :].sum()) / values.size
    # A small dense part is a lobe over another, not a nucleus in its cytoplasm.
    if share < 0.5 or share == 1:
        return None
    levels = np.arange(256) + 0.5
    total, upper = counts @ levels, counts[cut + 1 :] @ levels[cut + 1 :]
    dense = upper / (share * values.size)
    pale = (total - upper) / ((1 - share) * values.size)
    variance = counts @ (levels - total / values.size) ** 2 / values.size
    contrast = (dense - pale) / max(dense - (around - low) * (255 / span), 1e-6)
    separability = share * (1 - share) * (dense - pale) ** 2 / variance
    return low + (cut + 1) / 255 * span if contrast * separability > 0.25 else None


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Fill holes smaller than 6 % of the mask; larger ones are cytoplasm in a ring."""
    height, width = mask.shape
    x, y, across, down = cv2.boundingRect(mask)
    _, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    inner = tree is not None and (tree[0, :, 3] >= 0).any()
    if not inner and x > 0 and y > 0 and x + across < width and y + down < height:
        return mask  # Neither a hole nor a corner cut off: mostly so, and quick to see.
    labels, stats = _components(1 - mask, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < 0.06 * cv2.countNonZero(mask)
    small[0] = False
    return mask | small.view(np.uint8).take(labels)


@transforms.register("otsu_mask")
def otsu_mask(
    image: np.ndarray,
    *,
    polarity: Polarity = "dark",
    kernel: Annotated[int, Field(ge=1, le=99)] = 5,
) -> np.ndarray:
    """Recipe 3: grey, Otsu, elliptical closing; the grey foreground in three channels, 0 outside.

    `polarity` says whether pixels darker (default) or brighter (the paper's literal text) than the
    threshold are the foreground; `kernel` is the closing element's size in pixels.
    """
    luminance = grey(image)
    inside = cv2.bitwise_and(luminance, otsu(luminance, polarity, kernel))
    return cv2.cvtColor(inside, cv2.COLOR_GRAY2RGB)


@transforms.register("hsv_mask")
def hsv_mask(
    image: np.ndarray,
    *,
    hue_low: Hue = 110,
    hue_high: Hue = 175,
    saturation_low: Level | None = None,
    value_high: Level = 255,
) -> np.ndarray:
    """Recipe 5: the RGB image with everything outside the HSV thresholds (see `hsv`) set to 0."""
    return _inside(image, hsv(image, hue_low, hue_high, saturation_low, value_high))


@transforms.register("nucleus_mask")
def nucleus_mask(image: np.ndarray) -> np.ndarray:
    """The RGB image with everything outside the nuclei (`segment`, method `nucleus`) set to 0."""
    return _inside(image, nucleus(image))


def _inside(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return cv2.bitwise_and(image, image, mask=mask)


def _ellipse(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
