"""A page as data: sections of blocks, rendered by one template into one self-contained file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from leukoscope import __version__, files
from leukoscope.report.figures import Drawing, csv_uri
from leukoscope.report.numbers import clean


@dataclass(frozen=True)
class Cell:
    """One field of a table; `reason` says why a value is undefined, `href` makes it a link."""

    text: str
    reason: str = ""
    href: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `tone` is `plain`, `lead`, `warning` or `quiet`."""

    text: str
    tone: str = "plain"
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class List:
    """Sentences, one an item."""

    items: Sequence[str]
    kind: ClassVar[str] = "list"


@dataclass(frozen=True)
class Missing:
    """What is missing here and, as `command`, how to get it."""

    text: str
    command: str = ""
    kind: ClassVar[str] = "missing"


@dataclass(frozen=True)
class Facts:
    """A row of key figures: (name, value, note)."""

    items: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. `words` lists the columns that hold no figures."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: frozenset[int] = frozenset()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Plot:
    """One or more drawings under one caption that says what to conclude."""

    drawings: Sequence[Drawing]
    caption: str
    kind: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Picture:
    """One embedded picture: a `data:` URI, its alternative text and the lines under it."""

    uri: str
    alt: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Pictures:
    """Pictures in a grid under one caption; `size` is `small`, `large`, for strips of several
    `wide`, or `rows` of six."""

    items: Sequence[Picture]
    caption: str
    size: str = "small"
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Sheet:
    """A table too long to show, as a CSV file `name` beside the page; `text` says what for."""

    name: str
    data: pd.DataFrame
    text: str
    kind: ClassVar[str] = "sheet"

    @property
    def data_uri(self) -> str:
        """The table as CSV in a `data:` URI, so that a page alone can give it."""
        return csv_uri(self.data)


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Details:
    """Blocks folded away under a summary."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "details"


Block = Paragraph | List | Missing | Facts | Table | Plot | Pictures | Sheet | Code | Details


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report. `banner` stands above everything (synthetic data, say)."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    banner: str = ""
    footer: Sequence[str] = field(default_factory=tuple)


def walk(blocks: Sequence[Block]) -> Iterator[Block]:
    """Every block in reading order, those folded away included."""
    for block in blocks:
        yield block
        if isinstance(block, Details):
            yield from walk(block.blocks)


def blocks_of(page: Page) -> Iterator[Block]:
    """Every block of every section."""
    for section in page.sections:
        yield from walk(section.blocks)


def footnotes(page: Page) -> dict[str, int]:
    """The number of every distinct reason of an undefined value, in reading order."""
    numbers: dict[str, int] = {}
    for block in blocks_of(page):
        if isinstance(block, Table):
            for cell in (cell for row in block.rows for cell in row if isinstance(cell, Cell)):
                if cell.reason:
                    numbers.setdefault(cell.reason, len(numbers) + 1)
    return numbers


def _harmless(value: object) -> object:
    """Names come from files and folders: nothing in them may reverse or hide what stands beside."""
    if type(value) is not str:
        return value
    return "\n".join(clean(line) for line in value.expandtabs(4).split("\n"))


def render(page: Page) -> str:
    """The page as HTML: one file, no script, nothing loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("leukoscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = resources.files("leukoscope.report").joinpath("templates/page.css")
    return environment.get_template("page.html").render(
        page=page,
        notes=footnotes(page),
        css=Markup(css.read_text(encoding="utf-8")),
        version=__version__,
    )


def write(page: Page, folder: Path) -> Path:
    """Write `report.html`, `report.pdf`, the sheets, and in `figures` every drawing with its data.

    Returns the path of `report.html`. Raises InputError where the folder can't be written to.
    """
    from leukoscope.report import pdf  # which takes a page apart

    for block in blocks_of(page):
        for drawing in block.drawings if isinstance(block, Plot) else ():
            stem = folder / "figures" / drawing.name
            files.write_text(stem.with_suffix(".svg"), drawing.svg)
            files.write_text(stem.with_suffix(".csv"), drawing.data.to_csv(index=False))
        if isinstance(block, Sheet):
            files.write_text(folder / block.name, block.data.to_csv(index=False))
    pdf.write(page, folder / "report.pdf")
    target = folder / "report.html"
    files.write_text(target, render(page))
    return target
