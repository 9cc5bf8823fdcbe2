"""Disturbed images of five strengths: what a worse microscope, camera, file or stain does.

Every corruption is one decorated function that takes a uint8 RGB image (H, W, 3), the value of its
severity and a generator, and gives an image of the same shape and type; its input stays untouched.
The five values of each are stated where it is registered, in a physical unit, so that curves can
be read by it. They span what is met in practice (1) to what a person would send back (5).

| corruption | unit | 1 | 2 | 3 | 4 | 5 |
| --- | --- | --- | --- | --- | --- | --- |
| blur | sigma in % of the shorter side | 0.25 | 0.5 | 1 | 2 | 4 |
| noise | standard deviation in grey levels of 255 | 4 | 8 | 16 | 32 | 64 |
| jpeg | quality | 70 | 40 | 20 | 10 | 5 |
| darker | factor of the light | 0.9 | 0.8 | 0.65 | 0.5 | 0.35 |
| brighter | factor of the light | 1.05 | 1.1 | 1.2 | 1.35 | 1.5 |
| contrast | factor of the contrast | 0.85 | 0.7 | 0.55 | 0.4 | 0.25 |
| hue | degrees of hue, either way | 5 | 10 | 20 | 30 | 45 |
| haematoxylin | gain of the blue stain, or 1 / gain | 1.1 | 1.25 | 1.5 | 1.75 | 2 |
| eosin | gain of the red stain, or 1 / gain | 1.1 | 1.25 | 1.5 | 1.75 | 2 |
| resolution | size of a pixel, times the original | 1.5 | 2 | 3 | 4 | 8 |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from leukoscope.errors import InputError
from leukoscope.imaging.colour import background_colour, grey, optical_density
from leukoscope.imaging.pipeline import require_rgb
from leukoscope.registry import Registry

Corrupt = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

corruptions: Registry[Corrupt] = Registry("corruption")
SEVERITIES = 5


@dataclass(frozen=True)
class Scale:
    """What the severities 1 to 5 of a corruption mean: a value each, and their unit."""

    values: tuple[float, ...]
    unit: str


SCALES: dict[str, Scale] = {}


def corruption(name: str, values: tuple[float, ...], unit: str) -> Callable[[Corrupt], Corrupt]:
    """Decorator: register a corruption with the values of its severities and their unit."""
    if len(values) != SEVERITIES:
        raise ValueError(f"corruption {name!r} has {len(values)} severities, not {SEVERITIES}")

    def add(function: Corrupt) -> Corrupt:
        SCALES[name] = Scale(values, unit)
        return corruptions.register(name)(function)

    return add


def corrupt(
    image: np.ndarray, name: str, severity: int, generator: np.random.Generator
) -> np.ndarray:
    """The image (uint8 RGB, (H, W, 3)) under a registered corruption; severity 0 changes nothing.

    The same generator state gives the same image; one state for all severities also keeps the
    direction of those that go either way. Raises UnknownNameError and InputError.
    """
    require_rgb(image)
    function = corruptions[name]
    if severity not in range(SEVERITIES + 1):
        raise InputError(
            f"Got severity {severity!r}; allowed: 0 to {SEVERITIES}",
            fix=f"Choose a whole number up to {SEVERITIES}.",
            field="severity",
        )
    if severity == 0:
        return image.copy()
    return function(image, SCALES[name].values[severity - 1], generator)


def _stored(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _scaled(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Every channel through one table of 256 levels."""
    return cv2.LUT(image, _stored(levels))


@corruption("blur", (0.25, 0.5, 1.0, 2.0, 4.0), "sigma, % of the shorter side")
def blur(image: np.ndarray, value: float, _generator: np.random.Generator) -> np.ndarray:
    """Gaussian blur, as out of focus; relative, since an image shows a cell whatever its size."""
    sigma = value / 100 * min(image.shape[:2])
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


