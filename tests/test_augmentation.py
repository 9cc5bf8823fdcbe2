"""Augmentation: contract of the registry, and each operation against a reference."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.imaging import augmentation_ops as ops
from leukoscope.imaging.augmentation import (
    augment,
    augment_masks,
    augmentations,
    check,
    view_generator,
)
from leukoscope.registry import keyword_parameters

SEED = 7
ALL = list(augmentations)
# Recipe 4's chain: geometric and photometric, with and without chance.
MIXED = [
    {"operation": "horizontal_flip"},
    {"operation": "rotate", "choices": [15, 30, 45, 90], "p": 0.5},
    {"operation": "contrast", "p": 0.5},
    {"operation": "random_crop"},
    {"operation": "elastic", "p": 0.5},
    {"operation": "scale", "joint": False},
    {"operation": "gaussian_blur"},
    {"operation": "gaussian_noise", "p": 0.5},
]


def smooth_images(n: int = 6, height: int = 48, width: int = 48) -> torch.Tensor:
    """Synthetic smooth images (n, 3, h, w) between .2 and .8."""
    noise = np.random.default_rng(SEED).random((n, 3, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3), mode="wrap")
    low, high = smooth.min(), smooth.max()
    return torch.from_numpy(0.2 + 0.6 * (smooth - low) / (high - low)).float()


def views(images: torch.Tensor, chain: list[dict[str, Any]], view: int = 0) -> torch.Tensor:
    generators = [view_generator(SEED, f"image-{i}", view) for i in range(len(images))]
    return augment(images, generators, chain)


def one(image: torch.Tensor, operation: str, **settings: Any) -> np.ndarray:
    """The operation on one image, as (h, w, 3) float64."""
    chain = [{"operation": operation, "p": 1, **settings}]
    result = augment(image[None], [view_generator(SEED, "image-0", 0)], chain)[0]
    return result.permute(1, 2, 0).double().numpy()


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


def as_picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((as_array(image) * 255).round().astype(np.uint8))


def sampled(image: torch.Tensor, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    """SciPy's bilinear values of (h, w, 3) at positions in pixels."""
    planes = [
        ndimage.map_coordinates(plane, (rows, columns), order=1, mode=mode)
        for plane in image.double().numpy()
    ]
    return np.stack(planes, axis=-1)


# The contract, over the whole registry


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(48, 48), (40, 57), (9, 8)])
def test_keeps_shape_range_and_input(name: str, size: tuple[int, int]) -> None:
    images = smooth_images(5, *size)
    images[0], images[1] = 0, 1
    before = images.clone()
    result = views(images, [{"operation": name, "p": 1}])
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ALL)
def test_same_generator_same_view(name: str) -> None:
    images, chain = smooth_images(), [{"operation": name, "p": 1}]
    assert torch.equal(views(images, chain), views(images, chain))


