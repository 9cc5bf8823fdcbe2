"""Resizing and contrast: what the five recipes do to an image before a network sees it."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field

from leukoscope.imaging.colour import grey, histogram, percentiles, with_luminance
from leukoscope.imaging.pipeline import Chain, Size, apply, transforms

GEOMETRIC = ("resize", "resize_keep_aspect")
"""The transforms that move pixels."""
_CELL = 3 * 2**20  # values of an image that is small enough to be copied as floats
_ENLARGE = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def resized(
    image: np.ndarray, height: int, width: int, enlarge: Literal["linear", "cubic"] = "linear"
) -> np.ndarray:
    """An array (H, W) or (H, W, C) at another size: area averages shrink, a spline enlarges.

    Axes that shrink are averaged over the area first, so that nothing aliases even where the
    other axis grows.
    """
    small = min(height, image.shape[0]), min(width, image.shape[1])
    if small != image.shape[:2]:
        image = _averaged(image, *small)
    if (height, width) != small:
        image = cv2.resize(image, (width, height), interpolation=_ENLARGE[enlarge])
    return image


def _averaged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averages of an array (H, W) or (H, W, C) on a grid of at most its size.

    OpenCV computes them one pixel after the other where the factors aren't whole. As sparse matrix
    products, first over the rows, then over the columns, they are the same to a rounding, in half
    of the time, but of a cell only: whole fields would be copied as floats.
    """
    old = image.shape[:2]
    whole = not (old[0] % height or old[1] % width)
    if image.ndim != 3 or image.dtype != np.uint8 or whole or image.size > _CELL:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    channels = image.shape[2]
    rows = _overlap(old[0], height) @ image.reshape(old[0], -1).astype(np.float32)
    turned = cv2.transpose(rows.reshape(height, old[1], channels)).reshape(old[1], -1)
    columns = cv2.convertScaleAbs(_overlap(old[1], width) @ turned)  # rounds
    return cv2.transpose(columns.reshape(width, height, channels))


