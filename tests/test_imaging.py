"""The preprocessing chain and its transforms: contract, goldens, references, properties."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import color, exposure, filters, transform

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.imaging import colour, enhancement, pipeline, segmentation
from leukoscope.imaging.pipeline import apply, check, transforms
from leukoscope.imaging.quality import FLAGS, Limits, flags, quality

SHAPES = [(1, 1), (1, 9), (7, 1), (2, 3), (31, 17), (64, 96), (225, 129)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(side: int = 48) -> np.ndarray:
    """A drawn purple nucleus in pale cytoplasm beside a red cell: no real image."""
    image = np.full((side, side, 3), (235, 228, 215), np.uint8)
    image[:, :, 0] -= np.arange(side, dtype=np.uint8) // 4
    cv2.circle(image, (side // 4, side // 4), side // 6, (205, 150, 150), -1)
    cv2.circle(image, (side * 5 // 8, side * 5 // 8), side // 4, (205, 190, 215), -1)
    cv2.circle(image, (side * 5 // 8, side * 5 // 8), side // 6, (105, 60, 150), -1)
    return image


@pytest.mark.parametrize("name", transforms)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_transform_keeps_the_contract(name: str, shape: tuple[int, int]) -> None:
    flat = [np.full((*shape, 3), level, np.uint8) for level in (0, 128, 255)]
    for image in [noise(*shape), *flat]:
        image.setflags(write=False)
        before = image.copy()
        first, second = (apply(image, [{"step": name}]) for _ in range(2))
        assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
        assert np.array_equal(first, second)
        assert np.array_equal(image, before) and not np.shares_memory(first, image)
        if name not in ("resize", "resize_keep_aspect"):
            assert first.shape == image.shape


@pytest.mark.parametrize("name", transforms)
def test_every_setting_has_a_default_that_passes(name: str) -> None:
    defaults = pipeline.defaults(name)
    check([{"step": name, **defaults}])
    for key in defaults:
        with pytest.raises(InputError, match=key):
            check([{"step": name, key: {"no": "setting"}}])


# SHA-256, first 16 digits, of each transform's output for `scene()`.
GOLDENS: dict[str, str] = {
    "adaptive_contrast": "c21c70b4661368e5",
    "brightness_contrast": "7c03acc028149f6f",
    "equalise_luminance": "4fbdac2965b91ff9",
    "hsv_mask": "58d9e1a5220d68f7",
    "logmh": "84fd90698aefe093",
    "nucleus_mask": "58d9e1a5220d68f7",
    "otsu_mask": "3232dc88ec19af6d",
    "resize": "14fe7bf170a2b3b2",
    "resize_keep_aspect": "14fe7bf170a2b3b2",
    "stretch_contrast": "742c5e9d0d6546fd",
    "white_balance": "89081ba032295893",
}


@pytest.mark.parametrize("name", transforms)
def test_goldens(name: str) -> None:
    assert name in GOLDENS, f"{name} has no golden"
    result = apply(scene(), [{"step": name}])
    assert hashlib.sha256(result.tobytes()).hexdigest()[:16] == GOLDENS[name]


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        ([{"step": "resiz"}], "Did you mean 'resize'"),
        ([{"step": "resize", "sice": 3}], "Did you mean 'size'"),
        ([{"step": "resize", "size": 0}], "size"),
        ([{"step": "resize", "size": True}], "size"),
        ([{"step": "resize", "size": [1, 2, 3]}], "size"),
        ([{"step": "resize", "enlarge": "cubik"}], "'linear' or 'cubic'"),
        ([{"step": "logmh", "sigma": float("nan")}], "finite"),
        ([{"step": "logmh", "sigma": "1"}], "valid number"),
        ([{"step": "logmh", "beta": -1}], "beta"),
        ([{"step": "otsu_mask", "polarity": "darc"}], "'dark' or 'bright'"),
        ([{"step": "hsv_mask", "hue_low": 180}], "179"),
        (["resize"], "Step 1"),
        ([{"size": 3}], "Step 1"),
    ],
)
def test_a_wrong_chain_fails_before_any_image(chain: list, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(chain)


def test_a_chain_runs_in_order_and_takes_any_pair_for_a_size() -> None:
    chain = [{"step": "resize", "size": (20, 30)}, {"step": "logmh", "sigma": 2}]
    by_hand = enhancement.logmh(enhancement.resize(scene(), size=[20, 30]), sigma=2)
    assert np.array_equal(apply(scene(), chain), by_hand)
    assert np.array_equal(apply(scene(), []), scene())


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), None],
)
def test_other_arrays_are_refused(image: object) -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        apply(image, [])  # type: ignore[arg-type]


# Independent references.


def test_luminance_equals_scikit_images_weights_to_one_level() -> None:
    image = noise(40, 30)
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(colour.grey(image) - image @ weights).max() <= 1
    studio = color.rgb2ycbcr(image)[:, :, 0]  # 16..235 by the same weights
    assert np.abs(16 + colour.grey(image) * (219 / 255) - studio).max() <= 1


def test_equalisation_equals_scikit_image_stretched_to_the_full_range() -> None:
    """OpenCV subtracts the first bin of the distribution, scikit-image does not."""
    channel = colour.grey(noise(50, 60)) // 3 + 20
    reference = exposure.equalize_hist(channel, nbins=256)
    low, high = reference.min(), reference.max()
    stretched = (reference - low) / (high - low) * 255
    assert np.abs(enhancement.equalised(channel) - stretched).max() <= 1


def test_stretched_contrast_is_scikit_images_rescaled_intensity() -> None:
    image = cv2.GaussianBlur(noise(64, 96), (0, 0), 2)
    limits = tuple(np.percentile(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (1, 99)))
    expected = exposure.rescale_intensity(image.astype(float), limits, (0, 255))
    result = apply(image, [{"step": "stretch_contrast", "low": 1.0, "high": 99.0}])
    np.testing.assert_allclose(result, expected, atol=0.51)


def test_adaptive_contrast_of_one_unlimited_tile_is_scikit_images_equalisation() -> None:
    channel = colour.grey(noise(64, 64)) // 2
    reference = exposure.equalize_hist(channel, nbins=256) * 255
    assert np.abs(enhancement.contrast_limited(channel, 1000.0, 1) - reference).max() <= 1


def test_high_boost_equals_scipy() -> None:
    channel = scene()[:, :, 1].astype(float)
    smooth = ndimage.gaussian_filter(channel, 1.5, mode="mirror", truncate=4.0)
    reference = 2.0 * channel - 0.7 * ndimage.laplace(smooth, mode="mirror")
    assert np.allclose(enhancement.high_boost(channel, 1.5, 2.0, 0.7), reference, atol=1e-9)


def test_otsu_equals_scikit_image_and_scipys_closing() -> None:
    channel = ndimage.gaussian_filter(scene()[:, :, 1], 1)
    dark = channel <= filters.threshold_otsu(channel)
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)).astype(bool)
    padded = ndimage.binary_closing(np.pad(dark, 8), element)[8:-8, 8:-8]
    inner = (slice(4, -4), slice(4, -4))  # away from the border the conventions agree
    assert np.array_equal((segmentation.otsu(channel) > 0)[inner], padded[inner])


def test_three_class_otsu_equals_scikit_image() -> None:
    channel = ndimage.gaussian_filter(scene(96)[:, :, 1], 1)
    low, high = filters.threshold_multiotsu(channel, classes=3)
    assert segmentation.three_class_otsu(channel) == (low, high)


def test_hsv_thresholds_equal_scikit_images_colours_off_the_edges() -> None:
    image = noise(40, 40)
    hue, saturation, _ = np.moveaxis(color.rgb2hsv(image), 2, 0)
    inside = (hue * 180 >= 112) & (hue * 180 <= 160) & (saturation * 255 >= 80)
    near = (np.abs(hue * 180 - 112) < 1) | (np.abs(hue * 180 - 160) < 1)
    near |= np.abs(saturation * 255 - 80) < 1
    mask = segmentation.hsv(image, 112, 160, 80) > 0
    assert np.array_equal(mask[~near], inside[~near]) and mask.any()


def test_shrinking_averages_areas_and_enlarging_interpolates_as_scikit_image() -> None:
    image = noise(40, 60)
    means = transform.downscale_local_mean(image.astype(float), (4, 4, 1))
    assert np.abs(enhancement.resize(image, size=[10, 15]) - means).max() <= 0.5 + 1e-6
    larger = transform.resize(
        image.astype(float), (100, 130), order=1, mode="edge", anti_aliasing=False
    )
    assert np.abs(enhancement.resize(image, size=[100, 130]) - larger).max() <= 1


def test_optical_density_equals_beer_lambert() -> None:
    image = noise(10, 10)
    light = np.array([240.0, 230.0, 220.0])
    reference = np.maximum(-np.log10(np.maximum(image, 1) / light), 0)
    assert np.allclose(colour.optical_density(image, light), reference, atol=1e-6)


# Properties.


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50))
def test_resizing_gives_the_size_asked_for(h: int, w: int, height: int, width: int) -> None:
    image = noise(h, w)
    for function in (enhancement.resize, enhancement.resize_keep_aspect):
        assert function(image, size=[height, width]).shape == (height, width, 3)
    flat = np.full_like(image, 77)
    assert (enhancement.resize(flat, size=[height, width]) == 77).all()
    assert (enhancement.resize_keep_aspect(flat, size=[height, width]) == 77).all()


def test_aspect_ratio_is_kept_on_a_white_background() -> None:
    boxed = enhancement.resize_keep_aspect(
        np.zeros((20, 40, 3), np.uint8), size=80, background="white"
    )
    dark = boxed[:, :, 0] == 0
    assert dark.any(1).sum() == 40 and dark.any(0).sum() == 80 and (boxed[~dark] == 255).all()


def test_scales() -> None:
    image = noise(9, 7)
    unit, symmetric = colour.scale_unit(image), colour.scale_symmetric(image)
    assert unit.dtype == symmetric.dtype == np.float32
    assert unit.min() >= 0 and unit.max() <= 1 and symmetric.min() >= -1 and symmetric.max() <= 1
    assert np.allclose(symmetric, 2 * unit - 1, atol=1e-6)
    ready = colour.normalise(image, (0.5,) * 3, (0.5,) * 3)
    assert ready.shape == (3, 9, 7) and ready.dtype == np.float32 and ready.flags.c_contiguous
    assert np.allclose(ready, symmetric.transpose(2, 0, 1), atol=1e-6)


def test_logmh_spans_the_full_range_and_ignores_gain_and_offset() -> None:
    image = scene()
    result = enhancement.logmh(image)
    assert (result.min((0, 1)) == 0).all() and (result.max((0, 1)) == 255).all()
    changed = (image // 2 * 2).astype(np.uint8)
    gained = (changed // 2 + 30).astype(np.uint8)
    difference = enhancement.logmh(changed).astype(int) - enhancement.logmh(gained)
    assert np.abs(difference).max() <= 1
    grey_level = colour.grey(enhancement.logmh(image, on="luminance"))
    assert grey_level.std() > colour.grey(image).std()


def test_defaults_of_brightness_and_contrast_change_nothing() -> None:
    assert np.array_equal(enhancement.brightness_contrast(scene()), scene())
    assert enhancement.brightness_contrast(scene(), brightness=1.0).min() == 255
    assert np.ptp(enhancement.brightness_contrast(scene(), contrast=0.0)) == 0


def test_white_balance_is_idempotent_and_undoes_a_tint() -> None:
    image = scene()
    tinted = np.rint(image * [1.0, 0.8, 0.7]).astype(np.uint8)
    once = colour.white_balance(image)
    assert np.array_equal(colour.white_balance(once), once)
    assert np.abs(colour.background_colour(once) - 245).max() <= 1
    assert np.abs(colour.white_balance(tinted).astype(int) - once).max() <= 2


def test_masks_keep_the_inside_and_zero_the_outside() -> None:
    image = scene()
    inside = segmentation.segment(image, "hsv") > 0
    result = segmentation.hsv_mask(image)
    assert np.array_equal(result[inside], image[inside]) and (result[~inside] == 0).all()
    dark = segmentation.otsu_mask(image, kernel=1)
    bright = segmentation.otsu_mask(image, polarity="bright", kernel=1)
    grey = colour.grey(image)
    assert np.array_equal(dark[:, :, 0] + bright[:, :, 2], grey)


def test_segment_names_what_it_knows() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'nucleus'"):
        segmentation.segment(scene(), "nuclei")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="polarity"):
        segmentation.segment(scene(), "otsu", "black")  # type: ignore[arg-type]


def test_flags_name_what_was_done_to_an_image() -> None:
    image = scene(200)
    assert flags(image) == []
    assert "blur" in flags(cv2.GaussianBlur(image, (0, 0), 6))
    assert "under_exposed" in flags(image // 4)
    assert "over_exposed" in flags(np.clip(image.astype(int) * 2, 0, 255).astype(np.uint8))
    assert "unsaturated" in flags(np.repeat(colour.grey(image)[:, :, None], 3, axis=2))
    assert "empty" in flags(np.full((50, 50, 3), 230, np.uint8))
    dirty = image.copy()
    dirty[:40, -40:] = 5
    assert "debris" in flags(dirty)
    assert flags(dirty, Limits(debris_high=1.0)) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_finite_for_any_size(shape: tuple[int, int]) -> None:
    for image in (noise(*shape), np.zeros((*shape, 3), np.uint8)):
        assert np.isfinite(list(quality(image).values())).all()
        assert set(flags(image)) <= set(FLAGS)
