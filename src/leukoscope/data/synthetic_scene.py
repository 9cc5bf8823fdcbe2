"""Synthetic smears: red cells, platelets and white cells seen through a microscope.

A scene is a map of amounts of four absorbing substances. Light of the background's colour passes
it by the law of Beer and Lambert, intensity = light * exp(-amounts @ absorption), so that cells
that overlap darken each other as on glass; then come defocus, uneven illumination and sensor noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from leukoscope.data.synthetic_cells import (
    ANATOMIES,
    BLUE,
    EOSIN,
    HAEM,
    NUCLEAR,
    SUBSTANCES,
    Anatomy,
    Array,
    Grid,
    draw,
    outline,
    smooth_noise,
)

# Natural-logarithm absorption of red, green and blue light by one unit of each substance.
_ABSORPTION = np.array(
    [[1.15, 1.65, 0.55], [0.80, 0.60, 0.14], [0.17, 0.60, 0.44], [0.20, 0.34, 0.29]]
)
# Backgrounds seen in practice: cream, cool grey, rose, neutral.
_LIGHTS = np.array([[0.99, 0.91, 0.80], [0.84, 0.85, 0.92], [0.95, 0.86, 0.88], [0.86, 0.87, 0.82]])
_FIELD_UM = 35.0  # the side of a single-cell image


@dataclass(frozen=True)
class Slide:
    """How one patient's slide was stained and photographed, and what its red cells look like."""

    absorption: Array  # (4, 3)
    light: Array  # (3,) in 0..1
    slope: Array  # (2,) relative change of light across the image
    vignette: float
    zoom: float
    blur_um: float
    glare: float
    noise: float
    crowding: float  # share of the area that red cells take
    red_radius: float
    pallor: float
    anisocytosis: float


@dataclass(frozen=True)
class Scene:
    """An image (h, w, 3) uint8 RGB, the nucleus mask (h, w) of 0 and 255, and the cells' boxes.

    A box is (label, x, y, width, height) in pixels.
    """

    image: Array
    mask: Array
    boxes: tuple[tuple[str, int, int, int, int], ...]


def random_slide(rng: np.random.Generator) -> Slide:
    """Draw one patient's slide; stains differ as they do between laboratories."""
    strength = rng.uniform(0.72, 1.25)
    absorption = _ABSORPTION * strength * np.exp(rng.normal(0, 0.10, (SUBSTANCES, 1)))
    # Azure between violet and blue; eosin and haemoglobin between pink, orange and brown.
    absorption[NUCLEAR] *= np.exp(rng.uniform(-0.3, 0.2)) ** np.array([1, 0.4, 0])
    absorption[NUCLEAR, 2] *= rng.uniform(0.35, 1.25)
    absorption[BLUE, :2] *= rng.uniform(0.85, 1.15, 2)
    absorption[EOSIN, 2] *= rng.uniform(0.6, 1.35)
    absorption[HAEM] *= np.exp(rng.uniform(-0.35, 0.3, 3) * np.array([1, 0.5, 1]))
    light = rng.dirichlet(np.full(len(_LIGHTS), 0.5)) @ _LIGHTS
    return Slide(
        absorption=absorption.astype(np.float32),
        light=(light * rng.uniform(0.88, 1.0)).astype(np.float32),
        slope=rng.uniform(-0.07, 0.07, 2),
        vignette=rng.uniform(0.0, 0.1),
        zoom=rng.uniform(0.92, 1.08),
        blur_um=rng.uniform(0.05, 0.11),
        glare=rng.uniform(0.03, 0.12),
        noise=rng.uniform(0.004, 0.013),
        crowding=rng.uniform(0.25, 0.55),
        red_radius=rng.uniform(3.35, 3.85),
        pallor=rng.uniform(0.45, 0.85),
        anisocytosis=rng.uniform(0.04, 0.1),
    )


def sister_slide(slide: Slide, rng: np.random.Generator) -> Slide:
    """Another slide of the same patient: the same blood, slightly other light and strength."""
    return replace(
        slide,
        absorption=slide.absorption * np.float32(rng.uniform(0.93, 1.07)),
        light=slide.light * rng.uniform(0.96, 1.0, 3).astype(np.float32),
        slope=rng.uniform(-0.07, 0.07, 2),
        crowding=slide.crowding + rng.uniform(-0.06, 0.06),
    )


