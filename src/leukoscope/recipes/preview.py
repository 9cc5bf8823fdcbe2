"""`preview`: a picture of every preprocessing step and of some views of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leukoscope.data.derived import output_folder_apart, write_png
from leukoscope.data.tree import find_images
from leukoscope.files import sha256_of
from leukoscope.imaging.pipeline import apply
from leukoscope.imaging.read import read_image
from leukoscope.imaging.sheet import sheet
from leukoscope.progress import track
from leukoscope.recipes.schema import resolve
from leukoscope.train.views import ViewSettings, augmented

COLUMNS = 6


def preview(
    images: Sequence[str | Path], recipe: str, out: Path, *, settings: Sequence[str] = ()
) -> list[Path]:
    """Write one contact sheet an image: as it is, after each step, then its first views.

    Raises InputError for an unknown recipe or setting, UnreadableError for a bad file.
    """
    plan = resolve(recipe, settings=settings)
    shown = 2 * COLUMNS + 1
    # Views made at every pass, or for topping up, are without end.
    endless = plan.views.online or plan.balance == "top_up"
    count = shown if endless else min(plan.views.count, shown)
    views = ViewSettings(plan.preprocessing, plan.augmentation, count, plan.seed)
    paths = find_images(images)
    output_folder_apart(out, paths)
    written = []
    for number, path in enumerate(track(paths, "Previews")):
        image = read_image(path)
        tiles = [("original", image)]
        for place, step in enumerate(plan.preprocessing, start=1):
            image = apply(image, [step])
            tiles.append((f"{place} {step['step']}", image))
        made: Sequence[np.ndarray] = ()
        if count > 1:
            made = list(augmented(image, sha256_of(path), views))
        tiles += [(f"view {k}", view) for k, view in enumerate(made, start=1)]
        target = out / f"{number:04d}-{path.stem[:60]}.png"
        write_png(target, sheet(tiles, columns=COLUMNS)[..., ::-1])
        written.append(target)
    return written
