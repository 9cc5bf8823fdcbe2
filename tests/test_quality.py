"""Quality scores and flags: references, properties, drawn faults and real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import color

from leukoscope.errors import InputError
from leukoscope.imaging import colour
from leukoscope.imaging.enhancement import resized
from leukoscope.imaging.quality import FLAGS, Limits, flags, quality
from leukoscope.imaging.read import read_image

SHAPES = [(1, 1), (1, 9), (7, 1), (2, 3), (31, 17), (64, 96), (225, 129), (700, 40)]


def cell(side: int = 200) -> np.ndarray:
    """A drawn cell with a textured nucleus beside red cells: no real image."""
    rng = np.random.default_rng(0)
    image = np.full((side, side, 3), (232, 226, 214), np.uint8)
    for x, y in ((0.1, 0.2), (0.9, 0.1), (0.15, 0.85), (0.9, 0.85)):
        cv2.circle(image, (int(x * side), int(y * side)), side // 9, (214, 165, 160), -1)
    cv2.circle(image, (side // 2, side // 2), side * 3 // 10, (196, 182, 214), -1)
    cv2.circle(image, (side // 2, side // 2), side // 5, (110, 62, 150), -1)
    texture = cv2.resize(rng.normal(0, 12, (side // 8, side // 8)), (side, side))
    return np.clip(image + texture[:, :, None], 0, 255).astype(np.uint8)


def times(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: np.clip(image * factor, 0, 255).astype(np.uint8)


def blurred(part: float) -> Callable[[np.ndarray], np.ndarray]:
    """Gaussian blur of that part of the longer side."""
    return lambda image: cv2.GaussianBlur(image, (0, 0), part * max(image.shape))


def half_black(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[:, : image.shape[1] // 2] = 0
    return image


def inked(image: np.ndarray) -> np.ndarray:
    image, (height, width) = image.copy(), image.shape[:2]
    cv2.ellipse(
        image, (width // 5, height // 4), (width // 8, height // 11), 30, 0, 360, (12,) * 3, -1
    )
    return image


def grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(colour.grey(image)[:, :, None], 3, axis=2)


def empty(image: np.ndarray) -> np.ndarray:
    """Glass of this image's colour, with noise and a slope of light."""
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    slope = np.linspace(0, 8, image.shape[1])[:, None]
    return np.clip(colour.background_colour(image) + noise - slope, 0, 255).astype(np.uint8)


FAULTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "blur": ("blur", blurred(0.03)),
    "a third of the light": ("under_exposed", times(0.33)),
    "twice the light": ("over_exposed", times(2.0)),
    "three times the light": ("over_exposed", times(3.0)),
    "washed out": ("over_exposed", lambda image: (200 + 0.18 * image).astype(np.uint8)),
    "grey": ("unsaturated", grey),
    "ink": ("debris", inked),
    "half black": ("debris", half_black),
    "glass": ("empty", empty),
}


@pytest.mark.parametrize("side", [64, 200, 800])
@pytest.mark.parametrize("fault", FAULTS)
def test_flags_name_what_was_done_to_an_image(fault: str, side: int) -> None:
    image = cell(side)
    assert flags(image) == []
    name, change = FAULTS[fault]
    if fault == "blur":
        change = blurred(0.06)
    assert name in flags(change(image))


def test_limits_decide() -> None:
    dirty = inked(cell())
    assert flags(dirty) == ["debris"]
    assert flags(dirty, Limits(debris_high=1.0)) == []


@pytest.mark.parametrize("side", [200, 400, 500])
@pytest.mark.parametrize("part", [0.02, 0.03, 0.05])
def test_blur_is_measured_in_nuclei(side: int, part: float) -> None:
    """The nucleus is .4 of the side; what the cell has of itself adds a little."""
    found = quality(blurred(part)(cell(side)))["blur"]
    assert found is not None
    assert found == pytest.approx(part / 0.4, rel=0.1)


