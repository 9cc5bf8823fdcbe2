"""A page as PDF, from the same blocks as its HTML: A4, tables that break, figures as vectors."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from reportlab import rl_config
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    Image,
    PageTemplate,
    Paragraph,
    Preformatted,
    Spacer,
    Table,
)

from leukoscope import __version__, files
from leukoscope.report import page as pages
from leukoscope.report import vector
from leukoscope.report.figures import INK, MUTED, RULE, Drawing
from leukoscope.report.numbers import clean
from leukoscope.report.page import Block, Cell, Page
from leukoscope.report.vector import BOLD, MONO, TEXT

MARGIN, FOOT = 17 * mm, 12 * mm
WIDTH = A4[0] - 2 * MARGIN
SCALE = 0.9  # of a figure: two of the usual size fit side by side
TALLEST, SEVERAL = 150 * mm, 105 * mm  # height of a figure, of one among several
# Characters of a field, rows of a table, lines of code: the page has the rest.
LONGEST, MOST_ROWS, MOST_LINES = 1200, 250, 40
KEPT_WHOLE = 24  # rows of a table that is not broken
ACCENT, WARNING, SOFT = HexColor("#5b3d8f"), HexColor("#8a3b00"), HexColor("#f5f4f8")
SIZES = (7.6, 6.8, 6.0)  # of a table's text, the first that lets it fit
GAP = 7.0  # points between columns


def _look(name: str, size: float, **more: Any) -> ParagraphStyle:
    given = {"fontName": TEXT, "leading": 1.42 * size, "textColor": HexColor(INK), "spaceAfter": 5,
             "splitLongWords": 1, "allowWidows": 0, "allowOrphans": 0}  # fmt: skip
    return ParagraphStyle(name, fontSize=size, **(given | more))


BODY = _look("body", 8.6)
LOOKS = {
    "plain": BODY,
    "lead": _look("lead", 10, spaceAfter=7),
    "quiet": _look("quiet", 8.6, textColor=HexColor(MUTED)),
    "warning": _look("warning", 8.6, textColor=WARNING, leftIndent=7, borderPadding=3),
    "title": _look("title", 18, fontName=BOLD, leading=22, spaceAfter=3),
    "heading": _look("heading", 12.5, fontName=BOLD, leading=16, spaceBefore=12),
    "summary": _look("summary", 8.8, fontName=BOLD, textColor=ACCENT),
    "caption": _look("caption", 8, textColor=HexColor(MUTED), spaceAfter=9),
    "above": _look("above", 8, textColor=HexColor(MUTED), spaceAfter=3),
    "code": _look("code", 6.8, fontName=MONO, backColor=SOFT, borderPadding=4, spaceAfter=9),
    "fact": _look("fact", 12.5, fontName=BOLD, spaceAfter=0),
    "small": _look("small", 5.9, spaceAfter=0),
}


def write(page: Page, target: Path) -> Path:
    """Write the page as PDF; the same page gives the same bytes. Returns the path.

    Whatever is folded away in the page stands open here; what exceeds LONGEST, MOST_ROWS or
    MOST_LINES is left to the page. Characters that no font has are shown as U+FFFD; of Chinese,
    Japanese and Korean the viewer must have a font.
    Raises InputError where it can't be written.
    """
    vector.fonts()
    rl_config.useA85 = 0  # binary streams: a fifth smaller, and made in half the time
    stream = io.BytesIO()
    title = clean(page.title)
    document = BaseDocTemplate(
        stream, pagesize=A4, title=title, author=f"Leukoscope {__version__}", invariant=1
    )
    bottom = MARGIN + FOOT
    frame = Frame(MARGIN, bottom, WIDTH, A4[1] - MARGIN - bottom, *[0] * 4)
    document.addPageTemplates([PageTemplate(frames=[frame])])
    notes = pages.footnotes(page)
    document.build(_story(page, notes), canvasmaker=partial(_Numbered, page=page))
    with files.atomic(target) as temporary:
        temporary.write_bytes(stream.getvalue())
    return target


class _Numbered(Canvas):
    """A canvas that knows how many pages there are: each gets banner, footer and number."""

    def __init__(self, *given: Any, page: Page, **more: Any) -> None:
        super().__init__(*given, **more)
        self._page_, self._kept = page, list[dict[str, Any]]()

    def showPage(self) -> None:  # noqa: N802 - ReportLab's name
        self._kept.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        for state in self._kept:
            self.__dict__.update(state)
            self._edges(len(self._kept))
            super().showPage()
        super().save()

    def _edges(self, total: int) -> None:
        if self._page_.banner:
            self.setFillColor(WARNING)
            vector.draw_text(
                self, MARGIN, A4[1] - 10 * mm, clean(self._page_.banner, 120), BOLD, 6.4
            )
        self.setFillColor(HexColor(MUTED))
        self.setStrokeColor(HexColor(RULE))
        self.line(MARGIN, MARGIN + FOOT - 9, A4[0] - MARGIN, MARGIN + FOOT - 9)
        foot = " ".join([*self._page_.footer, f"Leukoscope {__version__}."])
        vector.draw_text(self, MARGIN, MARGIN + FOOT - 19, clean(foot, 110), TEXT, 6.6)
        number = f"Page {self._pageNumber} of {total}"
        x = A4[0] - MARGIN - stringWidth(number, TEXT, 6.6)
        vector.draw_text(self, x, MARGIN + FOOT - 19, number, TEXT, 6.6)


class _Heading(Paragraph):
    """A section's heading that also stands in the PDF's outline."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(_markup(text, BOLD), LOOKS["heading"])
        self._entry = (clean(text), name)

    def draw(self) -> None:
        text, name = self._entry
        self.canv.bookmarkPage(name)
        self.canv.addOutlineEntry(text, name)
        super().draw()