@functools.lru_cache(maxsize=256)
def _overlap(old: int, new: int) -> Any:
    """(new, old) sparse float32: the share of each of `old` pixels in a mean over one of `new`."""
    from scipy.sparse import csr_array

    edges = np.arange(new + 1) * (old / new)
    most = -(-old // new) + 1
    pixels = np.minimum(edges[:-1, None].astype(int) + np.arange(most), old)
    ends = np.minimum(edges[1:, None], np.minimum(pixels + 1, old))
    shares = (ends - np.maximum(edges[:-1, None], pixels)).clip(0) * (new / old)
    kept = shares > 1e-6  # what rounding leaves is no pixel
    starts = np.concatenate([[0], kept.sum(axis=1).cumsum()])
    return csr_array((shares[kept].astype(np.float32), pixels[kept], starts), shape=(new, old))


def mask_after(mask: np.ndarray, chain: Chain) -> np.ndarray:
    """Where a mask of an image, bool (H, W), lies after the preprocessing chain, bool (h, w).

    Of the chain only what moves pixels is applied; what it adds around the image is outside.
    """
    moving = [step for step in chain if step["step"] in GEOMETRIC]
    # Inverted, so that the background that is added is white like the mask's outside.
    white = [{**s, "background": "white"} if s["step"] == GEOMETRIC[1] else s for s in moving]
    outside = np.where(mask, np.uint8(0), np.uint8(255))
    return apply(np.dstack([outside] * 3), white)[:, :, 0] < 128


def equalised(channel: np.ndarray) -> np.ndarray:
    """Global histogram equalisation of a uint8 channel (H, W); one of a single level stays.

    255 (C(v) - C(lowest)) / (1 - C(lowest)) with C the cumulative histogram (Gonzalez & Woods,
    Digital Image Processing, section 3.3).
    """
    return cv2.equalizeHist(channel)


def contrast_limited(channel: np.ndarray, clip: float, tiles: int) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of uint8 (H, W) (Zuiderveld, Graphics Gems
    IV, 1994): tiles are equalised with clipped histograms and interpolated bilinearly.

    `clip` is the limit in multiples of a uniform histogram's count, `tiles` the number of tiles
    along each axis (fewer where the image has fewer pixels).
    """
    height, width = channel.shape
    grid = min(tiles, width), min(tiles, height)
    return cv2.createCLAHE(clipLimit=clip, tileGridSize=grid).apply(channel)


def high_boost(channel: np.ndarray, sigma: float, alpha: float, beta: float) -> np.ndarray:
    """alpha I - beta Laplacian(Gaussian(I)) of a channel (H, W), not normalised.

    float64 of a float64 channel, float32 of any other. Equations 1 to 3 of Haque et al. 2024 (doi
    10.3390/biomedinformatics4020054). `sigma` in pixels, the Gaussian cut at 4 sigma, the
    Laplacian of four neighbours, borders mirrored.
    """
    kernel = 2 * int(4 * sigma + 0.5) + 1
    original = channel if channel.dtype == np.float64 else channel.astype(np.float32)
    blurred = cv2.GaussianBlur(original, (kernel, kernel), sigma, borderType=cv2.BORDER_REFLECT_101)
    laplacian = cv2.Laplacian(blurred, -1, ksize=1, borderType=cv2.BORDER_REFLECT_101)
    return cv2.addWeighted(original, alpha, laplacian, -beta, 0)


def min_max(values: np.ndarray) -> np.ndarray:
    """Float (H, W) stretched to 0..255 and rounded, uint8: equation 4 of the same paper times 255.

    All 0 for a constant array.
    """
    low, high, _, _ = cv2.minMaxLoc(values)
    # A range of rounding errors only is no range.
    if high - low <= 10 * np.finfo(values.dtype).eps * max(1.0, abs(low), abs(high)):
        return np.zeros(values.shape, np.uint8)
    return cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)


@transforms.register("resize")
def resize(
    image: np.ndarray, *, size: Size = 224, enlarge: Literal["linear", "cubic"] = "linear"
) -> np.ndarray:
    """Resize to `size` (an int for a square, or [height, width]) whatever the aspect ratio.

    Shrinks by area averages, enlarges by linear or cubic interpolation.
    """
    height, width = _pair(size)
    return resized(image, height, width, enlarge).copy()


@transforms.register("resize_keep_aspect")
def resize_keep_aspect(
    image: np.ndarray,
    *,
    size: Size = 224,
    background: Literal["edge", "white"] = "edge",
    enlarge: Literal["linear", "cubic"] = "linear",
) -> np.ndarray:
    """Resize to fit into `size` with the aspect ratio kept, centred on a plain background.

    `edge` fills with the median colour of the outermost pixels, `white` with 255.
    """
    height, width = _pair(size)
    scale = min(height / image.shape[0], width / image.shape[1])
    inner_height = min(height, max(1, round(image.shape[0] * scale)))
    inner_width = min(width, max(1, round(image.shape[1] * scale)))
    canvas = np.full((height, width, 3), 255, np.uint8)
    if background == "edge":
        frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        canvas[:] = np.rint(np.median(frame, axis=0)).astype(np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    inner = resized(image, inner_height, inner_width, enlarge)
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas


@transforms.register("equalise_luminance")
def equalise_luminance(image: np.ndarray) -> np.ndarray:
    """Global histogram equalisation of the luminance (Y of YCrCb), colour kept (recipe 1)."""
    return with_luminance(image, equalised(grey(image)))


@transforms.register("adaptive_contrast")
def adaptive_contrast(
    image: np.ndarray,
    *,
    clip: Annotated[float, Field(gt=0, le=100)] = 2.0,
    tiles: Annotated[int, Field(ge=1, le=64)] = 8,
) -> np.ndarray:
    """CLAHE on the lightness L of CIE Lab, colour kept (recipe 4)."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = contrast_limited(lab[:, :, 0], clip, tiles)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


@transforms.register("stretch_contrast")
def stretch_contrast(
    image: np.ndarray,
    *,
    low: Annotated[float, Field(ge=0, lt=50)] = 0.5,
    high: Annotated[float, Field(gt=50, le=100)] = 99.5,
) -> np.ndarray:
    """Histogram stretching (Gonzalez & Woods, ch. 3): the percentiles `low` and `high` of the
    BT.601 luminance become 0 and 255, in all three channels alike, which keeps the balance of
    colours (recipe 4). An image whose percentiles coincide stays as it is.
    """
    darkest, brightest = percentiles(histogram(grey(image)), (low, high))
    if not brightest > darkest:
        return image.copy()
    levels = (np.arange(256) - darkest) * (255 / (brightest - darkest))
    return cv2.LUT(image, np.rint(levels.clip(0, 255)).astype(np.uint8))


@transforms.register("brightness_contrast")
def brightness_contrast(
    image: np.ndarray,
    *,
    brightness: Annotated[float, Field(ge=-1, le=1)] = 0.0,
    contrast: Annotated[float, Field(ge=0, le=10)] = 1.0,
) -> np.ndarray:
    """contrast * (x - 127.5) + 127.5 + 255 * brightness, rounded and clipped to 0..255.

    `brightness` is a fraction of the full range, `contrast` a gain about mid-grey; the defaults
    change nothing.
    """
    levels = (np.arange(256) - 127.5) * contrast + 127.5 + 255 * brightness
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


@transforms.register("logmh")
def logmh(
    image: np.ndarray,
    *,
    sigma: Annotated[float, Field(gt=0, le=20)] = 1.0,
    alpha: Annotated[float, Field(ge=0, le=100)] = 1.0,
    beta: Annotated[float, Field(ge=0, le=100)] = 1.0,
    on: Literal["channels", "luminance"] = "channels",
) -> np.ndarray:
    """Laplacian of Gaussian, high boost and min-max normalisation (recipe 2, equations 1 to 4).

    `channels` (default) treats each of R, G, B alone and normalises it alone, which is what array
    code does to an RGB image; `luminance` replaces Y of YCrCb only and keeps the colour. The paper
    gives neither this choice nor sigma (pixels), alpha and beta: 1, 1, 1 sharpens visibly without
    drowning the cell. A channel of a single level, where equation 4 is undefined, stays as it is.
    """
    if on == "luminance":
        return with_luminance(image, _logmh(grey(image), sigma, alpha, beta))
    return cv2.merge([_logmh(plane, sigma, alpha, beta) for plane in cv2.split(image)])


def _logmh(channel: np.ndarray, sigma: float, alpha: float, beta: float) -> np.ndarray:
    low, high, _, _ = cv2.minMaxLoc(channel)
    return channel if low == high else min_max(high_boost(channel, sigma, alpha, beta))


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
