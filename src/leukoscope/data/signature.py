"""What is kept of a picture so that audits and splits never decode it again.

Three small summaries of an image (uint8 RGB, height x width x 3): a grey thumbnail, a perceptual
hash and the colour moments. Equal pixels give equal summaries.
"""

from __future__ import annotations

import cv2
import numpy as np

from leukoscope.imaging.colour import histogram, percentiles

SIDE = 48
"""Side of the stored grey thumbnail in pixels: 2.3 kB an image."""

COLOUR_FEATURES: tuple[str, ...] = tuple(
    f"{moment}_{channel}"
    for channel in ("red", "green", "blue")
    for moment in ("mean", "standard_deviation", "skewness")
)
"""Names of the nine values of `colour_moments`, in their order."""

_HASH_INPUT, _HASH_SIDE = 32, 8
_FRAME_NOISE = 10  # grey levels that compression may add to a uniform frame
_FRAME_SPECKS = 0.01  # share of a row that must be bright for it to count as content
_FRAME_SMALLEST = 8  # pixels; less is a speck, not a cell


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The image in grey, (SIDE, SIDE) uint8, whatever its aspect ratio.

    Rotating or flipping the image rotates or flips its thumbnail (up to rounding), because both
    sides are stretched to SIDE. A uniform dark frame, as around cells cut out on black, is left
    out: it would spend most of the pixels on nothing and make all such cells look alike.
    """
    return _shrink(_without_dark_frame(_grey(image)), SIDE)


def phash(image: np.ndarray) -> str:
    """Perceptual hash, 16 hexadecimal digits, the same for all eight orientations of the image.

    The DCT hash of Zauner (2010), "Implementation and Benchmarking of Perceptual Image Hash
    Functions", section 3.2.1: the 64 lowest frequencies but the first row and column of a 32 x 32
    grey version, each compared with their median. A mirrored image has the same coefficients with
    the odd ones negated, a transposed one has them transposed: so all eight hashes follow from one
    DCT, and the smallest is taken. Flat images hash to zeros.
    """
    # In floating point: OpenCV's integer resampling is not the same from left and from right.
    small = _shrink(cv2.boxFilter(_grey(image), cv2.CV_32F, (7, 7)), _HASH_INPUT)
    block = cv2.dct(small)[1 : 1 + _HASH_SIDE, 1 : 1 + _HASH_SIDE]
    # Rounding noise must not decide a bit, or equal pictures in two orientations would differ.
    block = np.where(np.abs(block) < 0.5, 0, block)
    odd = np.where(np.arange(1, 1 + _HASH_SIDE) % 2, -1, 1)
    orientations = [
        turned * down * across
        for turned in (block, block.T)
        for down in (1, odd[:, None])
        for across in (1, odd[None, :])
    ]
    views = np.stack(orientations).reshape(len(orientations), -1)
    bits = np.packbits(views > np.median(views, axis=1, keepdims=True), axis=1)
    return min(row.tobytes() for row in bits).hex()


def colour_moments(image: np.ndarray) -> np.ndarray:
    """Nine global colour statistics, float64 (9,), in grey levels; names in COLOUR_FEATURES.

    Of red, green and blue each: mean (0 to 255), standard deviation, and skewness as the cube root
    of the third central moment, which stays defined on flat images (Stricker and Orengo, 1995,
    "Similarity of color images", equation 3). They don't depend on where anything is.
    """
    levels = np.arange(256, dtype=np.float64)
    moments = []
    for channel in range(3):
        counts = histogram(image, channel)
        share = counts / counts.sum()
        mean = share @ levels
        moments += [
            mean,
            np.sqrt(share @ (levels - mean) ** 2),
            np.cbrt(share @ (levels - mean) ** 3),
        ]
    return np.array(moments)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)


def _without_dark_frame(grey: np.ndarray) -> np.ndarray:
    """The box around what is brighter than a uniform border; all of it where there is none."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    low, frame, high = percentiles(histogram(border), [2, 50, 98])
    (top,) = percentiles(histogram(np.ascontiguousarray(grey[::4, ::4])), [99.5])
    if high - low > _FRAME_NOISE or top - frame < 4 * _FRAME_NOISE:
        return grey
    content = grey > frame + (top - frame) / 4
    rows = np.flatnonzero(content.mean(axis=1) > _FRAME_SPECKS)
    columns = np.flatnonzero(content.mean(axis=0) > _FRAME_SPECKS)
    if min(rows.size, columns.size) < _FRAME_SMALLEST:
        return grey
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _shrink(grey: np.ndarray, side: int) -> np.ndarray:
    # Area averaging is right for shrinking only; enlarged, it gives blocks instead of a ramp.
    larger = min(grey.shape) >= side
    return cv2.resize(
        grey, (side, side), interpolation=cv2.INTER_AREA if larger else cv2.INTER_LINEAR
    )
