"""Grad-CAM from a feature map and a gradient: arrays in, heat maps and pictures out."""

from __future__ import annotations

import cv2
import numpy as np


def heat_map(feature_map: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Where the evidence for a class lies, (h, w) in [0, 1] (Selvaraju et al. 2017, eq. 2).

    feature_map: (d, h, w). gradient: (d,) of the class's logit by the pooled features. All zeros
    where nothing speaks for the class.
    """
    weighed = np.tensordot(gradient, feature_map, axes=1)
    positive = np.maximum(weighed, 0)
    highest = positive.max()
    return positive / highest if highest > 0 else positive


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image, uint8 RGB (H, W, 3), under its heat map.

    Heat (h, w) in [0, 1] is drawn in inferno's colours, which read in grey and by the colour-blind,
    more opaque where it is hotter, so that the cell stays visible.
    """
    height, width = image.shape[:2]
    large = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    large = np.clip(large, 0, 1)
    colours = cv2.applyColorMap(np.uint8(255 * large), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = 0.65 * large[..., None]
    mixed = image * (1 - opacity) + colours * opacity
    return np.round(mixed).astype(np.uint8)