class _Figure(Flowable):
    """A drawing as vectors, made smaller where it is too wide or too tall."""

    def __init__(self, drawing: Drawing, tallest: float) -> None:
        super().__init__()
        self.figure = drawing.figure
        width, height = (72 * float(side) for side in self.figure.get_size_inches())
        self.scale = min(SCALE, WIDTH / width, tallest / height)
        self.width, self.height = width * self.scale, height * self.scale

    def wrap(self, *_: float) -> tuple[float, float]:
        return self.width, self.height

    def draw(self) -> None:
        self.canv.saveState()
        self.canv.scale(self.scale, self.scale)
        vector.draw_figure(self.canv, self.figure)
        self.canv.restoreState()


def _story(page: Page, notes: dict[str, int]) -> list[Flowable]:
    found: list[Flowable] = [
        Paragraph(_markup(page.title, BOLD), LOOKS["title"]),
        Paragraph(_markup(page.subtitle), LOOKS["quiet"]),
    ]
    for number, section in enumerate(page.sections, 1):
        heading = _Heading(f"{number}  {section.title}", section.name)
        below = [flowable for block in section.blocks for flowable in _block(block, notes)]
        # A page break between the two would leave the heading behind.
        below = below[1:] if below and isinstance(below[0], CondPageBreak) else below
        pictures = [isinstance(block, pages.Plot | pages.Pictures) for block in section.blocks]
        heading.keepWithNext = any(pictures[:1]) or bool(below and below[0].getKeepWithNext())
        found += [CondPageBreak(50 * mm), heading, *below]
    if notes:
        found.append(_Heading("Undefined values", "notes"))
        found += [Paragraph(_markup(f"{n}. {reason}"), BODY) for reason, n in notes.items()]
    return found


# --- blocks ---------------------------------------------------------------------------------------


def _block(block: Block, notes: dict[str, int]) -> list[Flowable]:
    if isinstance(block, pages.Table):
        return _table(block, notes)
    if isinstance(block, pages.Details):
        inner = [flowable for each in block.blocks for flowable in _block(each, notes)]
        summary = Paragraph(_markup(block.summary, BOLD), LOOKS["summary"])
        return [CondPageBreak(40 * mm), summary, *inner]
    return _MAKERS[block.kind](block)


def _paragraph(block: pages.Paragraph) -> list[Flowable]:
    return [Paragraph(_markup(block.text), LOOKS[block.tone])]


def _list(block: pages.List) -> list[Flowable]:
    look = ParagraphStyle("item", BODY, leftIndent=10, bulletIndent=1, spaceAfter=3)
    return [Paragraph(_markup(item), look, bulletText="•") for item in block.items]


def _missing(block: pages.Missing) -> list[Flowable]:
    command = f" {_markup(block.command, MONO)}" if block.command else ""
    return [Paragraph(_markup(block.text) + command, LOOKS["quiet"])]


def _sheet(block: pages.Sheet) -> list[Flowable]:
    return [Paragraph(_markup(f"{block.text} {block.name}, beside this file."), BODY)]


