"""The augmentation operations of all five papers, by name.

A registered function draws the parameters of one operation for one image from that image's own
generator (`Draw`) and returns what to do, without touching a pixel: a `Geometric` (where each
output pixel is read from) or a `Photometric` (a batched function and this image's parameters).
`leukoscope.imaging.augmentation` stacks them over a batch and does the pixel work.

Settings are keyword-only. A range is `[low, high]`, drawn uniformly; a plain number means always
that value, except for angles, shifts and hue, where `x` means `[-x, x]`. Lengths are in pixels of
the image augmented (the papers work at 224 x 224); fractions are of the image's own side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import kornia
import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.registry import Registry

Span: TypeAlias = float | Sequence[float]

# Setting `fill` -> padding mode of grid_sample; white and black are zeros of 1 - image and image.
FILLS = {"reflect": "reflection", "edge": "border", "white": "zeros", "black": "zeros"}
# The papers flip at random; every other operation is applied unless its `p` says otherwise.
DEFAULT_P = {"horizontal_flip": 0.5, "vertical_flip": 0.5}


@dataclass(frozen=True)
class Geometric:
    """Where one image's output pixels are read from.

    `matrix` (3, 3) takes homogeneous output coordinates (x, y, 1), pixels from the image's centre,
    to input coordinates. `knots` (2, a, b) are displacements in pixels (x first) added to them,
    splined between the knots of `smoothing(h, sigma)` and `smoothing(w, sigma)`. `fill` is None
    where nothing outside the image can be uncovered.
    """

    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))
    fill: str | None = None
    knots: np.ndarray | None = None
    sigma: float = 1.0


@dataclass(frozen=True)
class Photometric:
    """A function of images (n, 3, h, w) and of parameters (n, ...), and one image's parameters."""

    apply: Callable[..., Tensor]
    parameters: dict[str, np.ndarray | float]


@dataclass(frozen=True)
class Draw:
    """One image's generator and size; draws settings and says what is wrong with them."""

    rng: np.random.Generator
    height: int
    width: int

    def uniform(
        self, name: str, span: Span, low: float, high: float, *, symmetric: bool = False
    ) -> float:
        """A value of the range `span`, which must lie within [low, high]; InputError otherwise."""
        return float(self.rng.uniform(*limits(name, span, low, high, symmetric=symmetric)))


def limits(
    name: str, span: Span, low: float, high: float, *, symmetric: bool = False
) -> tuple[float, float]:
    """The setting `span` (a number or [low, high]) as a pair; InputError outside [low, high]."""
    pair: tuple[Any, ...] = tuple(span) if isinstance(span, Sequence) else (span, span)
    if symmetric and _is_number(span):
        pair = (-abs(pair[0]), abs(pair[0]))
    if len(pair) != 2 or not all(map(_is_number, pair)) or not low <= pair[0] <= pair[1] <= high:
        raise _refusal(name, span, f"a number or [low, high] within [{low:g}, {high:g}]")
    return float(pair[0]), float(pair[1])


def constant(name: str, value: float, low: float, high: float) -> float:
    """The setting `value`, one number; InputError outside [low, high]."""
    if not _is_number(value) or not low <= value <= high:
        raise _refusal(name, value, f"a number within [{low:g}, {high:g}]")
    return float(value)


def _refusal(name: str, got: object, allowed: str) -> InputError:
    return InputError(
        f"Setting {name!r} got {got!r}; allowed: {allowed}",
        fix=f"Correct {name!r} in the augmentation chain.",
        field=name,
    )


def _is_number(value: object) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) < 1e300  # type: ignore[arg-type]  # neither NaN nor infinity


def _filled(fill: str) -> str:
    if not isinstance(fill, str) or fill not in FILLS:
        raise UnknownNameError("fill", str(fill), FILLS)
    return fill


augmentations: Registry[Callable[..., Geometric | Photometric]] = Registry("augmentation")


# Geometric operations


