"""Synthetic pictures and indexes made of arrays, for the tests of duplicates, splits and audits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from leukoscope.data.index import CellIndex
from leukoscope.data.signature import colour_moments, phash, thumbnail


def smear(rng: np.random.Generator, side: int = 120) -> np.ndarray:
    """A synthetic white cell on red cells: uint8 RGB (side, side, 3), different every time."""
    image = np.full((360, 360, 3), (238, 228, 214), np.float32)
    for _ in range(int(rng.integers(6, 14))):
        centre = [int(v) for v in rng.integers(0, 360, 2)]
        radius = int(rng.integers(25, 45))
        cv2.circle(image, centre, radius, [float(v) for v in rng.normal((205, 150, 150), 8)], -1)
        cv2.circle(image, centre, radius // 3, (225, 190, 185), -1)
    for radius, colour in [(rng.integers(60, 90), (170, 150, 200)), (40, (90, 50, 130))]:
        _blob(image, rng, int(radius), colour)
    image += cv2.resize(rng.normal(0, 12, (60, 60)).astype(np.float32), (360, 360))[..., None]
    image = np.clip(cv2.GaussianBlur(image, (0, 0), 2), 0, 255).astype(np.uint8)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def _blob(
    image: np.ndarray, rng: np.random.Generator, radius: int, colour: tuple[int, int, int]
) -> None:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = sum(rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4, 5))
    centre = 180 + rng.normal(0, 10, 2)
    points = centre + (radius * (1 + waves))[:, None] * np.c_[np.cos(angle), np.sin(angle)]
    cv2.fillPoly(image, [points.astype(np.int32)], colour)


def cut_out(rng: np.random.Generator, side: int = 240) -> np.ndarray:
    """A synthetic cell cut out on black, as in C-NMC: a large uniform area around it."""
    image = smear(rng, side)
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = side * rng.uniform(0.14, 0.2) * (1 + rng.normal(0, 0.03, 60))
    points = side / 2 + radius[:, None] * np.c_[np.cos(angle), np.sin(angle)]
    mask = cv2.fillPoly(np.zeros((side, side), np.uint8), [points.astype(np.int32)], 1)
    return image * mask[..., None]


def recoded(image: np.ndarray, quality: int = 50) -> np.ndarray:
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].copy()


def cropped(image: np.ndarray, down: float, across: float) -> np.ndarray:
    """90 % of each side; `down` and `across` from 0 (top, left) to 1."""
    height, width = image.shape[:2]
    rows, columns = round(0.9 * height), round(0.9 * width)
    top, left = round(down * (height - rows)), round(across * (width - columns))
    return image[top : top + rows, left : left + columns].copy()


def brightened(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotated 90": lambda i: np.rot90(i, 1).copy(),
    "rotated 180": lambda i: np.rot90(i, 2).copy(),
    "rotated 270": lambda i: np.rot90(i, 3).copy(),
    "mirrored": lambda i: i[:, ::-1].copy(),
    "upside down": lambda i: i[::-1].copy(),
    "brighter": lambda i: brightened(i, 1.2),
    "darker": lambda i: brightened(i, 0.8),
    "centre crop": lambda i: cropped(i, 0.5, 0.5),
    "top left crop": lambda i: cropped(i, 0, 0),
    "top right crop": lambda i: cropped(i, 0, 1),
    "bottom left crop": lambda i: cropped(i, 1, 0),
    "bottom right crop": lambda i: cropped(i, 1, 1),
    "recoded": recoded,
    "rotated and brighter": lambda i: brightened(np.rot90(i).copy(), 1.2),
    "cropped and mirrored": lambda i: cropped(i, 0, 1)[:, ::-1].copy(),
    "cropped and brighter": lambda i: brightened(cropped(i, 1, 1), 1.2),
    "cropped and recoded": lambda i: recoded(cropped(i, 0.5, 0.5)),
    "darker and recoded": lambda i: recoded(brightened(i, 0.8)),
    "rotated and recoded": lambda i: recoded(np.rot90(i, 3).copy()),
}


def cells_of(
    images: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    patients: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> CellIndex:
    """An index of arrays; nothing is written."""
    frame = pd.DataFrame(
        {
            "image": list(names) if names else [f"{k:05d}.png" for k in range(len(images))],
            "label": list(labels) if labels else ["a", "b"] * (len(images) // 2),
            "patient": pd.Series(patients or [None] * len(images), dtype=object),
            "slide": None,
            "source": None,
            "width": [image.shape[1] for image in images],
            "height": [image.shape[0] for image in images],
            "sha256": [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images],
            "phash": [phash(image) for image in images],
            "mask": None,
            "thumbnail": [thumbnail(image).tobytes() for image in images],
            "colour": [colour_moments(image).tolist() for image in images],
        }
    )
    return CellIndex(frame, Path(), "made", "none", "none", "folder", [])


def table(labels: Sequence[str], patients: Sequence[str | None] | None = None) -> CellIndex:
    """An index of flat pictures, all different: no duplicates, and quick to make."""
    blank = np.zeros((8, 8, 3), np.uint8)
    cells = cells_of([blank] * len(labels), labels, patients)
    cells.frame["sha256"] = [hashlib.sha256(b"%d" % k).hexdigest() for k in range(len(labels))]
    return cells
