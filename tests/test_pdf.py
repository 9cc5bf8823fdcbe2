"""The PDF of a report: whole, within its margins, whatever the names are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pypdfium2
import pytest
from PIL import Image
from reportlab.lib.pagesizes import A4

from leukoscope.report import figures, page, pdf, vector
from leukoscope.report.pictures import gallery

LONG = "a_very_long_class_name_without_any_space_in_it_" * 5
NAMES = {
    "hostile": ["<b>&amp;</b>", "a|b", "$x_{$", "\u202eesrever", "", " "],
    "scripts": [
        "Лимфоцит",
        "λεμφοκύτταρο",
        "لمفاوية",
        "白血球",
        "림프구",
        "リンパ球",
        "\U0001f9ec",
    ],
    "long": [LONG, LONG[1:], "short"],
    "many": [f"class number {i}" for i in range(40)],
}


def paragraphs(*texts: str) -> page.Page:
    return built(*map(page.Paragraph, texts))


def built(*blocks: page.Block, banner: str = "") -> page.Page:
    section = page.Section("only", "The only section", blocks)
    return page.Page("Title", "of the page", [section], banner, ("Not a diagnosis.",))


def written(made: page.Page, folder: Path) -> pypdfium2.PdfDocument:
    return pypdfium2.PdfDocument(pdf.write(made, folder / "report.pdf").read_bytes())


def text_of(document: pypdfium2.PdfDocument) -> list[str]:
    """Words of each page, told apart by single spaces."""
    return [" ".join(p.get_textpage().get_text_range().split()) for p in document]


def outside(document: pypdfium2.PdfDocument) -> list[str]:
    """Characters that reach beyond the margins of their page."""
    found = []
    for number, one in enumerate(document):
        text = one.get_textpage()
        for i in range(text.count_chars()):
            left, bottom, right, top = text.get_charbox(i)
            if right > left and (left < pdf.MARGIN - 2 or right > A4[0] - pdf.MARGIN + 2
                                 or bottom < 20 or top > A4[1] - 15):  # fmt: skip
                found.append(f"{text.get_text_range(i, 1)!r} on page {number + 1}")
    return found


def test_every_page_has_number_footer_and_banner(tmp_path: Path) -> None:
    lines = [f"Sentence {i} of a long text that fills more than a page." for i in range(200)]
    section = page.Section("only", "Long", [page.Paragraph(line) for line in lines])
    made = page.Page("Title", "sub", [section], "Synthetic data.", ("Not a diagnosis.",))
    pages = text_of(written(made, tmp_path))
    assert len(pages) > 2
    for number, text in enumerate(pages, 1):
        assert f"Page {number} of {len(pages)}" in text
        assert "Synthetic data." in text
        assert "Not a diagnosis." in text
    whole = " ".join(pages)
    assert all(line in whole for line in lines)


def test_sections_stand_in_the_outline_and_bytes_repeat(tmp_path: Path) -> None:
    made = paragraphs("text")
    document = written(made, tmp_path)
    assert [entry.get_title() for entry in document.get_toc()] == ["1  The only section"]
    before = (tmp_path / "report.pdf").read_bytes()
    assert pdf.write(made, tmp_path / "again.pdf").read_bytes() == before


def test_a_long_table_breaks_under_its_head_and_says_what_is_left_out(tmp_path: Path) -> None:
    rows = [[f"row {i}", f"{i}"] for i in range(pdf.MOST_ROWS + 50)]
    document = written(built(page.Table("A table.", ["Name", "Number"], rows)), tmp_path)
    pages = text_of(document)
    assert all("Name Number" in text for text in pages)
    assert "50 more rows are in report.html" in pages[0]
    assert f"row {pdf.MOST_ROWS - 1} " in f"{pages[-1]} "
    assert not outside(document)


@pytest.mark.parametrize("columns", [3, 9, 30])
def test_a_wide_table_goes_on_below(tmp_path: Path, columns: int) -> None:
    head = ["Class", *(f"Metric {i}" for i in range(columns))]
    rows = [[name, *["93.9% [91.4, 96.4]"] * columns] for name in ("first", "second")]
    document = written(built(page.Table("Wide.", head, rows)), tmp_path)
    whole = " ".join(text_of(document))
    assert not outside(document)
    assert whole.count("91.4, 96.4") == 2 * columns
    assert all(f"Metric {i}" in whole for i in range(columns))


def test_a_field_longer_than_a_page_is_cut(tmp_path: Path) -> None:
    rows = [["group", ", ".join(f"image_{i}.png" for i in range(2000))]]
    document = written(built(page.Table("Long.", ["A", "B"], rows, frozenset({1}))), tmp_path)
    assert not outside(document)
    assert "…" in text_of(document)[0]


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_any_kind_stay_inside(tmp_path: Path, kind: str) -> None:
    names = NAMES[kind]
    k = len(names)
    rng = np.random.default_rng(0)
    matrix = rng.poisson(0.3, (k, k)) + 9 * np.eye(k, dtype=int)
    ranges = pd.DataFrame({"name": names, "value": 0.5, "low": 0.4, "high": 0.6})
    wide = [[name] * (1 + len(names[:6])) for name in names]
    rows = [[name, "0.5", page.Cell("undefined", f"of {name}")] for name in names]
    document = written(
        built(
            page.Paragraph(" ".join(names), "lead"),
            page.Table("By class.", ["Class", *names[:6]], wide),
            page.Table("Undefined.", ["Class", "Value", "Other"], rows),
            page.Facts([(names[0], names[-1], names[0])]),
            page.Code("\n".join(names)),
            page.List(names),
            page.Missing(names[0], names[-1]),
            page.Details(names[0], [page.Paragraph(names[-1])]),
            page.Plot([figures.confusion_matrix(matrix, names)], names[0]),
            page.Plot([figures.ranges("r", ranges, "Ranges")], names[-1]),
            banner=names[0],
        ),
        tmp_path,
    )  # fmt: skip
    assert not outside(document)
    whole = " ".join(text_of(document))
    assert "predicted" in whole, "text in figures stays text"
    if kind == "scripts":
        assert all(name in whole for name in (*names[:2], *names[3:6]))
    if kind == "many":
        assert all(name in whole for name in names)


def test_what_no_font_has_is_shown_as_such() -> None:
    parts = vector.runs("Zelle 白血 \U0001f9ec 림프", vector.TEXT)
    assert parts == [
        (vector.TEXT, "Zelle "),
        (vector.HAN, "白血"),
        (vector.TEXT, " \ufffd "),
        (vector.HANGUL, "림프"),
    ]


def test_pictures_stand_in_rows_under_their_names(tmp_path: Path) -> None:
    Image.new("RGB", (90, 40), "purple").save(tmp_path / "cell.png")
    items = [("cell.png", "a cell", [f"{i}.png", LONG]) for i in range(20)]
    for size in ("small", "large", "wide"):
        block = page.Pictures(gallery(tmp_path, items), "What to conclude.", size)
        document = written(built(block), tmp_path)
        assert not outside(document)
        assert "What to conclude." in " ".join(text_of(document))


def test_a_figure_is_drawn_as_vectors(tmp_path: Path) -> None:
    matrix = np.array([[30, 2], [1, 40]])
    drawing = figures.confusion_matrix(matrix, ["blast", "lymphocyte"])
    document = written(built(page.Plot([drawing], "Caption.")), tmp_path)
    one = document[0]
    kinds = {obj.type for obj in one.get_objects()}
    assert pypdfium2.raw.FPDF_PAGEOBJ_IMAGE not in kinds
    pixels = np.asarray(one.render(scale=2).to_pil().convert("RGB")).reshape(-1, 3)
    dark = (np.abs(pixels.astype(int) - (0, 85, 143)).max(axis=1) < 30).sum()
    side = 2 * 72 * 0.62 * pdf.SCALE  # of a cell, in pixels
    assert dark > side**2, "the cells of the diagonal are filled"
