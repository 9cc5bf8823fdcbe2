"""Small embedded pictures of cells: JPEG in `data:` URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from leukoscope.errors import UnreadableError
from leukoscope.imaging.read import read_image
from leukoscope.report.page import Picture

SMALL, LARGE = 128, 208  # pixels of the longer side: sharp at the size shown, some kilobytes each


def embedded(path: Path, side: int) -> str | None:
    """The image scaled to fit `side` x `side` as a `data:` URI, or None where it can't be read."""
    try:
        image = Image.fromarray(read_image(path))
    except UnreadableError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def gallery(
    root: Path, items: Iterable[tuple[str, str, Sequence[str]]], side: int = SMALL
) -> list[Picture]:
    """Pictures of (image, alternative text, lines below); unreadable ones are left out."""
    pictures = []
    for image, alt, lines in items:
        uri = embedded(root / image, side)
        if uri:
            pictures.append(Picture(uri, alt, lines))
    return pictures
