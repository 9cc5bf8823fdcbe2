"""The preprocessing chain: registered transforms in order, checked before any image is read.

A transform takes and gives a uint8 RGB image (H, W, 3), leaves its input untouched and is
deterministic; its settings are keyword-only and annotated with their allowed range, which is all
that `check` needs. A chain is plain data, so recipes and bundles carry it as it is.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from leukoscope.errors import InputError
from leukoscope.registry import Registry, keyword_parameters

Transform = Callable[..., np.ndarray]
Chain = Sequence[Mapping[str, Any]]

Length = Annotated[int, Field(ge=1, le=8192)]
Size = Length | Annotated[list[Length], Field(min_length=2, max_length=2)]
"""An image's size in pixels: one int for a square, or [height, width]."""

transforms: Registry[Transform] = Registry("transform")


def apply(image: np.ndarray, chain: Chain) -> np.ndarray:
    """Run the steps of `chain` over an image, uint8 RGB (H, W, 3) in and out.

    Raises InputError for another kind of image and for what `check` raises.
    """
    _check_once(chain)
    require_rgb(image)
    for step in chain:
        image = transforms[step["step"]](image, **_settings(step))
    return image


def check(chain: Chain) -> None:
    """Raise InputError unless every step is known and every setting has its type and range."""
    for place, step in enumerate(chain, start=1):
        if not isinstance(step, Mapping) or not isinstance(step.get("step"), str):
            raise InputError(
                f"Step {place} of the preprocessing chain is {step!r}; "
                "a step is a table with the name of a transform under 'step'",
                fix="Write for example { step = 'resize', size = 224 }.",
                field="step",
            )
        name, settings = step["step"], _settings(step)
        transforms.check_arguments(name, settings)
        _check_settings(name, settings)


_passed: set[str] = set()
"""Chains of plain data, written out, that `check` has let through."""


def _check_once(chain: Chain) -> None:
    """`check`, which takes as long as half a step, for a chain's first image only."""
    plain = isinstance(chain, list | tuple) and all(type(step) is dict for step in chain)
    text = repr(chain) if plain else ""
    if text in _passed:
        return
    check(chain)
    if plain and len(_passed) < 1000:
        _passed.add(text)


def require_rgb(image: np.ndarray) -> None:
    """Raise InputError unless `image` is uint8 RGB (H, W, 3) of at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        got = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
    elif image.shape[2] != 3 or image.size == 0:
        got = f"uint8 {image.shape}"
    else:
        return
    raise InputError(
        f"The image is {got.strip()}; a transform takes uint8 RGB of shape (height, width, 3)",
        fix="Read it with leukoscope.imaging.read.read_image.",
        field="image",
    )


def _settings(step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != "step"}


def _check_settings(name: str, settings: dict[str, Any]) -> None:
    for key, validator in _validators(transforms[name]).items():
        required = keyword_parameters(transforms[name])[key].default is inspect.Parameter.empty
        if key not in settings:
            if required:
                raise InputError(
                    f"transform {name!r} needs the setting {key!r}",
                    fix=f"Add {key} = … to the step.",
                    field=key,
                )
            continue
        value = settings[key]
        try:
            validator.validate_python(list(value) if isinstance(value, tuple) else value)
        except ValidationError as problem:
            reasons = dict.fromkeys(_sentence(error["msg"]) for error in problem.errors())
            raise InputError(
                f"Setting {key!r} of transform {name!r} is {value!r}: {' or '.join(reasons)}",
                fix=f"Correct {key} in the step {name!r} of the preprocessing chain.",
                field=key,
            ) from None


@functools.cache
def _validators(function: Transform) -> dict[str, TypeAdapter[Any]]:
    hints = typing.get_type_hints(function, include_extras=True)
    config = ConfigDict(strict=True, allow_inf_nan=False)
    return {key: TypeAdapter(hints[key], config=config) for key in keyword_parameters(function)}


def _sentence(message: str) -> str:
    """pydantic's 'Input should be …' as the end of our sentence: 'it should be …'."""
    return message.replace("Input should", "it should")