@pytest.mark.parametrize("chain", [[{"operation": n, "p": 0.5}] for n in ALL] + [MIXED], ids=str)
def test_does_not_depend_on_the_batch(chain: list[dict[str, Any]]) -> None:
    images = smooth_images(11)
    together = views(images, chain)
    for i in (0, 3, 9, 10):
        generator = view_generator(SEED, f"image-{i}", 0)
        alone = augment(images[i : i + 1], [generator], chain)[0]
        torch.testing.assert_close(alone, together[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_images_and_views_differ(name: str) -> None:
    same = smooth_images(1).expand(8, -1, -1, -1)
    results = [views(same, [{"operation": name}], view) for view in range(3)]
    different = {tuple(image.flatten().tolist()) for result in results for image in result}
    fixed = {"horizontal_flip": 2, "vertical_flip": 2, "reflect": 4, "sharpness": 1}
    assert len(different) == fixed.get(name, 24)


@pytest.mark.parametrize("name", ALL)
def test_probability_zero_is_identity(name: str) -> None:
    images = smooth_images()
    assert torch.equal(views(images, [{"operation": name, "p": 0}]), images)


@pytest.mark.parametrize("name", ALL)
def test_settings_are_documented_keywords_with_defaults(name: str) -> None:
    assert augmentations[name].__doc__
    parameters = keyword_parameters(augmentations[name]).values()
    assert all(p.default is not p.empty for p in parameters)


def test_probability_is_kept() -> None:
    images = smooth_images(1, 8, 8).expand(2000, -1, -1, -1)
    flipped = (views(images, [{"operation": "horizontal_flip"}]) != images).any(dim=(1, 2, 3))
    assert 0.46 < flipped.float().mean() < 0.54


def test_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    views(smooth_images(), [{"operation": name, "p": 1} for name in ALL])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_empty_chain_and_empty_batch() -> None:
    images = smooth_images()
    assert torch.equal(views(images, []), images)
    assert views(images[:0], MIXED).shape == (0, 3, 48, 48)


def test_autocast_changes_nothing() -> None:
    images = smooth_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = views(images, MIXED)
    assert torch.equal(inside, views(images, MIXED))


def test_view_generator_depends_on_each_of_its_arguments() -> None:
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({view_generator(*key).random() for key in keys}) == 4
    # Golden: cached views stay valid across releases.
    assert view_generator(0, "a", 0).random() == 0.03799148607615499


# What can't work is said before any image is read


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"operation": "rotatee"}, "'rotate'"),
        ({"operation": "rotate", "degree": 3}, "'degrees'"),
        ({"operation": "rotate", "choices": []}, "choices"),
        ({"operation": "rotate", "choices": ["a"]}, "choices"),
        ({"operation": "rotate", "fill": "reflct"}, "'reflect'"),
        ({"operation": "rotate", "fill": ["white"]}, "fill"),
        ({"operation": "rotate", "degrees": 10**400}, "degrees"),
        ({"operation": "scale", "joint": "no"}, "joint"),
        ({"operation": "contrast", "factor": [1.2, 0.8]}, "[0, 10]"),
        ({"operation": "contrast", "factor": "much"}, "'much'"),
        ({"operation": "contrast", "factor": [0.8, 1, 1.2]}, "factor"),
        ({"operation": "gaussian_noise", "sigma": -0.1}, "sigma"),
        ({"operation": "gaussian_noise", "sigma": float("nan")}, "sigma"),
        ({"operation": "gaussian_blur", "sigma": 0}, "sigma"),
        ({"operation": "elastic", "sigma": [4, 5]}, "sigma"),
        ({"operation": "random_crop", "fraction": 1.5}, "fraction"),
        ({"operation": "contrast", "p": 1.5}, "'p'"),
        ({"operation": "contrast", "p": "half"}, "'p'"),
        ({"operation": "contrast", "p": [0, 1]}, "'p'"),
        ({"p": 1}, "operation"),
        ("rotate", "operation"),
    ],
)
def test_wrong_chains_are_refused(entry: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        check([{"operation": "contrast"}, entry])
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_chain_is_a_list() -> None:
    with pytest.raises(InputError, match="list of tables"):
        check({"operation": "rotate"})  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError):
        check([{"operation": "mixup"}])


def test_wrong_arrays_are_refused() -> None:
    images = smooth_images(2)
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        augment(images, [np.random.default_rng(0)], [])
    with pytest.raises(ValueError, match="float32"):
        augment(images.double(), [np.random.default_rng(0)] * 2, [])


# Geometric operations against NumPy and SciPy


def test_flips_and_quarter_turns_are_exact() -> None:
    image = torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(0))
    array = as_array(image)
    assert np.array_equal(one(image, "horizontal_flip"), array[:, ::-1])
    assert np.array_equal(one(image, "vertical_flip"), array[::-1])
    for angle, turns in ((90, 1), (180, 2), (270, 3), (-90, 3), (360, 0)):
        assert np.array_equal(one(image, "rotate", choices=[angle]), np.rot90(array, turns))
    chain = [{"operation": "rotate", "choices": [90]}, {"operation": "horizontal_flip", "p": 1}]
    both = augment(image[None], [np.random.default_rng(0)], chain)[0]
    assert np.array_equal(as_array(both), np.rot90(array)[:, ::-1])
    chain.reverse()
    both = augment(image[None], [np.random.default_rng(0)], chain)[0]
    assert np.array_equal(as_array(both), np.rot90(array[:, ::-1]))


