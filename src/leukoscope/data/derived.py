"""Files made from images: nucleus masks, and cells cropped from fields of view."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from leukoscope.data.tree import find_images
from leukoscope.errors import InputError, UnreadableError, some
from leukoscope.files import atomic, output_folder, printable, write_text
from leukoscope.imaging import cells, segmentation
from leukoscope.imaging.read import read_image
from leukoscope.parallel import ahead
from leukoscope.progress import track

CELLS = "cells.csv"
COLUMNS = ("image", "field", "x", "y", "width", "height")


def segment(
    images: Sequence[str | Path],
    out: Path,
    *,
    method: segmentation.Method = "nucleus",
    polarity: segmentation.Polarity = "dark",
) -> dict[str, Any]:
    """Write the nucleus mask of every image: a 0/255 PNG of its size and stem.

    Returns {masks, unreadable: [{image, why}]}. Raises UnknownNameError for a method or polarity,
    InputError where two images have one stem or none can be read.
    """
    segmentation.segment(np.full((8, 8, 3), 255, np.uint8), method, polarity)  # checks the names
    paths = find_images(images)
    names = _stems(paths)
    output_folder_apart(out, paths)

    def make(path: Path) -> None:
        mask = segmentation.segment(read_image(path), method, polarity)
        write_png(out / f"{names[path]}.png", mask)

    unreadable = [bad for _, bad in _each(make, paths, "Masks") if bad]
    return {"masks": len(paths) - len(unreadable), "unreadable": unreadable}


def crop(fields: Sequence[str | Path], out: Path, *, margin: float = 0.1) -> dict[str, Any]:
    """Find the white cells of every field; write a square PNG each, and `cells.csv`.

    `cells.csv` has one row a cell: image (the crop), field, and the cell's box x, y, width, height
    in pixels of the field. margin: what the crop adds around the box, as a share of its longer
    side. Returns {fields, cells, unreadable: [{image, why}]}. Raises InputError where two fields
    have one stem or none can be read.
    """
    cells.square(cells.Box(0, 0, 1, 1), margin)  # checks the margin
    paths = find_images(fields)
    names = _stems(paths)
    output_folder_apart(out, paths)

    def make(path: Path) -> list[cells.Box]:
        field = read_image(path)
        boxes = cells.find_cells(field)
        for number, image in enumerate(cells.crop(field, boxes, margin), start=1):
            write_png(out / f"{names[path]}-{number:03d}.png", image[..., ::-1])
        return boxes

    unreadable, rows = [], []
    for path, (boxes, bad) in zip(paths, _each(make, paths, "Fields"), strict=True):
        if bad:
            unreadable.append(bad)
        for number, box in enumerate(boxes or (), start=1):
            image = f"{names[path]}-{number:03d}.png"
            rows.append((image, path.name, box.x, box.y, box.width, box.height))
    _write_csv(out / CELLS, rows)
    return {"fields": len(paths) - len(unreadable), "cells": len(rows), "unreadable": unreadable}


def output_folder_apart(out: Path, paths: Sequence[Path]) -> Path:
    """`files.output_folder`, refused where it holds images that are read: they stay untouched."""
    if any(path.parent.resolve() == Path(out).resolve() for path in paths):
        raise InputError(
            f"{out} holds images that are read, and the output could overwrite them",
            fix="Choose another output folder with -o.",
            field="output",
        )
    return output_folder(out)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write grey (H, W) or BGR (H, W, 3) uint8 pixels atomically."""
    encoded = cv2.imencode(".png", pixels)[1]
    with atomic(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _each(
    make: Callable[[Path], Any], paths: Sequence[Path], description: str
) -> Iterator[tuple[Any, dict[str, str] | None]]:
    """What `make` gives for each path, or {image, why}; InputError after all where none works."""

    def tried(path: Path) -> tuple[Any, dict[str, str] | None]:
        try:
            return make(path), None
        except UnreadableError as problem:
            return None, {"image": printable(str(path)), "why": problem.message}

    failed = 0
    for result in track(ahead(tried, paths), description, total=len(paths)):
        failed += result[1] is not None
        yield result
    if failed == len(paths):
        raise InputError(
            f"None of {len(paths)} files can be read as an image: {some([p.name for p in paths])}",
            fix="Give JPEG, PNG, TIFF or BMP images.",
            field="images",
        )


def _stems(paths: Sequence[Path]) -> dict[Path, str]:
    """The stem of each path; InputError where two share one and would overwrite each other."""
    names = {path: path.stem for path in paths}
    seen: dict[str, Path] = {}
    for path, name in names.items():
        if name in seen:
            raise InputError(
                f"{seen[name]} and {path} have one stem, so that one would overwrite the other",
                fix="Rename one, or run on each folder by itself.",
                field="images",
            )
        seen[name] = path
    return names


def _write_csv(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_text(path, text.getvalue())