def test_scores_are_what_other_code_measures() -> None:
    image = cell(120)
    scores = quality(image)
    hue_saturation = color.rgb2hsv(image)[:, :, 1].ravel()
    most = np.sort(hue_saturation)[-hue_saturation.size // 10 :]
    assert scores["saturation"] == pytest.approx(most.mean(), abs=0.01)
    luminance = color.rgb2gray(image)
    bright = luminance[luminance >= np.percentile(luminance, 90)]
    assert scores["background"] == pytest.approx(255 * np.median(bright), abs=3)
    darkest = (image @ np.array([0.299, 0.587, 0.114])).ravel()
    contrast = 1 - np.percentile(darkest, 1) / scores["background"]
    assert scores["contrast"] == pytest.approx(contrast, abs=0.01)
    assert quality(half_black(image))["debris"] == pytest.approx(0.5)
    assert scores["clipped"] == 0


def test_exposure_and_white_balance_leave_the_relative_scores() -> None:
    image = cell()
    plain = quality(image)
    for gains in ((0.7, 0.7, 0.7), (1, 0.9, 0.7), (0.75, 0.85, 1)):
        other = quality((image * np.array(gains)).astype(np.uint8))
        for name in ("blur", "stained", "debris"):
            assert other[name] == pytest.approx(plain[name], abs=0.02)
    turned = quality(np.rot90(image).copy())
    assert all(turned[name] == pytest.approx(plain[name], abs=2e-3) for name in plain)


def test_a_field_stop_and_a_cut_out_cell_are_no_debris() -> None:
    image = cell()
    for radius in (95, 60):
        seen = np.zeros(image.shape[:2], np.uint8)
        cv2.circle(seen, (100, 100), radius, 1, -1)
        assert flags(image * seen[:, :, None]) == []
    corner = image.copy()
    corner[:30, :30] = 0
    assert flags(corner) == ["debris"]


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_finite_for_any_size(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for image in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        scores = quality(image)
        assert np.isfinite([v for v in scores.values() if v is not None]).all()
        assert set(flags(image)) <= set(FLAGS)
    assert {"over_exposed", "empty"} <= set(flags(np.full_like(noise, 255)))
    assert {"under_exposed", "empty"} <= set(flags(np.zeros_like(noise)))
    assert quality(np.full_like(noise, 230))["blur"] is None


def test_golden() -> None:
    found = quality(cell())
    expected = {
        "blur": 0.0,
        "background": 237.426,
        "clipped": 0.0,
        "contrast": 0.6967,
        "saturation": 0.6128,
        "debris": 0.0,
        "stained": 0.4923,
    }
    assert found == pytest.approx(expected, abs=2e-3)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        quality(np.zeros((4, 4)))


# Real images.


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    scale = min(1.0, side / max(image.shape[:2]))
    return resized(image, *(max(1, round(scale * length)) for length in image.shape[:2]))


@pytest.mark.real
@pytest.mark.parametrize("side", [28, 144, 1000])
def test_ordinary_cells_have_no_flag(pbc: Path, side: int) -> None:
    """50 cells of all eight classes, platelets among them."""
    files = sorted(pbc.glob("*/*.jpg"))[::48]
    assert sum(bool(flags(shrunk(read_image(path), side))) for path in files) <= 1


@pytest.mark.real
def test_ordinary_fields_have_no_flag(bccd: Path, foreign: Path) -> None:
    """Also red cells alone, and fields seen through an eyepiece."""
    for folder in (bccd / "images", foreign / "chula", foreign / "warty-pig"):
        files = sorted(path for path in folder.iterdir() if path.suffix == ".jpg")[::13]
        files += sorted(path for path in folder.iterdir() if path.suffix == ".png")[::13]
        assert files
        found = [path.name for path in files if flags(read_image(path))]
        assert len(found) <= max(1, 0.02 * len(files)), found


@pytest.mark.real
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(pbc: Path, fault: str) -> None:
    name, change = FAULTS[fault]
    files = sorted(pbc.glob("*/*.jpg"))[::150]
    caught = [name in flags(change(read_image(path))) for path in files]
    assert np.mean(caught) >= 0.85
