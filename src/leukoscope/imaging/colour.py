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
    scaled = image.astype(np.float32) * gain - offset
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def background_colour(image: np.ndarray) -> np.ndarray:
    """The unstained background's colour of uint8 RGB (H, W, 3): float64 (3,) in [1, 255].

    The median of the brightest tenth of the pixels by luminance. Glass between the cells is the
    brightest thing in a bright-field smear, and a tenth of it shows even in a tight crop; a median
    ignores single glints. Black pixels don't count: around a field of view or a cell cut out of
    its image they may be nearly all there is.
    """
    brightness = grey(image)
    # Counting 256 levels is several times faster than sorting the pixels.
    counts = np.bincount(brightness.ravel(), minlength=256)
    top = np.searchsorted(np.cumsum(counts), 0.999 * brightness.size)
    counts[: int(BLACK * top)] = 0
    at_least = np.searchsorted(np.cumsum(counts), 0.9 * counts.sum())
    bright = image[brightness >= at_least]
    return np.array([max(_median(bright[:, channel]), 1) for channel in range(3)], np.float64)


def _median(levels: np.ndarray) -> int:
    """The (lower) median of uint8 values (n,)."""
    return int(np.searchsorted(np.cumsum(np.bincount(levels)), (levels.size + 1) // 2))


def opaque(image: np.ndarray, background: np.ndarray, level: float = BLACK) -> np.ndarray:
    """Where uint8 RGB (H, W, 3) has every channel below `level` of the light: bool (H, W).

    Ink, dirt and the field stop let no colour through; a stained nucleus always passes some blue.
    """
    red, green, blue = cv2.split(image)
    return cv2.max(cv2.max(red, green), blue) < level * float(background.max())


def optical_density(image: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
    """Absorbance per channel, -log10(I / background): float32 (H, W, 3), at least 0.

    Beer-Lambert law; proportional to the amount of dye. `background` (3,) is the light without
    dye, by default `background_colour(image)`; dividing by it is also the white balance.
    """
    light = background_colour(image) if background is None else np.asarray(background, np.float64)
    # One look-up table a channel: 256 logarithms instead of one a pixel.
    levels = np.log10(np.maximum(np.arange(256, dtype=np.float64), 1.0))
    table = np.maximum(np.log10(np.maximum(light, 1.0)) - levels[:, None], 0.0)
    return cv2.LUT(image, table.reshape(1, 256, 3).astype(np.float32))


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
