"""Nucleus segmentation: the papers' two methods and the best classical one here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from leukoscope.errors import UnknownNameError
from leukoscope.imaging.colour import background_colour, grey, opaque, optical_density
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
    table = np.clip(1 - np.arange(256)[:, None] / light, 0, 1).astype(np.float32)
    absorptance = cv2.LUT(image, table.reshape(1, 256, 3))
    dye = np.maximum(cv2.transform(absorptance, np.array([[1, 1, -1.25]], np.float32)), 0)
    dye[_black(image, light)] = 0
    return dye


def _black(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Where the image is `opaque` or may be a black area's blurred rim, whose grey looks like dye.

    Single black pixels have no rim.
    """
    black = opaque(image, light)
    if black.mean() <= 0.005:
        return black
    rim = max(1, round(0.01 * max(black.shape)))
    kernel = np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)
    return cv2.dilate(black.astype(np.uint8), kernel) > 0


def _nucleus(image: np.ndarray) -> np.ndarray:
    light = background_colour(image)
    black = _black(image, light)
    if black.any():
        # Nothing is known of what lies there; it passes for glass.
        image = np.where(black[:, :, None], np.rint(light).astype(np.uint8), image)
    dye = nuclear_dye(image, light)
    coarse = _smooth(dye, 0.005 * max(image.shape[:2]))
    threshold = _nuclear_threshold(coarse)
    if threshold is None:
        return np.zeros(dye.shape, np.uint8)
    diameter = _largest_diameter((coarse > threshold).astype(np.uint8))
    # The three-class threshold lies slightly inside the outline that people draw.
    threshold *= 0.97
    fine = _smooth(dye, 0.035 * diameter)
    density = _smooth(_density(image, light), 0.05 * diameter)
    stained = _without_small((fine > threshold).astype(np.uint8))
    mask = _without_cytoplasm(stained, density)
    cytoplasm = stained - mask
    mask = _at_the_edge(mask, fine, threshold, diameter) & (1 - cytoplasm)
    return _without_holes(_without_small(mask))


def _density(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Optical density r + g - .5 b: unlike absorptance it still rises inside dark nuclei."""
    density = np.minimum(optical_density(image, light), 2)
    return cv2.transform(density, np.array([[1, 1, -0.5]], np.float32))


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
    levels = (dye * ((LEVELS - 1) / top)).astype(np.uint8)
    _, high = three_class_otsu(levels, LEVELS)
    upper = levels[levels > high]
    while upper.mean() < 0.52 * upper.max():
        high = int(cv2.threshold(upper.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)[0])
        upper = upper[upper > high]
    return (high + 1) / (LEVELS - 1) * top


def three_class_otsu(levels: np.ndarray, count: int = 256) -> tuple[int, int]:
    """The two thresholds that best split integer levels 0..count-1 into three classes (Otsu 1979).

    Values above the first threshold and up to the second form the middle class. Maximises the
    between-class variance over all pairs of thresholds at once.
    """
    counts = np.bincount(levels.ravel(), minlength=count).astype(np.float64)
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * np.arange(count))])

    def between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        mass = weight[high] - weight[low]
        return (moment[high] - moment[low]) ** 2 / np.maximum(mass, 1e-9)

    first, second = np.triu_indices(count - 1, 1)
    scores = (
        between(np.zeros_like(first), first + 1)
        + between(first + 1, second + 1)
        + between(second + 1, np.full_like(second, count))
    )
    best = int(np.argmax(scores))
    return int(first[best]), int(second[best])


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
    found = nucleus_components(mask)
    return equivalent_diameter(found[0].area) if found else 0.0


def _without_small(mask: np.ndarray) -> np.ndarray:
    """Drop what is small beside the largest component, except lobes close to a large one."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0
    large = areas >= 0.15 * areas.max()
    if large[1:].all():
        return mask
    away = cv2.distanceTransform(1 - large[labels].astype(np.uint8), cv2.DIST_L2, 3)
    close = labels[away <= 0.15 * equivalent_diameter(areas.max())]
    lobe = (np.bincount(close, minlength=count) > 0) & (areas >= 0.05 * areas.max())
    return (large | lobe)[labels].astype(np.uint8)


def _without_cytoplasm(mask: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Keep the denser of two classes in each component that clearly holds two.

    Two numbers tell a nucleus with dark cytoplasm from a nucleus with texture: the contrast of
    the classes relative to that of the denser one against the surroundings, and the share of the
    variance between them (Otsu's separability). The product is .13 in a typical nucleus and .20
    in the most textured; .25 and more means two things.
    """
    outside = density[mask == 0]
    if outside.size == 0:
        return mask
    around, result = float(np.median(outside)), mask.copy()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    for label, (x, y, width, height, area) in enumerate(stats[1:], start=1):
        window = slice(y, y + height), slice(x, x + width)
        inside = labels[window] == label
        # The rim is a mixture with the surroundings, no class of its own.
        depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)
        core = depth[1:-1, 1:-1] > 0.04 * equivalent_diameter(area) + 1
        threshold = _two_classes(density[window][core], around)
        if threshold is not None:
            result[window][inside & (density[window] <= threshold)] = 0
    return result


def _at_the_edge(
    mask: np.ndarray, dye: np.ndarray, threshold: float, diameter: float
) -> np.ndarray:
    """Move the threshold 30 % towards halfway between the nuclei's inside and their surroundings.

    Otsu's threshold depends on how much of each class an image holds, the middle of the edge does
    not; alone, though, it runs away where the surroundings are mixed.
    """
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    away = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3)
    inside = dye[depth > 0.06 * diameter]
    around = dye[(away > 0.08 * diameter) & (away <= 0.3 * diameter)]
    if inside.size == 0 or around.size == 0:
        return mask
    middle = (float(np.median(inside)) + float(np.median(around))) / 2
    moved = 0.7 * threshold + 0.3 * middle
    return ((dye > moved) & (away <= 0.1 * diameter)).astype(np.uint8)


def _two_classes(values: np.ndarray, around: float) -> float | None:
    """Otsu's threshold of the values where they are two classes, None where they are one."""
    if values.size < 20 or values.max() - values.min() < 1e-6:
        return None
    low, span = float(values.min()), float(np.ptp(values))
    levels = ((values - low) * (255 / span)).astype(np.uint8)
    cut, _ = cv2.threshold(levels.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)
    upper = levels > cut
    share = float(upper.mean())
    # A small dense part is a lobe over another, not a nucleus in its cytoplasm.
    if share < 0.5 or share == 1:
        return None
    dense = float(values[upper].mean())
    pale = float(values[~upper].mean())
    contrast = (dense - pale) / max(dense - around, 1e-6)
    separability = share * (1 - share) * (dense - pale) ** 2 / float(values.var())
    return low + (cut + 1) / 255 * span if contrast * separability > 0.25 else None


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Fill holes smaller than 6 % of the mask; larger ones are cytoplasm in a ring."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < 0.06 * int(mask.sum())
    small[0] = False
    return mask | small[labels].astype(np.uint8)


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
