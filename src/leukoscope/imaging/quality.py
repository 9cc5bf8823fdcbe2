"""Flags of image quality: blur, exposure, saturation, debris and emptiness, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from leukoscope.imaging.colour import background_colour, grey, opaque
from leukoscope.imaging.enhancement import resized
from leukoscope.imaging.pipeline import require_rgb
from leukoscope.imaging.segmentation import nuclear_dye

SIDE = 256
FLAGS = ("blur", "under_exposed", "over_exposed", "unsaturated", "debris", "empty")


@dataclass(frozen=True)
class Limits:
    """Where a score of `quality` turns into a flag."""

    sharpness: float = 0.075
    background_low: float = 90.0
    clipped_high: float = 0.6
    saturation_low: float = 0.05
    debris_high: float = 0.01
    dye_low: float = 0.25


def quality(image: np.ndarray) -> dict[str, float]:
    """Scores of uint8 RGB (H, W, 3), measured with its longer side at most 256 px.

    - `sharpness`: 99th percentile of the change of luminance from pixel to pixel, relative to the
      range of luminance (99th less 1st percentile): the steepest edges, whatever the contrast;
      0 for an image of one level;
    - `background`: luminance of the smear's background, 0..255;
    - `clipped`: share of pixels with every channel at 255;
    - `saturation`: mean HSV saturation of the tenth of the pixels with the most colour, 0..1;
    - `debris`: share of `opaque` pixels, black as no dye is: ink, dirt, the field stop;
    - `dye`: 99.5th percentile of `nuclear_dye`, about .2 without nuclei, .5 and more with.

    Raises InputError for another kind of image.
    """
    require_rgb(image)
    scale = min(1.0, SIDE / max(image.shape[:2]))
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    small = resized(image, height, width)
    light = background_colour(small)
    colour = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)[:, :, 1] / 255
    return {
        "sharpness": _sharpness(grey(small).astype(np.float32)),
        "background": float(light @ (0.299, 0.587, 0.114)),
        "clipped": float((small.min(axis=2) == 255).mean()),
        "saturation": float(colour[colour >= np.percentile(colour, 90)].mean()),
        "debris": float(opaque(small, light).mean()),
        "dye": float(np.percentile(nuclear_dye(small), 99.5)),
    }


def flags(image: np.ndarray, limits: Limits | None = None) -> list[str]:
    """What is wrong with uint8 RGB (H, W, 3), a subset of `FLAGS` in its order.

    A score beyond its limit is a flag; see `quality` for the scores.
    """
    limits = limits or Limits()
    scores = quality(image)
    wrong = {
        "blur": scores["sharpness"] < limits.sharpness,
        "under_exposed": scores["background"] < limits.background_low,
        "over_exposed": scores["clipped"] > limits.clipped_high,
        "unsaturated": scores["saturation"] < limits.saturation_low,
        "debris": scores["debris"] > limits.debris_high,
        "empty": scores["dye"] < limits.dye_low,
    }
    return [name for name in FLAGS if wrong[name]]


def _sharpness(luminance: np.ndarray) -> float:
    low, high = np.percentile(luminance, [1, 99])
    if high - low < 1:
        return 0.0
    down = np.abs(np.diff(luminance, axis=0)).ravel()
    across = np.abs(np.diff(luminance, axis=1)).ravel()
    return float(np.percentile(np.concatenate([down, across]), 99) / (high - low))