def _affine(a: float, b: float, c: float, d: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return np.array([[a, b, x], [c, d, y], [0.0, 0.0, 1.0]])


@augmentations.register("horizontal_flip")
def horizontal_flip(_draw: Draw) -> Geometric:
    """Left and right exchanged, exactly (`p` is 0.5 unless given)."""
    return Geometric(_affine(-1, 0, 0, 1))


@augmentations.register("vertical_flip")
def vertical_flip(_draw: Draw) -> Geometric:
    """Top and bottom exchanged, exactly (`p` is 0.5 unless given)."""
    return Geometric(_affine(1, 0, 0, -1))


@augmentations.register("reflect")
def reflect(draw: Draw) -> Geometric:
    """Random reflection on both axes: each mirrored or not with equal chance (recipe 5)."""
    x, y = draw.rng.choice([-1.0, 1.0], size=2)
    return Geometric(_affine(x, 0, 0, y))


@augmentations.register("rotate")
def rotate(
    draw: Draw,
    *,
    degrees: Span = (-20.0, 20.0),
    choices: Sequence[float] | None = None,
    fill: str = "reflect",
) -> Geometric:
    """Rotation about the centre, counter-clockwise, by an angle of `degrees` or one of `choices`.

    Multiples of 90 degrees are exact on square images.
    """
    angle = draw.uniform("degrees", degrees, -360, 360, symmetric=True)
    if choices is not None:
        if not isinstance(choices, Sequence) or not choices or not all(map(_is_number, choices)):
            raise _refusal("choices", choices, "a list of angles in degrees")
        angle = float(draw.rng.choice(np.asarray(choices, dtype=float)))
    # Rounding makes the sines and cosines of right angles exact.
    cos, sin = (round(f(math.radians(angle)), 12) for f in (math.cos, math.sin))
    return Geometric(_affine(cos, -sin, sin, cos), _filled(fill))


@augmentations.register("translate")
def translate(draw: Draw, *, fraction: Span = 0.1, fill: str = "reflect") -> Geometric:
    """Shift along each axis by a `fraction` of that side, drawn for each axis on its own."""
    x, y = (draw.uniform("fraction", fraction, -1, 1, symmetric=True) for _ in range(2))
    return Geometric(_affine(1, 0, 0, 1, -x * draw.width, -y * draw.height), _filled(fill))


@augmentations.register("scale")
def scale(
    draw: Draw, *, factor: Span = (0.9, 1.1), joint: bool = True, fill: str = "reflect"
) -> Geometric:
    """Zoom about the centre: above 1 enlarges; `joint` takes the same factor for both axes."""
    if not isinstance(joint, bool):
        raise _refusal("joint", joint, "true or false")
    x = draw.uniform("factor", factor, 0.1, 10)
    y = x if joint else draw.uniform("factor", factor, 0.1, 10)
    return Geometric(_affine(1 / x, 0, 0, 1 / y), _filled(fill))


@augmentations.register("pad")
def pad(draw: Draw, *, fraction: Span = (0.0, 0.1), fill: str = "reflect") -> Geometric:
    """A border of `fraction` of the side on every side, then resized back to the image's size."""
    border = draw.uniform("fraction", fraction, 0, 2)
    return Geometric(_affine(1 + 2 * border, 0, 0, 1 + 2 * border), _filled(fill))


def _crop(draw: Draw, width: float, height: float) -> Geometric:
    """A box of that share of each side, anywhere inside, resized back to the image's size."""
    x = draw.rng.uniform(-0.5, 0.5) * (1 - width) * draw.width
    y = draw.rng.uniform(-0.5, 0.5) * (1 - height) * draw.height
    return Geometric(_affine(width, 0, 0, height, x, y))


@augmentations.register("random_crop")
def random_crop(draw: Draw, *, fraction: Span = (0.8, 1.0)) -> Geometric:
    """A crop of `fraction` of each side (the same for both), resized back."""
    side = draw.uniform("fraction", fraction, 0.05, 1)
    return _crop(draw, side, side)


@augmentations.register("random_resized_crop")
def random_resized_crop(
    draw: Draw, *, scale: Span = (0.8, 1.0), ratio: Span = (3 / 4, 4 / 3)
) -> Geometric:
    """A crop of `scale` of the area and of aspect `ratio` (width / height), resized back.

    The box of Szegedy et al. 2015 as torchvision draws it: up to ten tries to fit one inside, then
    the whole image.
    """
    area_limits = limits("scale", scale, 0.01, 1)
    low, high = limits("ratio", ratio, 0.1, 10)
    for _ in range(10):
        area = draw.rng.uniform(*area_limits)
        aspect = math.exp(draw.rng.uniform(math.log(low), math.log(high)))
        shape = aspect * draw.height / draw.width
        width, height = math.sqrt(area * shape), math.sqrt(area / shape)
        if width <= 1 and height <= 1:
            return _crop(draw, width, height)
    return Geometric()


@augmentations.register("elastic")
def elastic(
    draw: Draw, *, alpha: Span = 30.0, sigma: float = 5.0, fill: str = "reflect"
) -> Geometric:
    """Elastic deformation: displacements of `alpha` times uniform noise in [-1, 1] smoothed by a
    Gaussian of `sigma` pixels (Simard et al. 2003).

    30 and 5 displace by about one pixel (standard deviation).
    """
    strength = draw.uniform("alpha", alpha, 0, 1e4)
    sigma = constant("sigma", sigma, 0.5, 1e3)  # no range: the knots depend on it
    noise = torch.from_numpy(draw.rng.random((2, draw.height, draw.width), dtype=np.float32))
    smooth_y, smooth_x = (smoothing(side, sigma)[0] for side in (draw.height, draw.width))
    # Smoothing keeps constants, so [0, 1) may become [-1, 1) after it.
    knots = strength * (2 * (smooth_y @ (noise @ smooth_x.T)) - 1)
    return Geometric(fill=_filled(fill), knots=knots.numpy(), sigma=sigma)


@lru_cache(maxsize=16)
def smoothing(length: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Matrices (knots, length), a Gaussian evaluated at the knots, and (length, knots), the cubic
    spline through them, float32.

    Knots lie 0.6 `sigma` apart: with alpha 30 and sigma 5 the displacements are within 0.02 pixels
    (0.007 away from the border) of those smoothed at every pixel.
    """
    knots = np.unique(np.append(np.arange(0, length, max(1, int(0.6 * sigma))), length - 1))
    gaussian = gaussian_filter1d(np.eye(length), sigma, axis=0)[knots]
    spline = CubicSpline(knots, np.eye(len(knots)))(np.arange(length))
    spline[abs(spline) < 1e-9] = 0  # far knots: no denormal numbers, which are slow to multiply
    return torch.from_numpy(gaussian).float(), torch.from_numpy(spline).float()


# Photometric operations


def _each(values: Tensor) -> Tensor:
    """One value an image (n,) so that it broadcasts over (n, 3, h, w)."""
    return values[:, None, None, None]


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`other` at factor 0, `images` at 1, beyond that away from `other`."""
    return torch.lerp(other.expand_as(images), images, _each(factor))


def _change_brightness(images: Tensor, *, factor: Tensor) -> Tensor:
    return images * _each(factor)


def _change_contrast(images: Tensor, *, factor: Tensor) -> Tensor:
    mean = kornia.color.rgb_to_grayscale(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, mean, factor)


def _change_saturation(images: Tensor, *, factor: Tensor) -> Tensor:
    return _blend(images, kornia.color.rgb_to_grayscale(images), factor)


def _change_hue(images: Tensor, *, shift: Tensor) -> Tensor:
    # HSV in closed form: about ten times as fast as converting there and back.
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    red, green, blue = images.unbind(1)
    divisor = chroma.clamp(min=1e-8)
    sixths = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, sixths) + 6 * shift[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = sixths + offset
        k -= 6 * (k / 6).floor_()  # the remainder, but vectorised
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def _jitter(
    images: Tensor, *, brightness: Tensor, contrast: Tensor, saturation: Tensor, shift: Tensor
) -> Tensor:
    images = _change_brightness(images, factor=brightness).clamp_(0, 1)
    images = _change_contrast(images, factor=contrast).clamp_(0, 1)
    images = _change_saturation(images, factor=saturation).clamp_(0, 1)
    return _change_hue(images, shift=shift)


def _multiply_channels(images: Tensor, *, gain: Tensor) -> Tensor:
    return images * gain[:, :, None, None]


def _sharpen(images: Tensor, *, kernel: Tensor) -> Tensor:
    # Border pixels stay, as in Pillow.
    height = images.shape[2] - 2
    rows = [_weighted(images.narrow(2, row, height), kernel[:, row], 3) for row in range(3)]
    result = images.clone()
    result[..., 1:-1, 1:-1] = rows[0].add_(rows[1]).add_(rows[2])
    return result


def _blur(images: Tensor, *, kernel: Tensor) -> Tensor:
    radius = kernel.shape[1] // 2
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return _weighted(_weighted(padded, kernel, 3), kernel, 2)


def _weighted(images: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Correlation along one dimension with a kernel (n, k) an image, k - 1 shorter there.

    A sum of shifted images: on a CPU several times as fast as a convolution in groups.
    """
    length = images.shape[dim] - kernel.shape[1] + 1
    total = images.narrow(dim, 0, length) * _each(kernel[:, 0])
    for place in range(1, kernel.shape[1]):
        total.addcmul_(images.narrow(dim, place, length), _each(kernel[:, place]))
    return total


def _add(images: Tensor, *, noise: Tensor, sigma: Tensor) -> Tensor:
    return torch.addcmul(images, noise, _each(sigma))


@augmentations.register("brightness")
def brightness(draw: Draw, *, factor: Span = (0.8, 1.2)) -> Photometric:
    """Every value times `factor`."""
    return Photometric(_change_brightness, {"factor": draw.uniform("factor", factor, 0, 10)})


@augmentations.register("contrast")
def contrast(draw: Draw, *, factor: Span = (0.8, 1.2)) -> Photometric:
    """Distance of every value from the image's mean luma times `factor`."""
    return Photometric(_change_contrast, {"factor": draw.uniform("factor", factor, 0, 10)})


@augmentations.register("saturation")
def saturation(draw: Draw, *, factor: Span = (0.8, 1.2)) -> Photometric:
    """Distance of every pixel from its own luma times `factor`; 0 gives grey."""
    return Photometric(_change_saturation, {"factor": draw.uniform("factor", factor, 0, 10)})


@augmentations.register("hue")
def hue(draw: Draw, *, shift: Span = 0.05) -> Photometric:
    """Hue (HSV) turned by `shift`, in turns: 0.5 gives the complementary colour."""
    return Photometric(
        _change_hue, {"shift": draw.uniform("shift", shift, -0.5, 0.5, symmetric=True)}
    )


@augmentations.register("colour_jitter")
def colour_jitter(
    draw: Draw,
    *,
    brightness: Span = (0.8, 1.2),
    contrast: Span = (0.8, 1.2),
    saturation: Span = (0.8, 1.2),
    hue: Span = 0.05,
) -> Photometric:
    """Brightness, contrast, saturation and hue, in this order (recipe 1)."""
    return Photometric(
        _jitter,
        {
            "brightness": draw.uniform("brightness", brightness, 0, 10),
            "contrast": draw.uniform("contrast", contrast, 0, 10),
            "saturation": draw.uniform("saturation", saturation, 0, 10),
            "shift": draw.uniform("hue", hue, -0.5, 0.5, symmetric=True),
        },
    )


@augmentations.register("channel_gain")
def channel_gain(draw: Draw, *, gain: Span = (0.9, 1.1)) -> Photometric:
    """Red, green and blue each times a `gain` of its own (recipe 4: 10 % either way)."""
    values = [draw.uniform("gain", gain, 0, 10) for _ in range(3)]
    return Photometric(_multiply_channels, {"gain": np.array(values)})


@augmentations.register("sharpness")
def sharpness(draw: Draw, *, factor: Span = 1.5) -> Photometric:
    """Distance from the smoothed image times `factor`: Pillow's ImageEnhance.Sharpness, whose
    smoothing is (1 1 1, 1 5 1, 1 1 1) / 13.
    """
    amount = draw.uniform("factor", factor, 0, 10)
    kernel = (1 - amount) / 13 * np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]])
    kernel[1, 1] += amount
    return Photometric(_sharpen, {"kernel": kernel})


