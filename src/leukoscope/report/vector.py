"""matplotlib figures and any text drawn on a ReportLab canvas: as vectors, in embedded fonts."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from leukoscope.report.figures import style

TEXT, BOLD, MONO = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono"
# For scripts that DejaVu lacks: fonts that a viewer has or substitutes, not embedded.
HAN, HANGUL = "STSong-Light", "HYSMyeongJo-Medium"


@lru_cache(maxsize=1)
def fonts() -> dict[str, frozenset[int]]:
    """Register the fonts once; by name of an embedded one the characters that it has."""
    found = {}
    for name in (TEXT, BOLD, MONO):
        font = TTFont(name, str(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"))
        pdfmetrics.registerFont(font)
        found[name] = frozenset(font.face.charToGlyph)
    for name in (HAN, HANGUL):
        pdfmetrics.registerFont(UnicodeCIDFont(name))
    return found


def runs(text: str, font: str) -> list[tuple[str, str]]:
    """The text as (font, part) in reading order; what no font has becomes U+FFFD."""
    known = fonts()[font]
    if all(ord(c) in known for c in text):
        return [(font, text)]
    parts: list[tuple[str, str]] = []
    for c in text:
        own, shown = font, c
        if ord(c) not in known:
            script = unicodedata.name(c, "").partition(" ")[0]
            own = {"HANGUL": HANGUL, "CJK": HAN, "HIRAGANA": HAN, "KATAKANA": HAN,
                   "FULLWIDTH": HAN, "IDEOGRAPHIC": HAN}.get(script, font)  # fmt: skip
            shown = c if own != font else "\ufffd"
        if parts and parts[-1][0] == own:
            parts[-1] = (own, parts[-1][1] + shown)
        else:
            parts.append((own, shown))
    return parts


def draw_text(canvas: Canvas, x: float, y: float, text: str, font: str, size: float) -> None:
    """One line of text with its baseline from (x, y)."""
    for name, part in runs(text, font):
        canvas.setFont(name, size)
        canvas.drawString(x, y, part)
        x += pdfmetrics.stringWidth(part, name, size)


def draw_figure(canvas: Canvas, figure: Figure) -> None:
    """Draw the figure with its lower left corner at the origin, in points."""
    before = figure.dpi
    figure.dpi = 72
    try:
        with style():
            figure.draw(_Renderer(canvas, *figure.bbox.size))
    finally:
        figure.dpi = before


class _Renderer(RendererBase):
    """What matplotlib asks of a backend, put on a canvas whose unit is a point."""

    def __init__(self, canvas: Canvas, width: float, height: float) -> None:
        super().__init__()
        self.canvas, self.size = canvas, (width, height)

    def flipy(self) -> bool:
        return False

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self.size

    def draw_path(
        self,
        gc: GraphicsContextBase,
        path: Outline,
        transform: Any,
        rgbFace: Any = None,  # noqa: N803 - matplotlib's name
    ) -> None:
        canvas = self.canvas
        canvas.saveState()
        self._clip(gc)
        fill = rgbFace is not None and (len(rgbFace) < 4 or rgbFace[3] > 0)
        red, green, blue, alpha = gc.get_rgb()
        stroke = gc.get_linewidth() > 0 and alpha > 0
        if fill:
            face = gc.get_alpha() if len(rgbFace) < 4 or gc.get_forced_alpha() else rgbFace[3]
            canvas.setFillColorRGB(*rgbFace[:3], alpha=face)
        if stroke:
            canvas.setStrokeColorRGB(red, green, blue, alpha=alpha)
            canvas.setLineWidth(gc.get_linewidth())
            offset, dashes = gc.get_dashes()
            if dashes is not None:
                canvas.setDash(np.asarray(dashes, dtype=float).tolist(), float(offset or 0))
            canvas.setLineCap({"butt": 0, "round": 1, "projecting": 2}[gc.get_capstyle()])
            canvas.setLineJoin({"miter": 0, "round": 1, "bevel": 2}[gc.get_joinstyle()])
        if fill or stroke:
            canvas.drawPath(self._outline(path, transform), stroke=int(stroke), fill=int(fill))
        canvas.restoreState()

    def _outline(self, path: Outline, transform: Any) -> Any:
        made = self.canvas.beginPath()
        at = np.zeros(2)
        for points, code in path.iter_segments(transform, simplify=False):
            if code == Outline.CLOSEPOLY:
                made.close()
                continue
            ends = points.reshape(-1, 2)
            if code == Outline.MOVETO:
                made.moveTo(*ends[0])
            elif code == Outline.LINETO:
                made.lineTo(*ends[0])
            else:
                if code == Outline.CURVE3:  # raised to a cubic
                    control, end = ends
                    ends = np.array(
                        [at + (control - at) * 2 / 3, end + (control - end) * 2 / 3, end]
                    )
                made.curveTo(*ends.ravel())
            at = ends[-1]
        return made

    def _clip(self, gc: GraphicsContextBase) -> None:
        box = gc.get_clip_rectangle()
        if box is not None:
            around = self.canvas.beginPath()
            around.rect(*box.bounds)
            self.canvas.clipPath(around, stroke=0, fill=0)

    def draw_image(
        self, gc: GraphicsContextBase, x: float, y: float, im: Any, transform: Any = None
    ) -> None:
        from PIL import Image

        self.canvas.saveState()
        self._clip(gc)
        height, width = im.shape[:2]
        picture = ImageReader(Image.fromarray(np.ascontiguousarray(im)))
        if transform is not None:
            self.canvas.transform(*Affine2D(transform.get_matrix()).to_values())
            x = y = 0
            width = height = 1
        self.canvas.drawImage(picture, x, y, width, height, mask="auto")
        self.canvas.restoreState()

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        *_: Any,
        **__: Any,
    ) -> None:
        red, green, blue, alpha = gc.get_rgb()
        weight = prop.get_weight()
        bold = weight in ("bold", "semibold", "heavy") or (
            isinstance(weight, int) and weight >= 600
        )
        self.canvas.saveState()
        self._clip(gc)
        self.canvas.setFillColorRGB(red, green, blue, alpha=alpha)
        self.canvas.translate(x, y)
        self.canvas.rotate(angle)
        draw_text(self.canvas, 0, 0, s, BOLD if bold else TEXT, prop.get_size_in_points())
        self.canvas.restoreState()