def single_cell(label: str, slide: Slide, size: int, rng: np.random.Generator) -> Scene:
    """One white cell near the centre of a square of `size` pixels, about 35 micrometres wide."""
    per_um = size / _FIELD_UM * slide.zoom
    anatomy = ANATOMIES[label](rng)
    spare = max(1.0, 0.5 * size / per_um - 1.1 * anatomy.radius)
    shift = np.clip(rng.normal(0, 1.4, 2), -spare, spare) * per_um
    centre = (size / 2 + shift[0], size / 2 + shift[1])
    return _photograph([(label, anatomy, centre)], slide, (size, size), per_um, rng)


def field_of_view(
    labels: list[str], slide: Slide, shape: tuple[int, int], per_um: float, rng: np.random.Generator
) -> Scene:
    """Several whole white cells in one field of `shape` (height, width); none overlap.

    A cell for which no free place is found after 200 draws is left out.
    """
    cells: list[tuple[str, Anatomy, tuple[float, float]]] = []
    for label in labels:
        anatomy = ANATOMIES[label](rng)
        margin = 1.3 * anatomy.radius * per_um + 2
        for _ in range(200):
            x, y = rng.uniform(margin, shape[1] - margin), rng.uniform(margin, shape[0] - margin)
            if all(
                np.hypot(x - cx, y - cy) > 1.3 * (anatomy.radius + other.radius) * per_um
                for _, other, (cx, cy) in cells
            ):
                cells.append((label, anatomy, (x, y)))
                break
    return _photograph(cells, slide, shape, per_um, rng)


def _photograph(
    cells: list[tuple[str, Anatomy, tuple[float, float]]],
    slide: Slide,
    shape: tuple[int, int],
    per_um: float,
    rng: np.random.Generator,
) -> Scene:
    amounts = np.zeros((*shape, SUBSTANCES), np.float32)
    nucleus = np.zeros(shape, np.float32)
    white = [(x, y, anatomy.radius * per_um) for _, anatomy, (x, y) in cells]
    under, over = _places(white, slide, shape, per_um, rng)
    for x, y in under:
        _red_cell(amounts, x, y, slide, per_um, rng)
    boxes = []
    for label, anatomy, centre in cells:
        box = _white_cell(amounts, nucleus, anatomy, centre, per_um, rng)
        boxes.append((label, *box))
    for x, y in over:
        _red_cell(amounts, x, y, slide, per_um, rng)
    for _ in range(rng.poisson(1.3e-3 * shape[0] * shape[1] / per_um**2)):
        _platelet(amounts, white, per_um, rng)
    image = _expose(amounts, slide, per_um, rng)
    return Scene(image, np.where(nucleus > 0.5, 255, 0).astype(np.uint8), tuple(boxes))


