"""Contact sheets: pictures in a grid, each with its text below."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from leukoscope.imaging.enhancement import resize_keep_aspect

GAP = 8
INK = (28, 32, 36)

Tile = tuple[str, np.ndarray]
"""Text, of one line or several, and uint8 RGB (H, W, 3)."""


def sheet(tiles: Sequence[Tile], *, columns: int, side: int = 224) -> np.ndarray:
    """Tiles in rows of at most `columns`, uint8 RGB on white, each fitted into `side` x `side` px.

    Text grows with its tile, so that it can be read in a smaller picture of the sheet; what is
    wider than the tile ends in an ellipsis.
    """
    font = _font(max(12, side // 15))
    line = round(1.4 * font.size)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    lines = max(text.count("\n") + 1 for text, _ in tiles)
    height, width = side + line * lines + GAP, side + GAP
    canvas = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (text, image) in enumerate(tiles):
        top, left = GAP + place // columns * height, GAP + place % columns * width
        fitted = resize_keep_aspect(image, size=side, background="white")
        canvas.paste(Image.fromarray(fitted), (left, top))
        for number, words in enumerate(text.split("\n")):
            at = (left, top + side + 2 + line * number)
            draw.text(at, _fitting(words, side, font), fill=INK, font=font)
    return np.asarray(canvas)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The one that matplotlib brings along: it has far more letters than Pillow's own."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    shown = text
    while shown and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}…"
    return shown
