"""White blood cells drawn from their morphology: synthetic, not copied from any image.

Everything is measured in micrometres and in amounts of four absorbing substances; light passes
them by the law of Beer and Lambert (see `synthetic_scene`). What distinguishes the classes is what
any haematology atlas teaches: number and joining of the nucleus's lobes, its share of the cell,
grain of the chromatin, nucleoli, granules, colour of the cytoplasm, vacuoles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Array = np.ndarray
# What absorbs light: azure bound to DNA and basophilic granules, methylene blue bound to RNA,
# eosin, haemoglobin.
NUCLEAR, BLUE, EOSIN, HAEM = range(4)
SUBSTANCES = 4


@dataclass(frozen=True)
class Granules:
    """Granules: mean number a square micrometre, radius in micrometres, amounts of substance."""

    number: float
    radius: float
    amounts: tuple[float, float, float]
    over_nucleus: bool = False


@dataclass(frozen=True)
class Anatomy:
    """One white cell before it is drawn; lengths in micrometres, amounts as optical weights.

    `lobes` are rods (x1, y1, x2, y2, r1, r2) around the cell's centre whose melted union is the
    nucleus; `melt` is the width of the fillet between them, `fold` the depth of its folds.
    `cytoplasm` gives the amounts of NUCLEAR, BLUE and EOSIN.
    """

    radius: float
    lobes: Array
    cytoplasm: tuple[float, float, float]
    wobble: float = 0.03
    melt: float = 0.5
    warp: float = 0.25
    fold: float = 0.0
    chromatin: float = 1.0
    contrast: float = 0.25
    grain: float = 0.45
    nucleoli: int = 0
    rim: float = 0.0
    halo: float = 0.0
    mottle: float = 0.15
    vacuoles: int = 0
    granules: tuple[Granules, ...] = ()
    rod: bool = False


@dataclass(frozen=True)
class Drawn:
    """A drawn cell: amounts (h, w, 4), opacity and nucleus (h, w) in 0..1, all float32."""

    amounts: Array
    opacity: Array
    nucleus: Array


@dataclass(frozen=True)
class Grid:
    """Pixel centres of a patch in micrometres from the cell's centre, and pixels a micrometre."""

    x: Array
    y: Array
    per_um: float

    @classmethod
    def around(cls, half: int, shift: tuple[float, float], per_um: float) -> Grid:
        """A square of 2 * half + 1 pixels; `shift` is the centre's offset within its pixel."""
        steps = np.arange(-half, half + 1, dtype=np.float32)
        x, y = np.meshgrid(
            (steps - np.float32(shift[0])) / np.float32(per_um),
            (steps - np.float32(shift[1])) / np.float32(per_um),
        )
        return cls(x, y, per_um)

    def soft(self, distance: Array, width: float = 1.5) -> Array:
        """Antialiased inside (1) and outside (0) of a signed distance; `width` in pixels."""
        return np.clip(0.5 - distance * np.float32(self.per_um / width), 0, 1)

    def noise(self, rng: np.random.Generator, grain: float) -> Array:
        """Smooth noise of about unit variance; `grain` is its correlation length in micrometres."""
        return smooth_noise(rng, (self.x.shape[0], self.x.shape[1]), grain * self.per_um)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> Array:
    """Smooth noise of about zero mean and unit variance, float32; `grain` in pixels."""
    step = max(1.0, 1.6 * grain)
    coarse = (int(np.ceil(shape[0] / step)) + 3, int(np.ceil(shape[1] / step)) + 3)
    noise = rng.standard_normal(coarse, dtype=np.float32)
    # The lattice is enlarged by its own step, then cut, so that the grain is equal in x and y.
    enlarge = np.array([[1 / step, 0, 1], [0, 1 / step, 1]], np.float32)
    return 1.35 * cv2.warpAffine(
        noise, enlarge, shape[::-1], flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    )


