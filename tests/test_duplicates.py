"""Copies of every kind are found, different cells are not, on several kinds of picture."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from leukoscope.data import duplicates, signature
from made_cells import COPIES, cells_of, cut_out, smear

N = 40
PLANTED = 12


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1].copy()


@cache
def made(kind: str) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    if kind == "cut out":
        return [cut_out(rng) for _ in range(N)]
    return [smear(rng, int(kind)) for _ in range(N)]


def assert_found(images: list[np.ndarray], copies: list[np.ndarray], least: float) -> None:
    """Each of `copies` (of the first images) is grouped with its original alone."""
    cells = cells_of([*images, *copies])
    clusters = duplicates.find(cells).clusters
    n = len(images)
    found = np.mean([clusters[k] == clusters[n + k] for k in range(len(copies))])
    assert found >= least
    assert len(set(clusters[:n])) >= n - 1


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("kind", ["120", "cut out"])
def test_copies_of_synthetic_pictures_are_found(kind: str, copy: str) -> None:
    images = made(kind)
    assert_found(images, [COPIES[copy](image) for image in images[:PLANTED]], 0.95)


def test_copies_of_28_pixel_pictures_are_found() -> None:
    images = made("28")
    copies = [list(COPIES.values())[k % len(COPIES)](image) for k, image in enumerate(images)]
    assert_found(images, copies, 0.95)


@pytest.mark.parametrize("kind", ["28", "120", "cut out"])
def test_different_synthetic_pictures_are_not_grouped(kind: str) -> None:
    assert duplicates.find(cells_of(made(kind))).near == []


@pytest.mark.real
@pytest.mark.parametrize("side", [28, 360])
def test_copies_of_real_cells_are_found(pbc: Path, side: int) -> None:
    paths = sorted(pbc.glob("*/*"))[::15]
    images = [cv2.resize(read(path), (side, side), interpolation=cv2.INTER_AREA) for path in paths]
    n = len(images)
    kinds = list(COPIES)
    copies = [COPIES[kinds[k % len(kinds)]](image) for k, image in enumerate(images)]
    clusters = duplicates.find(cells_of([*images, *copies])).clusters
    hits = clusters[:n] == clusters[n:]
    for kind in kinds:
        own = hits[[k for k in range(n) if kinds[k % len(kinds)] == kind]]
        assert own.mean() >= 0.85, kind  # 8 or 9 of each kind
    assert hits.mean() >= 0.97
    assert len(set(clusters[:n])) == n


@pytest.mark.real
def test_different_fields_of_other_stains_are_not_grouped(foreign: Path) -> None:
    images = [cv2.resize(read(path), (320, 240)) for path in sorted(foreign.glob("*/*.*"))]
    assert duplicates.find(cells_of(images)).near == []


def test_byte_equal_files_are_exact_and_not_near() -> None:
    first, second = made("120")[:2]
    found = duplicates.find(cells_of([first, second, first], ["a", "b", "a"]))
    assert found.exact == [["00000.png", "00002.png"]]
    assert found.near == []
    assert found.clusters[0] == found.clusters[2] != found.clusters[1]


def test_a_near_group_holds_the_exact_copies_too() -> None:
    first, second = made("120")[:2]
    found = duplicates.find(cells_of([first, first, first[::-1], second]))
    assert found.exact == [["00000.png", "00001.png"]]
    assert found.near == [["00000.png", "00001.png", "00002.png"]]


def test_groups_don_t_depend_on_the_order_of_rows() -> None:
    images = made("120")
    cells = cells_of(
        [*images, *(image[::-1] for image in images[:9])], ["a", "b", "a"] * 16 + ["a"]
    )
    before = duplicates.find(cells)
    order = np.random.default_rng(1).permutation(len(cells.frame))
    cells.frame.loc[:] = cells.frame.iloc[order].to_numpy()
    after = duplicates.find(cells)
    assert (before.exact, before.near) == (after.exact, after.near)
    assert len(before.near) == 9
    assert np.array_equal(before.clusters[order], after.clusters)


def test_flat_pictures_are_like_nothing() -> None:
    flat = [np.full((40, 40, 3), grey, np.uint8) for grey in (0, 90, 91, 255)]
    assert duplicates.find(cells_of(flat)).near == []
    assert duplicates.find(cells_of(flat[:1], ["a"])).near == []


def test_a_forest_of_several_leaves_finds_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What large indexes go through: no leaf holds all pictures."""
    monkeypatch.setattr(duplicates, "LEAF", 16)
    images = made("120")
    assert_found(images, [image[::-1] for image in images[:PLANTED]], 0.95)


@pytest.mark.parametrize("kind", ["28", "120", "cut out"])
def test_the_hash_is_the_same_in_all_orientations(kind: str) -> None:
    image = made(kind)[0]
    views = [np.rot90(side, turn) for side in (image, image[::-1]) for turn in range(4)]
    assert len({signature.phash(view) for view in views}) == 1
    assert signature.phash(image) != signature.phash(made(kind)[1])


def test_colour_moments_agree_with_scipy() -> None:
    from scipy.stats import moment

    image = made("120")[0]
    pixels = image.reshape(-1, 3).astype(float)
    expected = np.c_[pixels.mean(0), pixels.std(0), np.cbrt(moment(pixels, 3))]
    np.testing.assert_allclose(signature.colour_moments(image), expected.ravel(), rtol=1e-9)
    assert len(signature.COLOUR_FEATURES) == 9


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (2000, 3, 3), (28, 28, 3)])
def test_signatures_of_any_size_are_defined(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert signature.thumbnail(image).shape == (signature.SIDE, signature.SIDE)
    assert len(signature.phash(image)) == 16
    assert np.isfinite(signature.colour_moments(image)).all()
