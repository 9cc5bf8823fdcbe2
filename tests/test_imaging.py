"""The preprocessing chain and its transforms: contract, goldens, references, properties."""

from __future__ import annotations

import hashlib
import importlib
import runpy
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import color, exposure, filters, transform

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.imaging import colour, enhancement, segmentation
from leukoscope.imaging.pipeline import apply, check, transforms
from leukoscope.imaging.read import read_image
from leukoscope.registry import keyword_parameters

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
    defaults = {key: p.default for key, p in keyword_parameters(transforms[name]).items()}
    check([{"step": name, **defaults}])
    for key in defaults:
        with pytest.raises(InputError, match=key):
            check([{"step": name, key: {"no": "setting"}}])


# SHA-256, first 16 digits, of each transform's output for the picture below.
GOLDENS: dict[str, str] = {
    "adaptive_contrast": "9820d88acf3bf4b4",
    "brightness_contrast": "43eb38ce36ea1876",
    "equalise_luminance": "c2b2df158e17b200",
    "hsv_mask": "21dd3e58f8ee21a9",
    "logmh": "da6151fa7d1df0a9",
    "nucleus_mask": "8f6ca5ca8c0d884f",
    "otsu_mask": "2aaa10e1373ad3db",
    "resize": "0a3b5e01546447ee",
    "resize_keep_aspect": "2397cde4907b0a5a",
    "stretch_contrast": "4e261d2aa81c03f7",
    "white_balance": "30693e1f8e95e707",
}


@pytest.mark.parametrize("name", transforms)
def test_goldens(name: str) -> None:
    assert name in GOLDENS, f"{name} has no golden"
    picture = cv2.GaussianBlur(scene(), (0, 0), 1)[:40]  # edges as in a real image, not square
    result = apply(picture, [{"step": name}])
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


@pytest.mark.parametrize("seed", range(40))
def test_shrinking_equals_opencvs_area_averages(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 500, 2).tolist()
    size = [int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))]
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = enhancement.resize(image, size=size)
    wanted = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    differ = np.abs(found.astype(int) - wanted)
    assert found.shape == wanted.shape and differ.max() <= 1 and (differ > 0).mean() < 0.01


def test_optical_density_equals_beer_lambert() -> None:
    image = noise(10, 10)
    light = np.array([240.0, 230.0, 220.0])
    reference = np.maximum(-np.log10(np.maximum(image, 1) / light), 0)
    assert np.allclose(colour.optical_density(image, light), reference, atol=1e-6)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's functions written with scikit-image."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    return importlib.import_module("imaging")