def test_golden_pixels() -> None:
    image = torch.arange(12, dtype=torch.float32).reshape(3, 2, 2) / 16
    chain = [{"operation": "rotate", "choices": [90]}]
    turned = augment(image[None], [np.random.default_rng(0)], chain)[0, 0]
    assert (turned * 16).tolist() == [[1, 3], [0, 2]]


# Mean and three values of each operation's view of one synthetic image of 12 x 16 pixels.
GOLDENS: dict[str, list[float]] = {
    "brightness": [0.641, 0.523, 0.637, 0.796],
    "channel_gain": [0.559, 0.485, 0.497, 0.708],
    "colour_jitter": [0.637, 0.559, 0.626, 0.76],
    "contrast": [0.555, 0.437, 0.551, 0.71],
    "elastic": [0.556, 0.435, 0.457, 0.636],
    "gaussian_blur": [0.548, 0.469, 0.532, 0.669],
    "gaussian_noise": [0.548, 0.476, 0.501, 0.695],
    "horizontal_flip": [0.549, 0.622, 0.309, 0.675],
    "hue": [0.554, 0.527, 0.534, 0.676],
    "pad": [0.53, 0.493, 0.465, 0.685],
    "random_crop": [0.551, 0.444, 0.559, 0.679],
    "random_resized_crop": [0.557, 0.445, 0.575, 0.681],
    "reflect": [0.549, 0.622, 0.309, 0.675],
    "rotate": [0.554, 0.512, 0.592, 0.677],
    "saturation": [0.555, 0.456, 0.545, 0.683],
    "scale": [0.56, 0.436, 0.573, 0.68],
    "sharpness": [0.549, 0.445, 0.547, 0.683],
    "translate": [0.545, 0.418, 0.602, 0.629],
    "vertical_flip": [0.549, 0.617, 0.429, 0.646],
}


@pytest.mark.parametrize("name", ALL)
def test_goldens(name: str) -> None:
    view = one(smooth_images(1, 12, 16)[0], name)
    found = [view.mean(), view[2, 3, 0], view[9, 12, 1], view[5, 8, 2]]
    assert found == pytest.approx(GOLDENS[name], abs=2e-3)


def test_random_reflection_is_one_of_four_exact_ones_equally_often() -> None:
    images = smooth_images(1, 8, 10).expand(400, -1, -1, -1)
    array = as_array(images[0])
    wanted = [array, array[::-1], array[:, ::-1], array[::-1, ::-1]]
    found = [as_array(view) for view in views(images, [{"operation": "reflect"}])]
    counts = [sum(np.array_equal(view, one_of) for view in found) for one_of in wanted]
    assert sum(counts) == 400 and min(counts) > 70


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: batches on a device not checked")
def test_views_are_made_on_the_images_device() -> None:
    images = smooth_images()
    on_device = views(images.cuda(), MIXED)
    assert on_device.is_cuda
    torch.testing.assert_close(on_device.cpu(), views(images, MIXED), atol=1e-3, rtol=0)


FILL_MODES = {"reflect": "reflect", "edge": "nearest", "black": "grid-constant"}


@pytest.mark.parametrize(("fill", "mode"), FILL_MODES.items())
@pytest.mark.parametrize("angle", [15, 30, 45])
@pytest.mark.parametrize("size", [(48, 48), (40, 57)])
def test_rotation_is_scipys(fill: str, mode: str, angle: int, size: tuple[int, int]) -> None:
    image = smooth_images(1, *size)[0]
    expected = ndimage.rotate(as_array(image), angle, reshape=False, order=1, mode=mode)
    np.testing.assert_allclose(
        one(image, "rotate", choices=[angle], fill=fill), expected, atol=1e-4
    )