def _code(block: pages.Code) -> list[Flowable]:
    lines = [clean(line.expandtabs(4)) for line in block.text.splitlines()]
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"[{len(lines) - MOST_LINES} more lines are in report.html]"]
    known = vector.fonts()[MONO]
    text = "\n".join("".join(c if ord(c) in known else "\ufffd" for c in line) for line in lines)
    look = LOOKS["code"]
    wide = int(WIDTH / stringWidth("0", MONO, look.fontSize)) - 3
    return [Preformatted(text, look, maxLineLength=wide, newLineChars="  "), Spacer(1, 4)]


def _facts(block: pages.Facts) -> list[Flowable]:
    cells = [
        [Paragraph(_markup(name), LOOKS["quiet"]), Paragraph(_markup(value, BOLD), LOOKS["fact"]),
         Paragraph(_markup(note), LOOKS["small"])]
        for name, value, note in block.items
    ]  # fmt: skip
    if not cells:
        return []
    rules = [*_FLUSH, _TOP, ("LINEABOVE", (0, 0), (-1, 0), 0.6, HexColor(RULE))]
    return [Table([cells], colWidths=[WIDTH / len(cells)] * len(cells), style=rules), Spacer(1, 6)]


def _plot(block: pages.Plot) -> list[Flowable]:
    """Figures side by side where two fit, the caption kept with the last of them."""
    rows: list[list[_Figure]] = []
    for drawing in block.drawings:
        figure = _Figure(drawing, TALLEST if len(block.drawings) == 1 else SEVERAL)
        if rows and sum(f.width for f in rows[-1]) + figure.width + GAP <= WIDTH:
            rows[-1].append(figure)
        else:
            rows.append([figure])
    made: list[Flowable] = []
    for row in rows:
        widths = [figure.width + GAP for figure in row]
        made.append(Table([row], colWidths=widths, hAlign="LEFT", style=_FLUSH, spaceAfter=3))
    made[-1].keepWithNext = True
    return [*made, Paragraph(_markup(block.caption), LOOKS["caption"])]


def _pictures(block: pages.Pictures) -> list[Flowable]:
    across = {"small": 8, "rows": 12, "large": 6, "wide": 2}[block.size]
    side = WIDTH / across
    rows = []
    for start in range(0, len(block.items), across):
        part = block.items[start : start + across]
        rows.append([_picture(item, side - GAP) for item in part] + [""] * (across - len(part)))
    gap = 0 if block.size == "rows" else GAP  # a row's one name may reach under the next picture
    apart = [("BOTTOMPADDING", (0, 0), (-1, -1), 4), ("RIGHTPADDING", (0, 0), (-1, -1), gap)]
    grid = Table(rows, colWidths=[side] * across, style=[*_FLUSH, _TOP, *apart])
    caption = Paragraph(_markup(block.caption), LOOKS["caption"])
    grid.keepWithNext = len(rows) <= 2
    return [grid, caption]


def _picture(item: pages.Picture, side: float) -> list[Flowable]:
    picture = Image(io.BytesIO(base64.b64decode(item.uri.partition(",")[2])))
    scale = side / max(picture.imageWidth, picture.imageHeight)
    picture.drawWidth, picture.drawHeight = scale * picture.imageWidth, scale * picture.imageHeight
    picture.hAlign = "LEFT"
    lines = [Paragraph(_markup(line), LOOKS["small"]) for line in item.lines]
    return [picture, Spacer(1, 2), *lines]


# --- tables ---------------------------------------------------------------------------------------

_FLUSH = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("RIGHTPADDING", (0, 0), (-1, -1), 0),
          ("TOPPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
          ("VALIGN", (0, 0), (-1, -1), "BOTTOM")]  # fmt: skip
_TOP = ("VALIGN", (0, 0), (-1, -1), "TOP")


def _table(block: pages.Table, notes: dict[str, int]) -> list[Flowable]:
    """A table that breaks over pages under its head; too many columns go on below, each part with
    the first column again."""
    caption = block.caption
    more = len(block.rows) - MOST_ROWS
    if more > 0:
        caption += f" {more:,} more rows are in report.html."
    words = block.words | {0}
    rows = [list(block.head), *([_text(c, notes) for c in row] for row in block.rows[:MOST_ROWS])]
    rows = [[text if c in words else text.replace(", ", ",\u00a0") for c, text in enumerate(row)]
            for row in rows]  # fmt: skip
    above = Paragraph(_markup(caption), LOOKS["above"])
    above.keepWithNext = len(rows) <= KEPT_WHOLE
    found: list[Flowable] = [CondPageBreak(30 * mm), above]
    for columns, widths, size in _layout(rows, words):
        found += [_grid(rows, columns, widths, size, words), Spacer(1, 8)]
    return found