def stained(seed: int) -> np.ndarray:
    """A synthetic cell of 224 px with noise, red cells and a platelet."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(scene(48), (224, 224), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, tuple(rng.integers(20, 80, 2).tolist()), 6, (120, 80, 160), -1)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 2.5))
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "equal"),
    [("LoGMH", 1.0), ("Otsu + closing", 1.0), ("HSV mask", 0.999), ("nucleus", 0.995)],
)
def test_the_same_steps_with_scikit_image(benchmark: ModuleType, name: str, equal: float) -> None:
    """Levels within one, mask pixels the same: where scikit-image's arithmetic isn't integer, a
    few pixels on a threshold differ, and its distances are exact, ours chamfer distances."""
    found = benchmark.agreement(*benchmark.PAIRS[name], [stained(seed) for seed in range(4)])
    assert min(found) >= equal
    for function in benchmark.PAIRS[name]:
        assert function(stained(0)).any()


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "equal"),
    [("LoGMH", 1.0), ("Otsu + closing", 0.9999), ("HSV mask", 0.9999), ("nucleus", 0.9995)],
)
def test_the_same_steps_with_scikit_image_on_real_cells(
    pbc: Path, benchmark: ModuleType, name: str, equal: float
) -> None:
    files = sorted(pbc.glob("*/*.jpg"))[::200]
    images = [enhancement.resize(read_image(path), size=224) for path in files]
    assert np.median(benchmark.agreement(*benchmark.PAIRS[name], images)) >= equal


def test_percentiles_of_a_histogram_are_numpys() -> None:
    levels = noise(7, 9)[:, :, 0] // 3
    shares = [0, 0.5, 2, 33.3, 50, 98, 99.5, 100]
    counts = colour.histogram(levels)
    np.testing.assert_allclose(colour.percentiles(counts, shares), np.percentile(levels, shares))
    assert np.array_equal(counts, np.bincount(levels.ravel(), minlength=256))
    planes = [colour.histogram(noise(7, 9), channel) for channel in range(3)]
    assert np.array_equal(planes[2], np.bincount(noise(7, 9)[:, :, 2].ravel(), minlength=256))


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


def test_scales_are_timms_and_scikit_images() -> None:
    image = noise(9, 7)
    scaled = {name: colour.normalise(image, *pair) for name, pair in colour.SCALES.items()}
    for result in scaled.values():
        assert result.shape == (3, 9, 7) and result.dtype == np.float32
        assert result.flags.c_contiguous
    planes = image.transpose(2, 0, 1)
    unit = exposure.rescale_intensity(planes.astype(float), (0, 255), (0, 1))
    assert np.allclose(scaled["unit"], unit, atol=1e-7)
    assert scaled["unit"].min() >= 0 and scaled["unit"].max() <= 1
    symmetric = exposure.rescale_intensity(planes.astype(float), (0, 255), (-1, 1))
    assert np.allclose(scaled["symmetric"], symmetric, atol=1e-6)
    mean, std = colour.SCALES["imagenet"]
    # The one file of timm: importing all of it takes seconds.
    file = str(distribution("timm").locate_file("timm/data/constants.py"))
    constants = runpy.run_path(file)
    assert mean == constants["IMAGENET_DEFAULT_MEAN"]
    assert std == constants["IMAGENET_DEFAULT_STD"]
    reference = (unit - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    assert np.allclose(scaled["imagenet"], reference, atol=1e-6)
    # Golden: what mid-grey becomes.
    grey = np.full((1, 1, 3), 128, np.uint8)
    middle = [colour.normalise(grey, *pair)[:, 0, 0] for pair in colour.SCALES.values()]
    expected = [[0.0741, 0.2052, 0.4265], [0.5020] * 3, [0.0039] * 3]
    np.testing.assert_allclose(middle, expected, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_equalisation_ignores_any_increasing_change_and_is_idempotent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channel = rng.integers(0, 40, (30, 40), dtype=np.uint8)
    table = np.sort(rng.choice(256, 40, replace=False)).astype(np.uint8)
    once = enhancement.equalised(channel)
    assert np.array_equal(enhancement.equalised(table[channel]), once)
    assert np.array_equal(enhancement.equalised(once), once)
    assert once.min() == 0 and once.max() == 255


def test_equalised_luminance_is_the_equalised_grey_and_keeps_the_chroma() -> None:
    image = cv2.GaussianBlur(scene(96), (0, 0), 2)
    result = enhancement.equalise_luminance(image)
    before, after = (color.rgb2ycbcr(x) for x in (image, result))
    inside = ((result > 0) & (result < 255)).all(2)  # where RGB could hold the colour
    assert inside.mean() > 0.3
    assert (
        np.abs(colour.grey(result).astype(int) - enhancement.equalised(colour.grey(image)))[
            inside
        ].max()
        <= 2
    )
    assert np.abs(before[inside, 1:] - after[inside, 1:]).max() <= 2


def test_adaptive_contrast_of_many_tiles_is_scikit_images() -> None:
    """Another implementation of Zuiderveld's method; it stretches its result to the full range."""
    channel = ndimage.gaussian_filter(colour.grey(noise(128, 128)).astype(float), 4)
    channel = exposure.rescale_intensity(channel, out_range=(40, 200)).astype(np.uint8)
    ours = enhancement.contrast_limited(channel, 4.0, 4).astype(float)
    theirs = exposure.equalize_adapthist(channel, (32, 32), 4.0 / 256, 256)
    inner = (slice(16, -16), slice(16, -16))  # their borders are padded, ours end
    assert np.corrcoef(ours[inner].ravel(), theirs[inner].ravel())[0, 1] > 0.99