def outline(grid: Grid, radius: float, waves: Array, phases: Array) -> Array:
    """Signed distance (about) to a closed curve r(angle) = radius (1 + sum of harmonics).

    `waves` are the amplitudes of harmonics 2, 3, …; `phases` theirs.
    """
    # The curve is tabulated every half degree: far cheaper than cosines at every pixel.
    angles = np.linspace(0, 2 * np.pi, 721)[:, None]
    orders = np.arange(2, 2 + len(waves))
    edge = radius * (1 + np.cos(orders * angles + phases) @ waves).astype(np.float32)
    distance, angle = cv2.cartToPolar(grid.x, grid.y)
    return distance - edge[(angle * np.float32(360 / np.pi) + 0.5).astype(np.int32)]


def rods(x: Array, y: Array, segments: Array, melt: float) -> Array:
    """Signed distance to the smooth union of tapering rods (n, 6): x1, y1, x2, y2, r1, r2."""
    whole: Array | None = None
    for x1, y1, x2, y2, r1, r2 in np.asarray(segments, np.float32):
        dx, dy = x2 - x1, y2 - y1
        along = np.clip(((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
        part = np.hypot(x - x1 - along * dx, y - y1 - along * dy) - (r1 + along * (r2 - r1))
        if whole is None:
            whole = part
            continue
        blend = np.clip(0.5 + 0.5 * (whole - part) / np.float32(melt), 0, 1)
        whole = whole + blend * (part - whole) - np.float32(melt) * blend * (1 - blend)
    assert whole is not None
    return whole


def _rotated(segments: Array, angle: float) -> Array:
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.column_stack([segments[:, :2] @ turn, segments[:, 2:4] @ turn, segments[:, 4:]])


def _lobed(
    rng: np.random.Generator, radius: float, lobes: int, size: float, spread: float, bridge: float
) -> Array:
    """Elongated lobes along an arc of `spread` radians, joined by bridges; parts of `radius`."""
    angles = np.linspace(-spread / 2, spread / 2, lobes) + rng.normal(0, 0.12, lobes)
    reach = radius * rng.uniform(0.42, 0.56, lobes)
    centres = np.column_stack([reach * np.cos(angles), reach * np.sin(angles)])
    centres -= 0.6 * centres.mean(axis=0)
    tilt = angles + np.pi / 2 + rng.normal(0, 0.45, lobes)
    length = radius * size * rng.uniform(0.25, 0.7, lobes)
    half = 0.5 * length[:, None] * np.column_stack([np.cos(tilt), np.sin(tilt)])
    thick = radius * size * rng.uniform(0.85, 1.12, (lobes, 2))
    bodies = np.column_stack([centres - half, centres + half, thick])
    joint = np.full((lobes - 1, 2), radius * bridge)
    bridges = np.column_stack([(centres + half)[:-1], (centres - half)[1:], joint])
    return _rotated(np.vstack([bodies, bridges]), rng.uniform(0, 2 * np.pi))


def _bent(rng: np.random.Generator, radius: float, reach: float, thick: float, arc: float) -> Array:
    """A sausage bent by `arc` radians around a hollow: band forms, kidney-shaped nuclei."""
    angles = np.linspace(-arc / 2, arc / 2, 6)
    points = radius * reach * np.column_stack([np.cos(angles), np.sin(angles)])
    points -= 0.75 * points.mean(axis=0)
    swell = np.interp(angles, [-arc / 2, 0, arc / 2], [*rng.uniform(0.9, 1.2, 1), 0.9, 1.08])
    width = radius * thick * swell
    parts = np.column_stack([points[:-1], points[1:], width[:-1], width[1:]])
    return _rotated(parts, rng.uniform(0, 2 * np.pi))


def _round(rng: np.random.Generator, radius: float, share: float, oval: float) -> Array:
    """One round to oval body taking `share` of the cell's radius, a little off centre."""
    length = radius * share * oval
    middle = radius * (1 - share) * rng.uniform(-0.6, 0.6, 2)
    r1, r2 = radius * share - length / 2 * rng.uniform(0.8, 1.2, 2)
    body = np.array(
        [[middle[0] - length / 2, middle[1], middle[0] + length / 2, middle[1], r1, r2]]
    )
    return _rotated(body, rng.uniform(0, 2 * np.pi))


def _neutrophil(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(5.6, 7.1)
    if rng.random() < 0.18:  # band form: the nucleus is not yet segmented
        lobes = _bent(rng, radius, 0.53, rng.uniform(0.2, 0.33), rng.uniform(2.4, 4.2))
    else:
        count = int(rng.choice([2, 3, 4, 5], p=[0.14, 0.43, 0.33, 0.1]))
        size = {2: 0.34, 3: 0.29, 4: 0.255, 5: 0.225}[count] * rng.uniform(0.92, 1.1)
        spread = {2: 2.4, 3: 3.3, 4: 4.3, 5: 5.0}[count] * rng.uniform(0.85, 1.1)
        lobes = _lobed(rng, radius, count, size, spread, rng.uniform(0.045, 0.1))
    pink = rng.uniform(0.16, 0.34)
    dust = Granules(rng.uniform(4, 8), 0.12, (0.09, 0.0, rng.uniform(0.05, 0.3)))
    if rng.random() < 0.12:  # toxic granulation
        dust = Granules(rng.uniform(1.5, 3), 0.24, (rng.uniform(0.05, 0.3), 0.0, 0.3))
    return Anatomy(
        radius,
        lobes,
        (0.03, rng.uniform(0.0, 0.05), pink),
        wobble=0.035,
        warp=0.28,
        chromatin=rng.uniform(0.95, 1.2),
        contrast=0.3,
        grain=0.6,
        granules=(dust,),
    )


def _eosinophil(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(6.0, 7.4)
    count = 3 if rng.random() < 0.22 else 2
    size = (0.36 if count == 2 else 0.28) * rng.uniform(0.9, 1.08)
    spread = (2.5 if count == 2 else 3.2) * rng.uniform(0.8, 1.15)
    # Some are badly stained: their granules are hardly redder than a neutrophil's.
    red = rng.uniform(0.2, 0.4) if rng.random() < 0.22 else rng.uniform(0.55, 1.0)
    return Anatomy(
        radius,
        _lobed(rng, radius, count, size, spread, rng.uniform(0.06, 0.12)),
        (0.03, 0.02, 0.55 * red),
        wobble=0.03,
        chromatin=rng.uniform(0.85, 1.1),
        contrast=0.26,
        grain=0.6,
        granules=(
            Granules(rng.uniform(1.7, 2.4), rng.uniform(0.27, 0.33), (0.05, 0.0, 0.75 * red)),
        ),
    )


def _basophil(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(5.2, 6.5)
    lobes = _lobed(rng, radius, int(rng.integers(2, 4)), 0.36, rng.uniform(2.2, 3.4), 0.22)
    # Granules dissolve in water: some cells have lost most of theirs.
    empty = rng.random() < 0.22
    number = rng.uniform(0.15, 0.45) if empty else rng.uniform(1.0, 1.7)
    violet = rng.uniform(0.3, 0.7) if empty else 0.95
    coarse = Granules(number, rng.uniform(0.33, 0.42), (violet, 0.05, 0.05), over_nucleus=True)
    return Anatomy(
        radius,
        lobes,
        (0.12, 0.08, 0.14),
        wobble=0.035,
        melt=0.9,
        chromatin=rng.uniform(0.65, 0.85),
        contrast=0.2,
        grain=0.7,
        granules=(coarse,),
    )


def _lymphocyte(rng: np.random.Generator) -> Anatomy:
    reactive = rng.random() < 0.24  # large, with ample cytoplasm and looser chromatin
    radius = rng.uniform(5.6, 7.8) if reactive else rng.uniform(4.1, 5.5)
    share = rng.uniform(0.64, 0.82) if reactive else rng.uniform(0.82, 0.93)
    few = Granules(0.12, 0.22, (0.6, 0.0, 0.3))
    return Anatomy(
        radius,
        _round(rng, radius, share, rng.uniform(0.02, 0.3)),
        (0.05, rng.uniform(0.3, 0.55) * (0.75 if reactive else 1), 0.0),
        wobble=0.05 if reactive else 0.028,
        warp=0.2,
        chromatin=rng.uniform(0.75, 1.1) if reactive else rng.uniform(1.1, 1.35),
        contrast=0.2,
        grain=rng.uniform(0.35, 0.8) if reactive else 0.85,
        nucleoli=int(reactive and rng.random() < 0.2),
        rim=0.25,
        halo=0.35,
        granules=(few,) if rng.random() < 0.25 else (),
    )


def _monocyte(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(6.3, 9.4)
    shape = rng.random()
    if shape < 0.58:  # kidney or horseshoe
        lobes = _bent(rng, radius, 0.5, rng.uniform(0.33, 0.42), rng.uniform(1.5, 2.9))
    elif shape < 0.8:  # folded
        lobes = _lobed(rng, radius, 3, 0.4, rng.uniform(2.0, 3.2), 0.32)
    else:
        lobes = _round(rng, radius, rng.uniform(0.62, 0.74), 0.35)
    return Anatomy(
        radius,
        lobes,
        (0.08, rng.uniform(0.2, 0.38), rng.uniform(0.02, 0.1)),
        wobble=0.07,
        melt=1.2,
        warp=0.5,
        fold=rng.uniform(0.1, 0.3),
        chromatin=rng.uniform(0.72, 0.95),
        contrast=0.3,
        grain=0.42,
        mottle=0.22,
        vacuoles=int(rng.poisson(3.5)),
        granules=(Granules(3.0, 0.2, (0.14, 0.0, 0.1)),),
    )


def _myeloblast(rng: np.random.Generator) -> Anatomy:
    radius = rng.uniform(5.0, 6.6) if rng.random() < 0.25 else rng.uniform(6.6, 8.6)
    return Anatomy(
        radius,
        _round(rng, radius, rng.uniform(0.76, 0.9), rng.uniform(0.05, 0.35)),
        (0.1, rng.uniform(0.4, 0.65), 0.04),
        wobble=0.045,
        warp=0.3,
        chromatin=rng.uniform(0.68, 0.98),
        contrast=0.15,
        grain=rng.uniform(0.28, 0.5),
        nucleoli=int(rng.choice([0, 1, 2, 3, 4], p=[0.2, 0.25, 0.3, 0.17, 0.08])),
        rim=0.2,
        halo=0.15,
        rod=bool(rng.random() < 0.1),
    )


ANATOMIES: dict[str, Callable[[np.random.Generator], Anatomy]] = {
    "basophil": _basophil,
    "eosinophil": _eosinophil,
    "lymphocyte": _lymphocyte,
    "monocyte": _monocyte,
    "myeloblast": _myeloblast,
    "neutrophil": _neutrophil,
}


def draw(anatomy: Anatomy, grid: Grid, rng: np.random.Generator) -> Drawn:
    """Draw a cell at the centre of a grid that reaches 1.3 radii to each side."""
    waves = anatomy.wobble * rng.standard_normal(6) * np.array([1, 0.8, 0.6, 0.4, 0.3, 0.2])
    body = outline(grid, anatomy.radius, waves, rng.uniform(0, 2 * np.pi, 6))
    body += np.float32(anatomy.wobble * 3) * grid.noise(rng, 1.6)
    bend = anatomy.warp * np.stack([grid.noise(rng, 1.5), grid.noise(rng, 1.5)])
    shape = rods(grid.x + bend[0], grid.y + bend[1], anatomy.lobes, anatomy.melt)
    # The nucleus stays within the membrane.
    shape = np.maximum(shape, body + np.float32(0.18))
    nucleus = grid.soft(shape)
    amounts = _cytoplasm(anatomy, grid, body, shape, rng)
    inside = _chromatin(anatomy, grid, shape, rng)
    amounts += nucleus[..., None] * (inside - amounts)
    opacity = grid.soft(body)
    for kind in anatomy.granules:
        spots = _granules(kind, grid, rng) * (opacity if kind.over_nucleus else 1 - nucleus)
        if kind.over_nucleus:
            spots = np.where(body < 0.25, spots, 0)
        amounts[..., :3] += spots[..., None] * np.array(kind.amounts, np.float32)
    return Drawn(amounts, opacity, nucleus * opacity)


def _cytoplasm(
    anatomy: Anatomy, grid: Grid, body: Array, shape: Array, rng: np.random.Generator
) -> Array:
    """Amounts (h, w, 4) of the cell without nucleus: mottled, with rim, halo and vacuoles."""
    level = 1 + np.float32(anatomy.mottle) * grid.noise(rng, 0.7)
    level *= 1 + np.float32(anatomy.rim) * np.exp(np.minimum(body, 0) / 0.8)
    level *= 1 - np.float32(anatomy.halo) * np.exp(-np.abs(shape) / 0.5)
    level += np.float32(0.25) * np.exp(-((body + 0.25) ** 2) / 0.06)  # the membrane, seen edge-on
    for _ in range(anatomy.vacuoles):
        x, y = _elsewhere(grid, anatomy.radius * rng.uniform(0.3, 0.9), rng)
        hole = grid.soft(np.hypot(x, y) - rng.uniform(0.35, 0.9), 2.5)
        level *= 1 - np.float32(0.8) * hole
    amounts = np.zeros((*level.shape, SUBSTANCES), np.float32)
    amounts[..., :3] = np.maximum(level, 0.05)[..., None] * np.array(anatomy.cytoplasm, np.float32)
    if anatomy.rod:  # an Auer rod beside the nucleus
        reach = 0.93 * anatomy.radius
        needle = np.array([[-1.0, reach, 1.0, reach, 0.12, 0.12]])
        needle = _rotated(needle, rng.uniform(0, 2 * np.pi))
        amounts[..., NUCLEAR] += 0.8 * grid.soft(rods(grid.x, grid.y, needle, 0.1))
    return amounts


def _elsewhere(grid: Grid, reach: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """The grid's coordinates around a point at distance `reach` in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return grid.x - np.float32(reach * np.cos(angle)), grid.y - np.float32(reach * np.sin(angle))


def _chromatin(anatomy: Anatomy, grid: Grid, shape: Array, rng: np.random.Generator) -> Array:
    """Amounts (h, w, 4) of the nucleus: clumps, folds, a denser border, nucleoli."""
    clumps = 0.75 * grid.noise(rng, anatomy.grain) + 0.5 * grid.noise(rng, anatomy.grain / 2)
    level = 1 + np.float32(anatomy.contrast) * clumps
    if anatomy.fold:
        level -= np.float32(anatomy.fold) * np.exp(-((grid.noise(rng, 1.5) / 0.18) ** 2))
    level += np.float32(0.3) * np.exp(-((shape + 0.2) ** 2) / 0.08)
    blue = np.zeros_like(level)
    for _ in range(anatomy.nucleoli):
        x, y = _elsewhere(grid, anatomy.radius * rng.uniform(0.0, 0.55), rng)
        distance = np.hypot(x, y * rng.uniform(0.8, 1.25)) - rng.uniform(0.5, 0.95)
        level *= 1 - np.float32(0.6) * grid.soft(distance, 3)
        level += np.float32(0.15) * np.exp(-((distance - 0.15) ** 2) / 0.03)
        blue += np.float32(0.18) * grid.soft(distance, 3.5)
    amounts = np.zeros((*level.shape, SUBSTANCES), np.float32)
    amounts[..., NUCLEAR] = np.float32(anatomy.chromatin) * np.clip(level, 0.3, 1.7)
    amounts[..., BLUE] = blue
    return amounts


def _granules(kind: Granules, grid: Grid, rng: np.random.Generator) -> Array:
    """Round spots on a jittered lattice, (h, w) in 0..1.2; a blurred and sharpened point field.

    A lattice keeps them apart: granules crowd, but seldom fuse.
    """
    height, width = grid.x.shape
    pitch = grid.per_um / np.sqrt(kind.number)
    rows, columns = np.mgrid[0 : height + pitch : pitch, 0 : width + pitch : pitch].reshape(2, -1)
    rows[:] += rng.uniform(-0.5, 0.5, rows.size) * pitch
    columns[:] += rng.uniform(-0.5, 0.5, rows.size) * pitch
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    sigma = max(0.5, 0.7 * kind.radius * grid.per_um)
    points = np.zeros((height, width), np.float32)
    strength = rng.uniform(0.45, 1.15, rows.size).astype(np.float32)
    points[rows[inside].astype(int), columns[inside].astype(int)] = strength[inside]
    spots = cv2.GaussianBlur(points, (0, 0), sigma) * np.float32(2 * np.pi * sigma**2)
    return np.clip((spots - 0.12) / 0.75, 0, 1.2)