def _text(cell: Cell | str, notes: dict[str, int]) -> str:
    if isinstance(cell, str):
        text = cell
    else:
        text = f"{cell.text} ({notes[cell.reason]})" if cell.reason else cell.text
    return clean(text, LONGEST)


def _layout(
    rows: Sequence[Sequence[str]], words: frozenset[int]
) -> list[tuple[list[int], list[float], float]]:
    """(columns, their widths, text size) of each part that the table is drawn in.

    Figures stay on one line where a smaller text allows it, else their intervals go below.
    """
    columns = list(range(len(rows[0])))
    for whole in (set(columns) - words, set[int]()):
        for size in SIZES:
            least, natural = _needs(rows, whole, size)
            if sum(least) <= WIDTH:
                return [(columns, _shared(least, natural), size)]
    parts = [[0]]
    for column in columns[1:]:
        if len(parts[-1]) > 1 and sum(least[c] for c in [*parts[-1], column]) > WIDTH:
            parts.append([0])
        parts[-1].append(column)
    found = []
    for part in parts:
        low = [min(least[c], WIDTH / len(part)) for c in part]
        found.append((part, _shared(low, [natural[c] for c in part]), SIZES[-1]))
    return found


def _needs(
    rows: Sequence[Sequence[str]], whole: Set[int], size: float
) -> tuple[list[float], list[float]]:
    """The least and the natural width of each column: of its longest word, of its longest text.

    In the columns `whole` nothing but the head is broken; elsewhere words of more than 18
    characters may be.
    """
    least, natural = [], []
    for column, head in enumerate(rows[0]):
        texts = {row[column] for row in rows[1:]}
        words = {word[:18] for text in (texts | {head}) for word in text.split(" ")}
        kept = words | texts if column in whole else words
        least.append(GAP + max(_width(word, size) for word in kept))
        natural.append(GAP + max(_width(text[:160], size) for text in (texts | {head})))
    return least, natural


def _width(text: str, size: float) -> float:
    # Bold, as the head is set, is the widest.
    return sum(float(stringWidth(part, font, size)) for font, part in vector.runs(text, BOLD))


def _shared(least: Sequence[float], natural: Sequence[float]) -> list[float]:
    """Widths between both: natural where that fits, else what is left goes where it is wanted."""
    if sum(natural) <= WIDTH:
        return list(natural)
    wanted = [max(n - low, 0.0) for n, low in zip(natural, least, strict=True)]
    share = max(WIDTH - sum(least), 0.0) / max(sum(wanted), 1e-9)
    return [low + share * more for low, more in zip(least, wanted, strict=True)]


def _grid(
    rows: Sequence[Sequence[str]],
    columns: Sequence[int],
    widths: Sequence[float],
    size: float,
    words: frozenset[int],
) -> Table:
    left = _look("left", size, spaceAfter=0, leading=1.25 * size)
    right = ParagraphStyle("right", left, alignment=TA_RIGHT)
    looks = {c: left if c in words else right for c in columns}
    cells = [
        [Paragraph(_markup(row[c], TEXT if at else BOLD), looks[c]) for c in columns]
        for at, row in enumerate(rows)
    ]
    thin, head = HexColor(RULE), HexColor(MUTED)
    look = [*_FLUSH, _TOP, ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
            ("TOPPADDING", (0, 0), (-1, -1), 2), ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ("LEFTPADDING", (1, 0), (-1, -1), GAP), ("LINEBELOW", (0, 1), (-1, -1), 0.4, thin),
            ("LINEBELOW", (0, 0), (-1, 0), 0.8, head)]  # fmt: skip
    return Table(cells, colWidths=list(widths), repeatRows=1, style=look, hAlign="LEFT")


def _markup(text: str, font: str = TEXT) -> str:
    """Text as ReportLab's markup, each part in a font that has it."""
    parts = vector.runs(clean(text.replace("\n", " ")), font)
    return "".join(f'<font name="{name}">{escape(part)}</font>' for name, part in parts)


_MAKERS: dict[str, Callable[[Any], list[Flowable]]] = {
    "paragraph": _paragraph,
    "list": _list,
    "missing": _missing,
    "sheet": _sheet,
    "code": _code,
    "facts": _facts,
    "plot": _plot,
    "pictures": _pictures,
}
