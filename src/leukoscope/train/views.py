"""Views of images, made once: the preprocessed image itself, then its augmented copies.

View k of an image is a pure function of the image's bytes, the settings, the seed and k, so every
protocol and arm sees the same views and what one run made serves the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leukoscope.cluster import Spread
from leukoscope.errors import InputError, UnreadableError
from leukoscope.imaging.augmentation import augment, view_generator
from leukoscope.imaging.cells import main_nucleus
from leukoscope.imaging.enhancement import mask_after
from leukoscope.imaging.pipeline import apply
from leukoscope.imaging.read import read_bytes, read_bytes_image, read_image
from leukoscope.parallel import ahead
from leukoscope.progress import track
from leukoscope.train import ranks
from leukoscope.train.cache import ArrayCache

BLOCKS = ("original", "augmented")  # view 0, and views 1 to count - 1
NUCLEUS = "nucleus"  # the mask of the main cell's nucleus, for detectors


@dataclass(frozen=True)
class ImageFile:
    """One image: where it lies and the SHA-256 of its bytes, by which its views are known."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class ViewSettings:
    """All that decides what the views of an image look like."""

    preprocessing: Sequence[dict[str, Any]]
    augmentation: Sequence[dict[str, Any]]
    count: int
    seed: int

    def key(self) -> dict[str, Any]:
        return {
            "preprocessing": self.preprocessing,
            "augmentation": self.augmentation,
            "count": self.count,
            "seed": self.seed,
        }


def prepare(image: ImageFile, settings: ViewSettings) -> np.ndarray:
    """The image after the preprocessing chain, uint8 (h, w, 3); raises as `indexed_image`."""
    return apply(indexed_image(image), settings.preprocessing)


def indexed_image(image: ImageFile) -> np.ndarray:
    """The image as it was indexed, uint8 (H, W, 3).

    InputError where the file is no longer the one that was indexed: what was checked for leaks
    and what is kept under its hash must be what is trained on.
    """
    try:
        data = read_bytes(image.path)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise InputError(
                f"{image.path} has changed since it was indexed",
                fix="Index the folder again.",
                field="cells",
            )
        return read_bytes_image(data)
    except UnreadableError as problem:
        raise InputError(
            f"{image.path} can't be read any more: {problem.message}",
            fix="Index the folder again, which leaves it out.",
            field="cells",
        ) from None


def fresh(
    images: Tensor, hashes: Sequence[str], numbers: Sequence[int], settings: ViewSettings
) -> Tensor:
    """View `numbers[i]` of preprocessed image i, float32 (n, 3, h, w) in [0, 1], made on the spot
    on the images' device."""
    drawn = [view_generator(settings.seed, h, int(k)) for h, k in zip(hashes, numbers, strict=True)]
    return augment(images, drawn, settings.augmentation)


def nucleus_mask(image: ImageFile, settings: ViewSettings) -> np.ndarray:
    """The main cell's nucleus where it lies after preprocessing, bool (h, w).

    It is segmented in the image as it is, since contrast steps make other colours of it.
    """
    return mask_after(main_nucleus(read_image(image.path)), settings.preprocessing)


def augmented(image: np.ndarray, sha256: str, settings: ViewSettings) -> np.ndarray:
    """Views 1 to count - 1 of a preprocessed image, uint8 (count - 1, h, w, 3)."""
    generators = [view_generator(settings.seed, sha256, k) for k in range(1, settings.count)]
    pixels = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
    copies = pixels.expand(len(generators), *pixels.shape)
    views = augment(copies, generators, settings.augmentation)
    return views.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


Maker = Callable[[np.ndarray], np.ndarray]
"""Turns uint8 views (n, h, w, 3) into what is kept of them, (n, …)."""


def fill(
    images: Iterable[ImageFile],
    blocks: Callable[[ImageFile], Sequence[str]],
    settings: ViewSettings,
    size: tuple[int, int],
    cache: ArrayCache,
    make: Maker,
    description: str,
    spread: Spread = ahead,
) -> None:
    """Make every missing block of every image and keep it, one image a thread.

    size: height and width that every image must have after preprocessing (InputError otherwise).
    Processes that train together make a share each; those that keep them elsewhere then the rest.

    Each thread computes alone: images are many and small, so that splitting one image's work
    between cores would cost more than it gains.
    """
    asked = {image.sha256: (image, blocks(image)) for image in images}  # copies are made once
    places = ranks.share(len(asked))
    own = dict(list(asked.items())[places[0] : places[-1] + 1]) if len(places) else {}
    for some in (own, asked) if ranks.world() > 1 else (asked,):
        with ranks.together():
            _fill(some, settings, size, cache, make, description, spread)


def _fill(
    asked: Mapping[str, tuple[ImageFile, Sequence[str]]],
    settings: ViewSettings,
    size: tuple[int, int],
    cache: ArrayCache,
    make: Maker,
    description: str,
    spread: Spread,
) -> None:
    todo = []
    for image, blocks in asked.values():
        wanted = [b for b in blocks if cache.get(image.sha256, b) is None]
        if wanted:
            todo.append((image, wanted))
    if not todo:
        return
    # Asking fixes this thread's own number before the workers' one becomes everybody's default.
    torch.get_num_threads()
    made = spread(partial(_made, settings, make), todo, start=lambda: torch.set_num_threads(1))
    for (image, _), (found, arrays) in track(
        zip(todo, made, strict=True), description, total=len(todo)
    ):
        if found[:2] != size:
            raise InputError(
                f"After preprocessing {image.path.name} is {found[1]}x{found[0]} "
                f"and others are {size[1]}x{size[0]}",
                fix="Put a resize step with a fixed size into the preprocessing chain.",
                field="preprocessing",
            )
        for block, array in arrays.items():
            cache.put(image.sha256, block, array)


def _made(
    settings: ViewSettings, make: Maker, item: tuple[ImageFile, list[str]]
) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
    """The shape of an image after preprocessing, and the blocks that are wanted of it."""
    image, wanted = item
    pixels = prepare(image, settings)
    views = {"original": lambda: make(pixels[None]),
             "augmented": lambda: make(augmented(pixels, image.sha256, settings)),
             NUCLEUS: lambda: nucleus_mask(image, settings)[None]}  # fmt: skip
    return pixels.shape, {block: views[block]() for block in wanted}


def get(cache: ArrayCache, sha256: str, view: int) -> np.ndarray:
    """What is kept of one view; KeyError where it was never made."""
    block = cache.get(sha256, BLOCKS[view > 0])
    if block is None:
        raise KeyError(f"view {view} of {sha256}")
    return block[max(view - 1, 0)]