def test_white_fill_is_black_of_the_negative() -> None:
    image = smooth_images(1)[0]
    white = one(image, "rotate", choices=[45], fill="white")
    black = one(1 - image, "rotate", choices=[45], fill="black")
    np.testing.assert_allclose(white, 1 - black, atol=1e-6)
    assert white[0, 0] == pytest.approx(1)


def drawn(operation: str, height: int, width: int, **settings: Any) -> ops.Geometric:
    """The parameters that `one` draws."""
    rng = view_generator(SEED, "image-0", 0)
    rng.random()  # whether to apply it
    found = augmentations[operation](ops.Draw(rng, height, width), **settings)
    assert isinstance(found, ops.Geometric)
    return found


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("translate", {"fraction": 0.2}),
        ("scale", {"factor": [0.7, 1.4], "joint": False}),
        ("pad", {"fraction": [0.1, 0.3]}),
        ("random_crop", {}),
        ("random_resized_crop", {"scale": [0.3, 1.0]}),
    ],
)
def test_other_affine_operations_are_scipys(name: str, settings: dict[str, Any]) -> None:
    image = smooth_images(1, 40, 57)[0]
    matrix = drawn(name, 40, 57, **settings).matrix
    rows, columns = np.mgrid[:40, :57]
    x, y, _ = np.einsum("ij,jhw->ihw", matrix, [columns - 28, rows - 19.5, np.ones((40, 57))])
    expected = sampled(image, y + 19.5, x + 28, "reflect")
    np.testing.assert_allclose(one(image, name, **settings), expected, atol=1e-4)


def test_drawn_geometry_is_what_the_settings_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        draw = ops.Draw(rng, 40, 60)
        rotation = ops.rotate(draw, degrees=20).matrix
        assert abs(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]))) <= 20
        shift = ops.translate(draw, fraction=0.1).matrix
        assert abs(shift[0, 2]) <= 6
        assert abs(shift[1, 2]) <= 4
        joint = ops.scale(draw, factor=(0.9, 1.1)).matrix
        assert joint[0, 0] == joint[1, 1]
        assert 0.9 <= 1 / joint[0, 0] <= 1.1
        crop = ops.random_crop(draw).matrix
        assert crop[0, 0] == crop[1, 1]
        assert 0.8 <= crop[0, 0] <= 1
        box = ops.random_resized_crop(draw, scale=(0.3, 0.9), ratio=(0.75, 1.25)).matrix
        assert 0.3 <= box[0, 0] * box[1, 1] <= 0.9 + 1e-9
        assert 0.75 - 1e-9 <= box[0, 0] * 60 / (box[1, 1] * 40) <= 1.25 + 1e-9
        for found in (crop, box):  # inside the image
            assert abs(found[0, 2]) <= 30 * (1 - found[0, 0]) + 1e-9
            assert abs(found[1, 2]) <= 20 * (1 - found[1, 1]) + 1e-9
        assert ops.pad(draw, fraction=0.25).matrix[0, 0] == 1.5


@pytest.mark.parametrize("sigma", [1.0, 3.0, 5.0])
def test_elastic_is_simards(sigma: float) -> None:
    height, width, alpha = 96, 120, 30.0
    image = smooth_images(1, height, width)[0]
    rng = view_generator(SEED, "image-0", 0)
    rng.random(2)  # whether to apply it, and alpha
    noise = 2 * rng.random((2, height, width), dtype=np.float32) - 1
    shift = alpha * ndimage.gaussian_filter(noise.astype(float), (0, sigma, sigma))
    knots = drawn("elastic", height, width, alpha=alpha, sigma=sigma).knots
    assert knots is not None
    spline_y, spline_x = (ops.smoothing(side, sigma)[1].numpy() for side in (height, width))
    np.testing.assert_allclose(spline_y @ knots @ spline_x.T, shift, atol=0.025)  # pixels
    rows, columns = np.mgrid[:height, :width]
    expected = sampled(image, rows + shift[1], columns + shift[0], "reflect")
    result = one(image, "elastic", alpha=alpha, sigma=sigma)
    np.testing.assert_allclose(result, expected, atol=2e-3)


