"""Grad-CAM from a feature map and a gradient: arrays in, heat maps and pictures out."""

from __future__ import annotations

import cv2
import numpy as np

OUTLINE = (255, 255, 255)


def heat_map(feature_map: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Where the evidence for a class lies, (h, w) in [0, 1] (Selvaraju et al. 2017, eq. 2).

    feature_map: (d, h, w). gradient: (d,) of the class's logit by the pooled features. All zeros
    where nothing speaks for the class.
    """
    return scaled(np.maximum(np.tensordot(gradient, feature_map, axes=1), 0))


def scaled(heat: np.ndarray) -> np.ndarray:
    """Values of at least 0, over their maximum; all zeros stay so."""
    highest = heat.max()
    return heat / highest if highest > 0 else heat


def enlarged(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """A heat map in [0, 1] at the size of the image it is of, (height, width) float32."""
    large = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(large, 0, 1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image, uint8 RGB (H, W, 3), under its heat map.

    Heat (h, w) in [0, 1] is drawn in inferno's colours, which read in grey and by the colour-blind,
    more opaque where it is hotter, so that the cell stays visible.
    """
    large = enlarged(heat, *image.shape[:2])
    colours = cv2.applyColorMap(np.uint8(255 * large), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = 0.65 * large[..., None]
    mixed = image * (1 - opacity) + colours * opacity
    return np.round(mixed).astype(np.uint8)


def outlined(image: np.ndarray, masks: list[np.ndarray], scale: int) -> np.ndarray:
    """The image, uint8 RGB (H, W, 3), `scale` times as large, with the masks' outlines in white.

    masks: bool (H, W) each; lines are 1 px.
    """
    size = image.shape[1] * scale, image.shape[0] * scale
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    for mask in masks:
        inside = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        found, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        large = cv2.drawContours(large, found, -1, OUTLINE, 1)
    return large
