"""Nucleus segmentation: the papers' two methods and the best classical one here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from leukoscope.errors import UnknownNameError
from leukoscope.imaging.colour import grey, optical_density
from leukoscope.imaging.pipeline import require_rgb, transforms

Method = Literal["nucleus", "otsu", "hsv"]
Polarity = Literal["dark", "bright"]
Level = Annotated[int, Field(ge=0, le=255)]
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

    Recipe 3: one dilation and one erosion by an elliptical structuring element of `kernel` pixels.
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

    Recipe 5, whose text gives no thresholds. Hue in OpenCV's half degrees (0..179), 110 to 175 is
    the blue to magenta of Romanowsky stains; a range may run over 179 (hue_low > hue_high).
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

    White-balanced optical density, projected on r + 1.5 g - .5 b, in which the nucleus stands out
    from red cells, and the densest of three classes of its histogram (Otsu 1979).
    """
    red, green, blue = cv2.split(optical_density(image))
    density = red + 1.5 * green - 0.5 * blue
    levels = np.clip(np.rint(density * 100), 0, 255).astype(np.uint8)
    _, high = three_class_otsu(levels)
    return (levels > high).astype(np.uint8) * 255


def three_class_otsu(levels: np.ndarray) -> tuple[int, int]:
    """The two thresholds that best split a uint8 array into three classes (Otsu 1979).

    Values above the first threshold and up to the second form the middle class. Maximises the
    between-class variance over all pairs of thresholds at once.
    """
    counts = np.bincount(levels.ravel(), minlength=256).astype(np.float64)
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * np.arange(256))])

    def between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        mass = weight[high] - weight[low]
        return (moment[high] - moment[low]) ** 2 / np.maximum(mass, 1e-9)

    first, second = np.triu_indices(256, 1)
    scores = (
        between(np.zeros_like(first), first + 1)
        + between(first + 1, second + 1)
        + between(second + 1, np.full_like(second, 256))
    )
    best = int(np.argmax(scores))
    return int(first[best]), int(second[best])


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
