"""Random views of images, batched, on the images' device.

A chain is a list of `{"operation": name, "p": probability, **settings}`; the names are those of
`augmentations`. `p` is 1 unless given, 0.5 for the two flips. View k of image X under seed S is a
pure function of (X, k, S): all parameters and noise of an image come from its own generator
(`view_generator`), and no image sees its neighbours in the batch. So views may be cached.

Geometric operations in a row are composed into one interpolation. What they uncover is therefore
what lies outside the original image, and is filled once, after `fill`: `reflect` (default: a
smear's background goes on, where black corners would be a shortcut), `edge`, `white` or `black`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leukoscope.errors import InputError
from leukoscope.imaging.augmentation_ops import (
    DEFAULT_P,
    FILLS,
    Draw,
    Geometric,
    Photometric,
    augmentations,
    constant,
    smoothing,
)

__all__ = ["augment", "augment_masks", "augmentations", "check", "view_generator"]

Chain = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Step:
    """One checked entry of a chain; `example` is one draw, for what is the same in every draw."""

    name: str
    p: float
    settings: dict[str, Any]
    example: Geometric | Photometric

    def draw(
        self, rng: np.random.Generator, height: int, width: int
    ) -> Geometric | Photometric | None:
        if rng.random() >= self.p:
            return None
        return augmentations[self.name](Draw(rng, height, width), **self.settings)


@dataclass
class _Run:
    """Consecutive steps done at once: one photometric, or geometric ones of one fill."""

    geometric: bool
    columns: list[int] = field(default_factory=list)
    fill: str | None = None


_Drawn = Sequence[Sequence[Geometric | Photometric | None]]
"""What was drawn, image by image, step by step."""


def view_generator(seed: int, image_id: str, view: int) -> np.random.Generator:
    """The generator of view `view` (0, 1, ...) of one image; `seed` is not negative."""
    digest = hashlib.sha256(image_id.encode("utf-8")).digest()
    return np.random.default_rng([seed, view, *np.frombuffer(digest, dtype="<u4").tolist()])


def check(chain: Chain) -> None:
    """Raise InputError (UnknownNameError for names) unless every entry of the chain can be drawn.

    Reads no image: run it before the work starts.
    """
    _steps(chain)


def _steps(chain: Chain) -> list[_Step]:
    if isinstance(chain, str | Mapping) or not isinstance(chain, Iterable):
        raise InputError(
            f"The augmentation chain got {chain!r}; allowed: a list of tables",
            fix='Write for example [{ operation = "rotate", degrees = 20 }].',
            field="augmentation",
        )
    return [_step(entry) for entry in chain]


def _step(entry: Mapping[str, Any]) -> _Step:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("operation"), str):
        raise InputError(
            f"An augmentation got {entry!r}; allowed: a table with the key 'operation'",
            fix=f"Name one of: {', '.join(augmentations)}.",
            field="operation",
        )
    settings = {key: value for key, value in entry.items() if key not in {"operation", "p"}}
    name = entry["operation"]
    augmentations.check_arguments(name, settings)
    p = constant("p", entry.get("p", DEFAULT_P.get(name, 1.0)), 0, 1)
    example = augmentations[name](Draw(np.random.default_rng(0), 8, 8), **settings)
    return _Step(name, p, settings, example)


def augment(images: Tensor, generators: Sequence[np.random.Generator], chain: Chain) -> Tensor:
    """Augmented copies of images (n, 3, h, w), float32 in [0, 1], each by its own generator.

    The result has the same shape, device and range. Raises InputError as `check` does, ValueError
    where shapes don't fit.
    """
    return _in_parts(images, 3, generators, chain, _augment)


def augment_masks(masks: Tensor, generators: Sequence[np.random.Generator], chain: Chain) -> Tensor:
    """Masks (n, 1, h, w), float32 in [0, 1], moved as `augment` moves the images they belong to.

    Equal generators and chain give the same geometry. Photometric operations draw their parameters
    but change nothing, and what is uncovered is 0 whatever the `fill`: a cell's mirror image
    beyond the border is not the cell. Same shape, device and range; raises as `augment` does.
    """
    return _in_parts(masks, 1, generators, chain, _move)


def _in_parts(
    images: Tensor,
    channels: int,
    generators: Sequence[np.random.Generator],
    chain: Chain,
    change: Callable[[Tensor, list[_Run], _Drawn], Tensor],
) -> Tensor:
    if images.ndim != 4 or images.shape[1] != channels or images.dtype != torch.float32:
        got = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images: {got}, not (n, {channels}, h, w) float32")
    if len(generators) != len(images):
        raise ValueError(f"{len(generators)} generators for {len(images)} images")
    height, width = images.shape[-2:]
    # On a CPU each image alone: it stays in the cache, and what it didn't draw costs nothing, not
    # even a copy. An accelerator wants them all.
    size = 1 if images.device.type == "cpu" else max(1, len(images))
    result = torch.empty_like(images)
    # Views don't depend on the precision that the training around them chose.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        steps = _steps(chain)
        runs = _runs(steps)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            drawn = [[step.draw(rng, height, width) for step in steps] for rng in generators[part]]
            torch.clamp(change(images[part], runs, drawn), 0, 1, out=result[part])
    return result


def _augment(images: Tensor, runs: list[_Run], drawn: _Drawn) -> Tensor:
    for run in runs:
        if run.geometric:
            images = _warp(images, _columns(run, drawn), run.fill or "reflect")
        else:
            photometric = [row[run.columns[0]] for row in drawn]
            images = _change(images, photometric)  # type: ignore[arg-type]
    return images


def _move(masks: Tensor, runs: list[_Run], drawn: _Drawn) -> Tensor:
    for run in runs:
        if run.geometric:
            masks = _warp(masks, _columns(run, drawn), "black")
    return masks


def _columns(run: _Run, drawn: _Drawn) -> list[list[Geometric | None]]:
    return [[row[column] for row in drawn] for column in run.columns]  # type: ignore[misc]


def _runs(steps: Sequence[_Step]) -> list[_Run]:
    """The steps' columns in groups. It looks at the chain alone, never at what was drawn, so that
    an image's result can't depend on its batch."""
    runs: list[_Run] = []
    for column, step in enumerate(steps):
        geometric = isinstance(step.example, Geometric)
        fill = step.example.fill if isinstance(step.example, Geometric) else None
        joins = bool(runs) and geometric and runs[-1].geometric
        if not joins or (fill and runs[-1].fill and fill != runs[-1].fill):
            runs.append(_Run(geometric))
        runs[-1].columns.append(column)
        runs[-1].fill = runs[-1].fill or fill
    return runs


def _change(images: Tensor, drawn: Sequence[Photometric | None]) -> Tensor:
    """One photometric operation on the images that drew it."""
    changes = [d for d in drawn if d is not None]
    if not changes:
        return images
    parameters = {
        name: torch.from_numpy(
            np.stack([np.float32(change.parameters[name]) for change in changes])
        ).to(images.device)
        for name in changes[0].parameters
    }
    if len(changes) == len(images):
        return changes[0].apply(images, **parameters).clamp_(0, 1)
    chosen = _indices([d is not None for d in drawn], images)
    return images.index_copy(0, chosen, changes[0].apply(images[chosen], **parameters).clamp_(0, 1))


def _indices(chosen: Sequence[bool], images: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen)).to(images.device)


def _warp(images: Tensor, columns: list[list[Geometric | None]], fill: str) -> Tensor:
    """Consecutive geometric operations (column by column) as one interpolation.

    Images whose operations amount to flips and quarter turns are copied exactly, without one.
    """
    n, _, height, width = images.shape
    whole = [_composed([column[i] for column in columns]) for i in range(n)]
    exact = [m is not None and _is_exact(m, square=height == width) for m in whole]
    rest = [i for i in range(n) if not exact[i]]
    if not rest and all(np.array_equal(matrix, np.eye(3)) for matrix in whole):  # type: ignore[arg-type]
        return images
    result = torch.empty_like(images)
    for i in range(n):
        if exact[i]:
            result[i] = _turned(images[i], whole[i])  # type: ignore[arg-type]
    if rest:
        grid = _grid([[column[i] for i in rest] for column in columns], height, width, images)
        chosen = _indices([not e for e in exact], images)
        source = images if len(rest) == n else images[chosen]
        sampled = _sample(source, grid, fill)
        result = sampled if len(rest) == n else result.index_copy_(0, chosen, sampled)
    return result


def _composed(steps: Sequence[Geometric | None]) -> np.ndarray | None:
    """One image's operations as one matrix (3, 3); None where an elastic one is among them."""
    matrix = np.eye(3)
    for step in steps:
        if step is not None:
            if step.knots is not None:
                return None
            matrix = matrix @ step.matrix
    return matrix


