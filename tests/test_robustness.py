"""Corruptions, one contract for all that are registered; accuracy of a run under them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.imaging import corruption
from leukoscope.imaging.corruption import SCALES, SEVERITIES, corrupt, corruptions
from leukoscope.imaging.read import read_image

NAMES = list(corruptions)


def cell(size: int = 96) -> np.ndarray:
    """A nucleus in its cytoplasm on unstained glass with a red cell beside: synthetic."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = np.full((size, size, 3), (235, 230, 225), np.float64)
    image[np.hypot(x - 0.35, y + 0.1) < 0.14] = (200, 130, 140)
    image[np.hypot(x, y) < 0.32] = (190, 170, 205)
    image[np.hypot(x + 0.03, y) < 0.2] = (95, 50, 140)
    grain = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("name", NAMES)
def test_contract_of_every_corruption(name: str) -> None:
    """Shape and type kept, the input too; nothing at 0, more at each step, the same twice."""
    image = cell(256)
    kept = image.copy()
    made = [corrupt(image, name, s, np.random.default_rng(5)) for s in range(SEVERITIES + 1)]
    assert np.array_equal(image, kept)
    assert np.array_equal(made[0], image)
    assert made[0] is not image
    for each in made:
        assert (each.shape, each.dtype) == (image.shape, np.uint8)
    far = [distance(each, image) for each in made]
    assert all(a < b for a, b in itertools.pairwise(far)), far
    again = corrupt(image, name, 3, np.random.default_rng(5))
    assert np.array_equal(again, made[3])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (28, 28), (700, 500)])
@pytest.mark.parametrize("fill", [0, 255, None])
def test_any_image_is_taken(name: str, shape: tuple[int, int], fill: int | None) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = noise if fill is None else np.full_like(noise, fill)
    made = corrupt(image, name, SEVERITIES, np.random.default_rng(0))
    assert (made.shape, made.dtype) == (image.shape, np.uint8)


def test_every_scale_is_stated_in_the_table() -> None:
    assert list(SCALES) == [
        line.split("|")[1].strip()
        for line in (corruption.__doc__ or "").splitlines()
        if line.startswith("| ") and not line.startswith(("| corruption", "| ---"))
    ]
    for name, scale in SCALES.items():
        values = " | ".join(f"{value:g}" for value in scale.values)
        assert f"| {values} |" in (corruption.__doc__ or ""), name
        assert scale.unit


def test_what_each_does_by_hand() -> None:
    image = cell()
    flat = np.full((64, 64, 3), 120, np.uint8)
    rng = np.random.default_rng
    assert corrupt(flat, "noise", 3, rng(0)).std() == pytest.approx(16, abs=0.5)
    assert set(np.unique(corrupt(flat, "darker", 4, rng(0)))) == {60}
    assert set(np.unique(corrupt(flat, "brighter", 5, rng(0)))) == {180}
    low = corrupt(image, "contrast", 4, rng(0))
    assert low.std() == pytest.approx(0.4 * image.std(), rel=0.05)
    spot = np.zeros((100, 200, 3), np.uint8)
    spot[50, 100] = 255
    # Severity 4 is 2 % of the shorter side: sigma 2 px, its peak 255 / (2 pi sigma^2).
    assert corrupt(spot, "blur", 4, rng(0)).max() == pytest.approx(255 / (8 * np.pi), abs=1)
    halved = corrupt(image, "resolution", 4, rng(0))
    assert distance(halved[::4, ::4], image[::4, ::4]) < 12


def test_stain_gain_leaves_the_glass_alone_and_changes_the_nucleus() -> None:
    image = cell()
    nucleus, glass = (slice(40, 55), slice(38, 55)), (slice(0, 12), slice(0, 12))
    seen = set()
    for seed in range(8):
        made = corrupt(image, "haematoxylin", 5, np.random.default_rng(seed))
        change = float(made[nucleus].mean() - image[nucleus].mean())
        assert abs(change) > 12
        assert distance(made[glass], image[glass]) < 6
        seen.add(change > 0)
    assert seen == {True, False}  # weaker for some, stronger for others
    red = (slice(35, 42), slice(78, 84))
    made = corrupt(image, "eosin", 5, np.random.default_rng(0))
    gap = np.abs(made[red].astype(float) - image[red]).mean(axis=(0, 1))
    assert gap[1] > 3 * gap[0]  # eosin absorbs green


def test_bad_requests_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'blur'"):
        corrupt(cell(), "blurr", 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="severity 6"):
        corrupt(cell(), "blur", 6, np.random.default_rng(0))
    with pytest.raises(ValueError, match="2 severities"):
        corruption.corruption("x", (1.0, 2.0), "unit")


def test_monotone_on_real_cells(pbc: Path) -> None:
    images = [read_image(sorted((pbc / name).iterdir())[0]) for name in ("neutrophil", "platelet")]
    for name in NAMES:
        for image in images:
            made = [corrupt(image, name, s, np.random.default_rng(2)) for s in range(6)]
            far = [distance(each, image) for each in made]
            assert all(a < b for a, b in itertools.pairwise(far)), (name, far)
