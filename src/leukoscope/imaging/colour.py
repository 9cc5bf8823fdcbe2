"""Colour: grey and luminance, the smear's background, white balance and scaling to floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from leukoscope.imaging.pipeline import transforms

Triple = tuple[float, float, float]
SCALES: dict[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of RGB in [0, 1] that give ImageNet's scale (Krizhevsky et al. 2012
subtract the mean; the figures are those of torchvision's models), [0, 1] and [-1, 1]."""
BLACK = 0.12
"""Share of the background's light below which a pixel is black, which no dye is."""
_LOGARITHMS = np.log10(np.maximum(np.arange(256), 1))


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance .299 R + .587 G + .114 B (ITU-R BT.601) of uint8 RGB (H, W, 3), uint8 (H, W)."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def with_luminance(image: np.ndarray, luminance: np.ndarray) -> np.ndarray:
    """The image with its BT.601 luminance replaced by uint8 `luminance` (H, W), chroma kept.

    Through YCrCb, where colours that RGB can't hold at the new luminance are clipped.
    """
    ycrcb = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    ycrcb[:, :, 0] = luminance
    return cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """`gain` and `offset`, float32 (3,): x gain - offset is (x / 255 - mean) / std for x in 0..255.

    mean and std are in units of [0, 1], red first, as in SCALES. Training and inference take both
    numbers from here.
    """
    spread = np.asarray(std, np.float64)
    gain, offset = 1 / (255 * spread), np.asarray(mean, np.float64) / spread
    return gain.astype(np.float32), offset.astype(np.float32)


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 RGB (H, W, 3) to a network's input: float32 (3, H, W), contiguous.

    (x / 255 - mean) / std per channel; see `normalisation`.
    """
    gain, offset = normalisation(mean, std)
    # A table of 256 levels a channel: no float is computed per pixel, and the planes come out
    # as the network wants them.
    tables = np.arange(256, dtype=np.float32) * gain[:, None] - offset[:, None]
    scaled = np.empty((3, *image.shape[:2]), np.float32)
    for plane, table, out in zip(cv2.split(image), tables, scaled, strict=True):
        cv2.LUT(plane, table, dst=out)
    return scaled


def background_colour(image: np.ndarray) -> np.ndarray:
    """The unstained background's colour of uint8 RGB (H, W, 3): float64 (3,) in [1, 255].

    The median of the brightest tenth of the pixels by luminance. Glass between the cells is the
    brightest thing in a bright-field smear, and a tenth of it shows even in a tight crop; a median
    ignores single glints. Black pixels don't count: around a field of view or a cell cut out of
    its image they may be nearly all there is.
    """
    brightness = grey(image)
    # Counting 256 levels is many times faster than sorting the pixels.
    counts = histogram(brightness)
    top = np.searchsorted(np.cumsum(counts), 0.999 * brightness.size)
    counts[: int(BLACK * top)] = 0
    at_least = np.searchsorted(np.cumsum(counts), 0.9 * counts.sum())
    bright = image.reshape(-1, 3).take(np.flatnonzero(brightness >= at_least), axis=0)
    medians = [_median(histogram(bright[:, None], channel)) for channel in range(3)]
    return np.array([max(median, 1) for median in medians], np.float64)


def histogram(image: np.ndarray, channel: int = 0) -> np.ndarray:
    """How often each level occurs in a channel of uint8 (H, W), (n,) or (H, W, 3): int64 (256,)."""
    most = 2**24  # counted in float32, which is exact up to here
    if image.size <= most:
        return cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    plane = image if image.ndim < 3 else image[..., channel]
    flat = np.ascontiguousarray(plane).reshape(-1, 1)
    parts = [histogram(flat[start : start + most]) for start in range(0, len(flat), most)]
    return np.sum(parts, axis=0)


def percentiles(counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Percentiles, `shares` in 0..100, of levels that occur `counts` (256,) times: float64.

    Interpolated linearly between the two nearest, as `numpy.percentile` does.
    """
    sums = np.cumsum(counts)
    place = np.asarray(shares) / 100 * (int(sums[-1]) - 1)
    below = np.searchsorted(sums, np.floor(place), side="right")
    above = np.searchsorted(sums, np.ceil(place), side="right")
    return below + (above - below) * (place % 1)


def _median(counts: np.ndarray) -> int:
    """The (lower) median of levels that occur `counts` (n,) times."""
    sums = np.cumsum(counts)
    return int(np.searchsorted(sums, (int(sums[-1]) + 1) // 2))


def opaque(image: np.ndarray, background: np.ndarray, level: float = BLACK) -> np.ndarray:
    """Where uint8 RGB (H, W, 3) has every channel below `level` of the light: bool (H, W).

    Ink, dirt and the field stop let no colour through; a stained nucleus always passes some blue.
    """
    return dark(cv2.split(image), background, level)


def dark(planes: Sequence[np.ndarray], background: np.ndarray, level: float = BLACK) -> np.ndarray:
    """`opaque` of the three channels, each uint8 (H, W)."""
    red, green, blue = planes
    return cv2.max(cv2.max(red, green), blue) < level * float(background.max())


def optical_density(image: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
    """Absorbance per channel, -log10(I / background): float32 (H, W, 3), at least 0.

    Beer-Lambert law; proportional to the amount of dye. `background` (3,) is the light without
    dye, by default `background_colour(image)`; dividing by it is also the white balance.
    """
    light = background_colour(image) if background is None else np.asarray(background, np.float64)
    table = density_levels(light).T.astype(np.float32)
    return cv2.LUT(image, table.reshape(1, 256, 3))


def density_levels(light: np.ndarray) -> np.ndarray:
    """`optical_density` of the levels 0..255 in each channel whose light is `light` (3,): float64
    (3, 256), to be looked up instead of computing a logarithm a pixel."""
    return np.maximum(np.log10(np.maximum(light, 1.0))[:, None] - _LOGARITHMS, 0.0)


@transforms.register("white_balance")
def white_balance(
    image: np.ndarray, *, white: Annotated[int, Field(ge=1, le=255)] = 245
) -> np.ndarray:
    """Scale each channel so that the unstained background becomes neutral, at level `white`.

    The von Kries diagonal model with the smear's background (`background_colour`) as the white.
    """
    gain = white / background_colour(image)
    table = np.clip(np.rint(np.arange(256)[:, None] * gain), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(1, 256, 3))