@augmentations.register("gaussian_blur")
def gaussian_blur(draw: Draw, *, sigma: Span = (0.5, 1.5)) -> Photometric:
    """Gaussian blur of standard deviation `sigma` pixels, cut off at four times the largest."""
    low, high = limits("sigma", sigma, 0.01, 50)
    # The radius comes from the setting, not from the draw, so that all kernels stack.
    radius = max(1, round(4 * high))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / draw.rng.uniform(low, high)) ** 2)
    return Photometric(_blur, {"kernel": kernel / kernel.sum()})


# Quantiles of the standard normal distribution: one 16-bit draw looked up here costs a third of
# `standard_normal`, and its steps lie far below what 8-bit images hold.
_NORMAL = torch.special.ndtri((torch.arange(65536, dtype=torch.float64) + 0.5) / 65536)
_NORMAL = _NORMAL.float().numpy()


@augmentations.register("gaussian_noise")
def gaussian_noise(draw: Draw, *, sigma: Span = (0.01, 0.05)) -> Photometric:
    """Independent Gaussian noise of standard deviation `sigma` on every value (scale [0, 1])."""
    level = draw.uniform("sigma", sigma, 0, 1)
    drawn = draw.rng.integers(65536, size=(3, draw.height, draw.width), dtype=np.uint16)
    return Photometric(_add, {"noise": _NORMAL.take(drawn), "sigma": level})
