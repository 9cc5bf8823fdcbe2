"""Flags of image quality: blur, exposure, saturation, debris and emptiness, as plain numbers.

Every score is relative, to the light, to the nucleus or to what is visible, so that one set of
limits serves fields and single cells of any size and stain.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from leukoscope.imaging.colour import background_colour, grey, opaque
from leukoscope.imaging.enhancement import resized
from leukoscope.imaging.pipeline import require_rgb
from leukoscope.imaging.segmentation import equivalent_diameter, nucleus, nucleus_components

SIDE = 512
ENOUGH = 100
"""Pixels in and around the nuclei below which there is no chromatin that blur could take away."""
PIXELS = 1.4
"""Blur in pixels that is due to the pixels themselves, to resizing and to compression."""
FLAGS = ("blur", "under_exposed", "over_exposed", "unsaturated", "debris", "empty")


@dataclass(frozen=True)
class Limits:
    """Where a score of `quality` turns into a flag."""

    blur_high: float = 0.06
    background_low: float = 90.0
    clipped_high: float = 0.7
    contrast_low: float = 0.17
    saturation_low: float = 0.05
    debris_high: float = 0.01
    stained_low: float = 0.005


def quality(image: np.ndarray) -> dict[str, float | None]:
    """Scores of uint8 RGB (H, W, 3), measured with its longer side at most 512 px.

    What surrounds all of a picture in black, a field stop or the mask of a cut-out cell, is left
    out: the dark at the border where all four corners are dark.

    - `blur`: standard deviation of the blur at the edges of the nuclei, in diameters of the
      largest nucleus. An edge's slope and its slope after a further blur r are as sqrt(s^2 + r^2)
      to s (Zhuo and Sim, Pattern Recognition 44, 2011). Chromatin is lost at about .06. What is
      due to the pixels themselves is taken off. None where less than ENOUGH is seen of nuclei;
    - `background`: luminance of the smear's background, 0..255;
    - `clipped`: share of the stained pixels with a channel at 255; of all pixels where none is
      stained;
    - `contrast`: share of the background's light that the darkest hundredth absorbs, 0..1;
    - `saturation`: mean HSV saturation of the tenth of the pixels with the most colour, 0..1;
    - `debris`: share of `opaque` pixels, black as no dye is: ink, dirt, half a field stop;
    - `stained`: share of pixels that absorb a tenth of a channel's light or more, black aside.

    Raises InputError for another kind of image.
    """
    require_rgb(image)
    scale = min(1.0, SIDE / max(image.shape[:2]))
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    small = resized(image, height, width)
    light = background_colour(small)
    black = opaque(small, light)
    seen = ~_surroundings(opaque(small, light, level=0.35))
    if not seen.any():
        seen[:] = True
    # Noise is no stain.
    smooth = cv2.GaussianBlur(small, (0, 0), max(0.5, 0.01 * max(height, width)))
    clear = seen & ~black
    levels = zip(cv2.split(smooth), 0.9 * light, strict=True)
    absorbs = np.logical_or.reduce([channel < level for channel, level in levels]) & clear
    red, green, blue = cv2.split(small)
    return {
        "blur": _blur(small, clear),
        "background": float(light @ (0.299, 0.587, 0.114)),
        "clipped": _share(
            cv2.max(cv2.max(red, green), blue) == 255, absorbs if absorbs.any() else seen
        ),
        "contrast": _contrast(small, clear, light),
        "saturation": _saturation(small, clear),
        "debris": _share(black, seen),
        "stained": _share(absorbs, seen),
    }


def flags(image: np.ndarray, limits: Limits | None = None) -> list[str]:
    """What is wrong with uint8 RGB (H, W, 3), a subset of `FLAGS` in its order.

    A score beyond its limit is a flag; see `quality` for the scores. `over_exposed` is also what
    is washed out; an `empty` image can't be.
    """
    limits = limits or Limits()
    scores = {name: value or 0.0 for name, value in quality(image).items()}
    empty = scores["stained"] < limits.stained_low
    washed_out = scores["contrast"] < limits.contrast_low and not empty
    wrong = {
        "blur": scores["blur"] > limits.blur_high,
        "under_exposed": scores["background"] < limits.background_low,
        "over_exposed": scores["clipped"] > limits.clipped_high or washed_out,
        "unsaturated": scores["saturation"] < limits.saturation_low,
        "debris": scores["debris"] > limits.debris_high,
        "empty": empty,
    }
    return [name for name in FLAGS if wrong[name]]


def _share(of: np.ndarray, among: np.ndarray) -> float:
    return float(of[among].mean())


def _surroundings(dark: np.ndarray) -> np.ndarray:
    """What frames a picture: the dark that reaches the border, if all four corners are dark."""
    corners = dark[[0, 0, -1, -1], [0, -1, 0, -1]]
    if not corners.all():
        return np.zeros_like(dark)
    _, labels = cv2.connectedComponents(dark.astype(np.uint8))
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, border[border > 0])


def _contrast(image: np.ndarray, clear: np.ndarray, light: np.ndarray) -> float:
    if not clear.any():
        return 0.0
    darkest = float(np.percentile(grey(image)[clear], 1))
    return max(0.0, 1 - darkest / float(light @ (0.299, 0.587, 0.114)))


def _saturation(image: np.ndarray, clear: np.ndarray) -> float:
    if not clear.any():
        return 0.0
    colour = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[:, :, 1][clear] / 255
    return float(colour[colour >= np.percentile(colour, 90)].mean())


def _blur(image: np.ndarray, clear: np.ndarray) -> float | None:
    """Standard deviation of the blur around the nuclei, in diameters of the largest."""
    mask = nucleus(image)
    found = nucleus_components(mask)
    if not found:
        return None
    diameter = equivalent_diameter(found[0].area)
    # Levels of grey and noise have slopes, too; a little blur takes them away.
    before, again = 0.02 * diameter, max(0.05 * diameter, 1.0)
    once = _blurred(grey(image).astype(np.float32), clear, before)
    twice = _blurred(once, clear, again)
    near = cv2.distanceTransform(255 - mask, cv2.DIST_L2, 3) <= 0.15 * diameter
    near &= cv2.erode(clear.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if near.sum() < ENOUGH:
        return None
    # An edge is compared by its steepest point: blurred, it is as wide as the blur.
    window = np.ones((2 * round(again) + 1,) * 2, np.uint8)
    steep = cv2.dilate(_slope(once) * clear, window)
    softer = cv2.dilate(_slope(twice) * clear, window)
    edges = near & (softer >= np.percentile(softer[near], 90))
    ratio = float(np.median(steep[edges] / np.maximum(softer[edges], 1e-6)))
    # Blurs add as squares.
    present = again**2 / max(ratio**2 - 1, 1e-4)
    return float(np.sqrt(max(0.0, present - before**2 - PIXELS**2))) / diameter


def _blurred(values: np.ndarray, clear: np.ndarray, sigma: float) -> np.ndarray:
    """Blurred so that what is not clear gives nothing to its neighbours' mean."""
    weight = clear.astype(np.float32)
    total = cv2.GaussianBlur(weight, (0, 0), max(sigma, 0.1))
    return cv2.GaussianBlur(values * weight, (0, 0), max(sigma, 0.1)) / np.maximum(total, 1e-6)


def _slope(values: np.ndarray) -> np.ndarray:
    across = cv2.Sobel(values, cv2.CV_32F, 1, 0)
    return cv2.magnitude(across, cv2.Sobel(values, cv2.CV_32F, 0, 1))