def _places(
    white: list[tuple[float, float, float]],
    slide: Slide,
    shape: tuple[int, int],
    per_um: float,
    rng: np.random.Generator,
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Centres of red cells in pixels: those below the white cells, those over their edge."""
    radius = slide.red_radius * per_um
    area = (shape[0] + 2 * radius) * (shape[1] + 2 * radius)
    crowding = np.clip(slide.crowding + rng.normal(0, 0.1), 0.08, 0.75)
    wanted = int(crowding * area / (np.pi * radius**2))
    under: list[tuple[float, float]] = []
    over: list[tuple[float, float]] = []
    drawn = rng.uniform(-radius, [shape[1] + radius, shape[0] + radius], (4 * wanted + 8, 2))
    gaps = rng.uniform(0.75, 2.1, len(drawn)) * radius
    for (x, y), gap in zip(drawn, gaps, strict=True):
        if len(under) + len(over) >= wanted:
            break
        if any((x - a) ** 2 + (y - b) ** 2 < gap**2 for a, b in under + over):
            continue
        clear = min(np.hypot(x - a, y - b) - r for a, b, r in white) if white else radius
        if clear > 0.85 * radius:
            under.append((x, y))
        elif clear > 0.5 * radius and rng.random() < 0.5:
            (over if rng.random() < 0.4 else under).append((x, y))
    return under, over


def _patch(
    amounts: Array, x: float, y: float, reach: float, per_um: float
) -> tuple[tuple[slice, slice], tuple[slice, slice], Grid] | None:
    """Where a cell of `reach` micrometres meets the canvas: canvas part, patch part, the grid."""
    half = int(np.ceil(reach * per_um)) + 1
    column, row = round(x), round(y)
    top, left = max(row - half, 0), max(column - half, 0)
    bottom = min(row + half + 1, amounts.shape[0])
    right = min(column + half + 1, amounts.shape[1])
    if top >= bottom or left >= right:
        return None
    canvas = (slice(top, bottom), slice(left, right))
    part = (
        slice(top - row + half, bottom - row + half),
        slice(left - column + half, right - column + half),
    )
    return canvas, part, Grid.around(half, (x - column, y - row), per_um)


def _white_cell(
    amounts: Array,
    nucleus: Array,
    anatomy: Anatomy,
    centre: tuple[float, float],
    per_um: float,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw one white cell over what lies there; returns its box x, y, width, height."""
    place = _patch(amounts, *centre, 1.3 * anatomy.radius, per_um)
    assert place is not None
    canvas, part, grid = place
    cell = draw(anatomy, grid, rng)
    opacity = cell.opacity[part]
    below = amounts[canvas]
    below += opacity[..., None] * (cell.amounts[part] - below)
    nucleus[canvas] = np.maximum(nucleus[canvas], cell.nucleus[part])
    x, y, width, height = cv2.boundingRect((opacity > 0.5).astype(np.uint8))
    return x + canvas[1].start, y + canvas[0].start, width, height


def _red_cell(
    amounts: Array, x: float, y: float, slide: Slide, per_um: float, rng: np.random.Generator
) -> None:
    radius = float(slide.red_radius * np.exp(rng.normal(0, slide.anisocytosis)))
    waves = rng.standard_normal(11) * np.array([0.05, 0.025, 0.015, *[0.0] * 8])
    if rng.random() < 0.06:  # crenated
        waves[9:] = rng.uniform(0.015, 0.03, 2)
    pallor = np.clip(slide.pallor + rng.normal(0, 0.15), 0, 0.92)
    if rng.random() < 0.15:  # lies tilted or is a spherocyte
        pallor *= 0.15
    phases = rng.uniform(0, 2 * np.pi, 11)
    offset = rng.normal(0, 0.3, 2).astype(np.float32)
    hollow = radius * rng.uniform(0.42, 0.64)
    place = _patch(amounts, x, y, 1.2 * radius, per_um)
    if place is None:
        return
    canvas, part, whole = place
    grid = Grid(whole.x[part], whole.y[part], per_um)
    body = outline(grid, radius, waves, phases)
    centre = np.hypot(grid.x - offset[0], grid.y - offset[1])
    level = 1 - np.float32(pallor) / (1 + np.exp((centre - hollow) / np.float32(0.35)))
    level += np.float32(0.22) * np.exp(-((body + 0.3) ** 2) / 0.1)
    amounts[canvas][..., HAEM] += level * grid.soft(body, 2.0)


def _platelet(
    amounts: Array,
    white: list[tuple[float, float, float]],
    per_um: float,
    rng: np.random.Generator,
) -> None:
    radius = rng.uniform(0.8, 1.6)
    x, y = rng.uniform(0, amounts.shape[1]), rng.uniform(0, amounts.shape[0])
    waves, phases = rng.normal(0, 0.07, 4), rng.uniform(0, 2 * np.pi, 4)
    place = _patch(amounts, x, y, 1.5 * radius, per_um)
    near = any(np.hypot(x - a, y - b) < r + radius * per_um for a, b, r in white)
    if place is None or near:
        return
    canvas, part, grid = place
    body = grid.soft(outline(grid, radius, waves, phases), 3)
    dots = np.clip(0.38 + 0.16 * grid.noise(rng, 0.3), 0.05, 0.8)
    core = np.exp(-(np.hypot(grid.x, grid.y) ** 2) / np.float32(radius**2))
    amounts[canvas][..., NUCLEAR] += (body * dots * core)[part]
    amounts[canvas][..., BLUE] += 0.18 * body[part]


def _expose(amounts: Array, slide: Slide, per_um: float, rng: np.random.Generator) -> Array:
    """The photograph (h, w, 3) uint8 of a map of amounts."""
    height, width = amounts.shape[:2]
    # Uneven spreading of the stain, seen in every smear.
    amounts *= (rng.uniform(0.85, 1.15) + 0.05 * smooth_noise(rng, (height, width), 6 * per_um))[
        ..., None
    ]
    light = np.exp(-(amounts.reshape(-1, SUBSTANCES) @ slide.absorption)).reshape(height, width, 3)
    light += np.float32(slide.glare) * (1 - light)
    defocus = slide.blur_um * per_um
    if rng.random() < 0.16:
        defocus += rng.uniform(0.1, 0.35) * per_um
    light = cv2.GaussianBlur(light, (0, 0), max(defocus, 0.3))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    lamp = 1 + slide.slope[0] * x + slide.slope[1] * y - slide.vignette * (x * x + y * y) / 2
    lamp = lamp.astype(np.float32) * np.float32(np.exp(rng.normal(0, 0.03)))
    light *= lamp[..., None] * slide.light
    light += np.float32(slide.noise) * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8)