def test_geometric_operations_are_composed_in_order() -> None:
    """One interpolation gives what the operations give one by one, up to their softening."""
    image = smooth_images(1, 96, 96)[0]
    names: list[dict[str, Any]] = [
        {"operation": "rotate", "choices": [30]},
        {"operation": "elastic"},
        {"operation": "translate", "fraction": [0.1, 0.1]},
        {"operation": "horizontal_flip", "p": 1},
        {"operation": "random_crop", "fraction": 0.8},
    ]
    at_once = augment(image[None], [np.random.default_rng(1)], names)
    one_by_one, rng = image[None], np.random.default_rng(1)
    for entry in names:
        one_by_one = augment(one_by_one, [rng], [entry])
    inside = (at_once - one_by_one)[..., 24:72, 24:72].abs()
    assert inside.max() < 0.02
    # A different fill ends a run; the order is kept all the same.
    names[2]["fill"] = "black"
    split = augment(image[None], [np.random.default_rng(1)], names)
    assert (at_once - split)[..., 24:72, 24:72].abs().max() < 0.02


# Masks move with their images

GEOMETRIC = [
    name
    for name in ALL
    if isinstance(
        augmentations[name](ops.Draw(np.random.default_rng(0), 8, 8)),
        ops.Geometric,
    )
]


def discs(n: int = 6, height: int = 64, width: int = 80) -> torch.Tensor:
    """Drawn discs (n, 1, h, w), 1 inside, soft edges, away from the border."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    away = torch.hypot(x - 0.45 * width, y - 0.55 * height)
    return (0.16 * height - away + 0.5).clamp(0, 1).expand(n, 1, -1, -1).contiguous()


def moved(
    masks: torch.Tensor, images: torch.Tensor, chain: list[dict[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (n, h, w) and images (n, 3, h, w) under the same draws."""
    rngs = [[view_generator(SEED, f"image-{i}", 0) for i in range(len(masks))] for _ in range(2)]
    return augment_masks(masks, rngs[0], chain)[:, 0], augment(images, rngs[1], chain)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_mask_goes_where_its_image_goes(name: str) -> None:
    masks = discs()
    filled = "fill" in keyword_parameters(augmentations[name])
    settings = {"fill": "black"} if filled else {}
    chain = [{"operation": name, "p": 0.7, **settings}]
    mask, image = moved(masks, masks.expand(-1, 3, -1, -1).contiguous(), chain)
    # A black image with a white disc is its own mask.
    torch.testing.assert_close(mask.unsqueeze(1).expand_as(image), image, atol=1e-6, rtol=0)
    assert name == "elastic" or not torch.equal(mask, masks[:, 0])


@pytest.mark.parametrize("order", [1, -1])
def test_a_mask_goes_where_its_image_goes_through_all_operations(order: int) -> None:
    """Photometric operations draw, too: were the streams to differ, discs would lie apart."""
    masks = discs()
    images = (0.9 - 0.6 * masks).expand(-1, 3, -1, -1).contiguous()
    mild: dict[str, dict[str, Any]] = {
        "scale": {"factor": [0.8, 1.1]},
        "random_resized_crop": {"scale": [0.8, 1.0], "ratio": [0.9, 1.1]},
        "elastic": {"alpha": 60.0},
    }
    chain = [{"operation": name, "p": 0.8, **mild.get(name, {})} for name in ALL][::order]
    mask, image = moved(masks, images, chain)
    assert mask.shape == (6, 64, 80) and 0 <= mask.min() <= mask.max() <= 1
    for seen, changed in zip(mask, image.mean(1), strict=True):
        dark = changed < (changed.median() + changed.min()) / 2
        inside = seen > 0.5
        assert (dark & inside).sum() / (dark | inside).sum() > 0.85
    untouched, _ = moved(masks, images, [{"operation": "gaussian_noise"}, {"operation": "hue"}])
    assert torch.equal(untouched, masks[:, 0])