def _is_exact(matrix: np.ndarray, *, square: bool) -> bool:
    """Whether the matrix is a flip, a quarter turn (of a square) or nothing."""
    turn = matrix[:2, :2]
    lattice = not matrix[:2, 2].any() and np.isin(turn, (-1, 0, 1)).all() and abs(turn).sum() == 2
    return bool(lattice and (square or turn[0, 0] != 0))


def _turned(image: Tensor, matrix: np.ndarray) -> Tensor:
    """One image (3, h, w) read through an exact matrix."""
    (a, b), (c, d) = matrix[:2, :2]
    if a == 0:
        image, a, d = image.transpose(-1, -2), c, b
    return image.flip([dim for dim, sign in ((-1, a), (-2, d)) if sign < 0])


def _grid(columns: list[list[Geometric | None]], height: int, width: int, images: Tensor) -> Tensor:
    """Sampling positions (n, h, w, 2) for grid_sample, the columns' operations applied in order.

    The first operation is the last that a position passes through, so it runs backwards; affine
    operations in a row are multiplied before any position is computed.
    """
    x = (torch.arange(width, device=images.device) - (width - 1) / 2)[None, None, :]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[None, :, None]
    matrices: np.ndarray | None = None  # affine operations met, but not yet applied to x and y
    moved = False
    for column in reversed(columns):
        if any(step is not None and step.knots is not None for step in column):
            x, y = _transform(x, y, matrices)
            matrices = None
            shift = _displacement(column, height, width, images.device)
            if moved:
                grid = _normalised(x, y, height, width)
                shift = F.grid_sample(shift, grid, padding_mode="border", align_corners=False)
            x, y = x + shift[:, 0], y + shift[:, 1]
        else:
            drawn = np.stack([np.eye(3) if step is None else step.matrix for step in column])
            matrices = drawn if matrices is None else drawn @ matrices
        moved = True
    return _normalised(*_transform(x, y, matrices), height, width)