def test_logmh_is_scipys_and_scikit_images() -> None:
    image = cv2.GaussianBlur(scene(), (0, 0), 1)
    for channel, result in zip(
        np.moveaxis(image, 2, 0),
        np.moveaxis(enhancement.logmh(image, sigma=1.5, alpha=2.0, beta=3.0), 2, 0),
        strict=True,
    ):
        smooth = ndimage.gaussian_filter(channel.astype(float), 1.5, mode="mirror")
        boosted = 2.0 * channel - 3.0 * ndimage.laplace(smooth, mode="mirror")
        np.testing.assert_allclose(
            result, exposure.rescale_intensity(boosted, out_range=(0, 255)), atol=0.51
        )


@pytest.mark.parametrize("kernel", [1, 5, 9])
def test_otsu_polarities_mirror_each_other_and_closing_is_idempotent(kernel: int) -> None:
    channel = ndimage.gaussian_filter(scene(64)[:, :, 1], 2)
    dark = segmentation.otsu(channel, "dark", kernel)
    assert np.array_equal(dark, segmentation.otsu(255 - channel, "bright", kernel))
    plain = segmentation.otsu(channel, "dark", 1)
    assert (dark >= plain).all()  # closing only adds
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel, kernel))
    assert np.array_equal(cv2.morphologyEx(dark, cv2.MORPH_CLOSE, element), dark)
    assert np.array_equal(segmentation.otsu(channel, "bright", 1), 255 - plain)


def test_the_closing_element_is_an_ellipse_of_five() -> None:
    single = np.zeros((7, 7), np.uint8)
    single[3, 3] = 255
    grown = cv2.dilate(single, segmentation._ellipse(5))[1:-1, 1:-1] // 255
    full = [1, 1, 1, 1, 1]
    assert grown.tolist() == [[0, 0, 1, 0, 0], full, full, full, [0, 0, 1, 0, 0]]


def test_an_hsv_range_over_179_is_the_complement_and_masking_twice_changes_nothing() -> None:
    image = noise(40, 40)
    around = segmentation.hsv(image, 170, 20, 0) > 0
    between = segmentation.hsv(image, 21, 169, 0) > 0
    assert np.array_equal(around, ~between)
    once = segmentation.hsv_mask(image, saturation_low=80)
    assert np.array_equal(segmentation.hsv_mask(once, saturation_low=80), once)


def test_resizing_with_the_aspect_kept_is_scikit_images_inside() -> None:
    image = cv2.GaussianBlur(noise(40, 80), (0, 0), 2)
    result = enhancement.resize_keep_aspect(image, size=160)
    assert np.array_equal(result[40:120], enhancement.resize(image, size=[80, 160]))
    larger = transform.resize(image.astype(float), (80, 160), order=1, mode="edge")
    assert np.abs(result[40:120] - larger).max() <= 1
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert np.abs(result[0, 0] - np.median(frame, axis=0)).max() <= 0.5
    square = noise(30, 30)
    assert np.array_equal(enhancement.resize_keep_aspect(square, size=30), square)


def test_the_background_is_the_median_of_the_brightest_tenth_whatever_is_black() -> None:
    image = cv2.GaussianBlur(scene(100), (0, 0), 1)
    luminance = colour.grey(image)
    bright = image[luminance >= np.percentile(luminance, 90)]
    light = colour.background_colour(image)
    assert np.abs(light - np.median(bright, axis=0)).max() <= 1
    framed = np.zeros((1000, 100, 3), np.uint8)
    framed[:100] = image
    assert np.abs(colour.background_colour(framed) - light).max() <= 1


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