@corruption("noise", (4.0, 8.0, 16.0, 32.0, 64.0), "sd, grey levels of 255")
def noise(image: np.ndarray, value: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of every pixel and channel by itself, as of a camera at high gain."""
    drawn = generator.standard_normal(image.shape, dtype=np.float32)
    return _stored(image + value * drawn)


@corruption("jpeg", (70.0, 40.0, 20.0, 10.0, 5.0), "quality")
def jpeg(image: np.ndarray, value: float, _generator: np.random.Generator) -> np.ndarray:
    """Stored as JPEG of that quality (libjpeg's scale, colour at half resolution), and read."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, int(value)]
    packed = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)[1]
    return cv2.cvtColor(cv2.imdecode(packed, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@corruption("darker", (0.9, 0.8, 0.65, 0.5, 0.35), "factor of the light")
def darker(image: np.ndarray, value: float, _generator: np.random.Generator) -> np.ndarray:
    """Less light: every level times a factor below 1."""
    return _scaled(image, np.arange(256) * value)


@corruption("brighter", (1.05, 1.1, 1.2, 1.35, 1.5), "factor of the light")
def brighter(image: np.ndarray, value: float, _generator: np.random.Generator) -> np.ndarray:
    """More light: every level times a factor above 1; what exceeds 255 is burnt out."""
    return _scaled(image, np.arange(256) * value)


@corruption("contrast", (0.85, 0.7, 0.55, 0.4, 0.25), "factor of the contrast")
def contrast(image: np.ndarray, value: float, _generator: np.random.Generator) -> np.ndarray:
    """Levels drawn towards the image's mean luminance, as by stray light."""
    middle = float(grey(image).mean())
    return _scaled(image, middle + value * (np.arange(256) - middle))


@corruption("hue", (5.0, 10.0, 20.0, 30.0, 45.0), "degrees, either way")
def hue(image: np.ndarray, value: float, generator: np.random.Generator) -> np.ndarray:
    """Hue turned in HSV, to the red or to the blue side at random; lightness kept."""
    turn = value * generator.choice([-1.0, 1.0])
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0] + turn) % 360
    return _stored(255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


# Optical densities of red, green and blue of the two dyes (Ruifrok & Johnston 2001). Azure and
# eosin of a blood smear absorb much as haematoxylin and eosin do: one dye the red and green light,
# the other the green.
_DYES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_DYES /= np.linalg.norm(_DYES, axis=1, keepdims=True)
_RESIDUAL = np.cross(*_DYES)
# Optical density to the amounts of both dyes and of what neither explains.
_UNMIX = np.linalg.inv(np.vstack([_DYES, _RESIDUAL / np.linalg.norm(_RESIDUAL)]))


def _with_stain(
    image: np.ndarray, dye: int, value: float, generator: np.random.Generator
) -> np.ndarray:
    """The image with more (value) or less (1 / value) of one dye, at random, by Beer-Lambert.

    Light passes 10^-(gain - 1) c d as before, c the dye's amount and d its density; unstained
    background stays as it is.
    """
    gain = value ** generator.choice([-1.0, 1.0])
    density = optical_density(image, background_colour(image))
    amount = np.maximum(density @ _UNMIX[:, dye].astype(np.float32), 0)
    more = ((gain - 1) * amount)[:, :, None] * _DYES[dye].astype(np.float32)
    return _stored(image * 10 ** (-more))


@corruption("haematoxylin", (1.1, 1.25, 1.5, 1.75, 2.0), "gain, or 1 / gain")
def haematoxylin(image: np.ndarray, value: float, generator: np.random.Generator) -> np.ndarray:
    """The blue dye (haematoxylin, or a smear's azure) stronger or weaker: nuclei, above all."""
    return _with_stain(image, 0, value, generator)


@corruption("eosin", (1.1, 1.25, 1.5, 1.75, 2.0), "gain, or 1 / gain")
def eosin(image: np.ndarray, value: float, generator: np.random.Generator) -> np.ndarray:
    """The red dye (eosin) stronger or weaker: red cells, granules and cytoplasm."""
    return _with_stain(image, 1, value, generator)


@corruption("resolution", (1.5, 2.0, 3.0, 4.0, 8.0), "pixel size, times the original")
def resolution(image: np.ndarray, value: float, _generator: np.random.Generator) -> np.ndarray:
    """Taken with larger pixels: shrunk by area, then enlarged to its size again (bicubic)."""
    height, width = image.shape[:2]
    small = (max(1, round(width / value)), max(1, round(height / value)))
    shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC)