def _transform(x: Tensor, y: Tensor, matrices: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Positions in pixels from the centre, (n or 1, h or 1, w or 1), through matrices (n, 3, 3)."""
    if matrices is None:
        return x, y
    m = torch.from_numpy(matrices.astype(np.float32)).to(x.device)[:, :, :, None, None]
    return (
        m[:, 0, 0] * x + (m[:, 0, 1] * y + m[:, 0, 2]),
        m[:, 1, 0] * x + (m[:, 1, 1] * y + m[:, 1, 2]),
    )


def _normalised(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Positions in pixels from the centre as grid_sample takes them (align_corners=False)."""
    grid = torch.empty(len(x), height, width, 2, device=x.device)
    torch.mul(x, 2 / width, out=grid[..., 0])
    torch.mul(y, 2 / height, out=grid[..., 1])
    return grid


def _sample(images: Tensor, grid: Tensor, fill: str) -> Tensor:
    """Bilinear values of the images at the grid's positions."""
    if fill == "white":
        return 1 - _sample(1 - images, grid, "black")
    return F.grid_sample(images, grid, padding_mode=FILLS[fill], align_corners=False)


def _displacement(
    column: Sequence[Geometric | None], height: int, width: int, device: torch.device
) -> Tensor:
    """Displacements (n, 2, h, w) in pixels, x first; zero for images that drew none."""
    elastic = next(step for step in column if step is not None)
    spline_y, spline_x = (smoothing(side, elastic.sigma)[1].to(device) for side in (height, width))
    drawn = [np.zeros_like(elastic.knots) if step is None else step.knots for step in column]
    knots = torch.from_numpy(np.stack(drawn)).to(device)  # type: ignore[arg-type]
    return spline_y @ (knots @ spline_x.T)