def test_a_mask_is_not_continued_beyond_the_border() -> None:
    masks = discs(1)
    chain = [{"operation": "translate", "fraction": [0.4, 0.4], "fill": "reflect"}]
    mask, _ = moved(masks, masks.expand(-1, 3, -1, -1).contiguous(), chain)
    assert 0 < mask.sum() < 0.95 * masks.sum()
    with pytest.raises(ValueError, match="1, h, w"):
        augment_masks(masks.expand(-1, 3, -1, -1), [np.random.default_rng(0)], [])


# Photometric operations against Pillow, colorsys and SciPy


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8, 1.2, 1.5])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancement_is_pillows(name: str, reference: Any, factor: float) -> None:
    picture = as_picture(smooth_images(1)[0])
    image = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
    expected = np.asarray(reference(picture).enhance(factor)) / 255
    # Pillow rounds its grey or smoothed image and its result: two levels at most.
    np.testing.assert_allclose(one(image, name, factor=factor), expected, atol=2.01 / 255)


@pytest.mark.parametrize("shift", [-0.3, 0.05, 0.5])
def test_hue_is_colorsyss(shift: float) -> None:
    image = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    image[:, 0] = 0.4  # grey stays grey
    image[:, 1] = torch.tensor([0.9, 0.9, 0.1])[:, None]  # ties
    expected = np.empty((12, 12, 3))
    for row, column in np.ndindex(12, 12):
        h, s, v = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
        expected[row, column] = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
    np.testing.assert_allclose(one(image, "hue", shift=[shift, shift]), expected, atol=1e-5)


def test_colour_jitter_is_its_parts_in_order() -> None:
    image = smooth_images(1)[0]
    parts = {"brightness": 1.1, "contrast": 0.8, "saturation": 1.3, "hue": [0.04, 0.04]}
    chain: list[dict[str, Any]] = [
        {"operation": name, "shift" if name == "hue" else "factor": value}
        for name, value in parts.items()
    ]
    expected = augment(image[None], [np.random.default_rng(0)], chain)[0]
    np.testing.assert_allclose(one(image, "colour_jitter", **parts), as_array(expected), atol=1e-6)


def test_channel_gain_multiplies_each_channel() -> None:
    image = smooth_images(1)[0]
    ratio = one(image, "channel_gain") / as_array(image)
    assert np.ptp(ratio, axis=(0, 1)).max() < 1e-5
    gains = ratio[0, 0]
    assert len(set(gains.round(4))) == 3
    assert (abs(gains - 1) <= 0.1).all()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_blur_is_scipys(sigma: float) -> None:
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(as_array(image), (sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(one(image, "gaussian_blur", sigma=sigma), expected, atol=1e-5)


def test_noise_is_standard_normal_times_sigma() -> None:
    image = torch.full((3, 100, 100), 0.5)
    noise = (one(image, "gaussian_noise", sigma=0.05) - 0.5) / 0.05
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert abs(noise).max() > 3.5
    assert ((noise**4).mean() - 3) == pytest.approx(0, abs=0.15)
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.02


# Real cells


@pytest.mark.real
def test_real_cells_keep_their_background(pbc: Path) -> None:
    """Reflection leaves no dark or white corner that would tell which views were rotated."""
    files = sorted((pbc / "lymphocyte").iterdir())[:8]
    pictures = [np.asarray(Image.open(f).convert("RGB").resize((224, 224))) for f in files]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    result = views(images, MIXED)
    darkest = images.amin(dim=(1, 2, 3)) - 0.3
    assert (result[..., :12, :12].mean(dim=(1, 2, 3)) > darkest.clamp(min=0.3)).all()
    assert (result.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))).abs().max() < 0.1
