"""A version of a case on paper: case, model, differential, agreement, corrected cells, signing."""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from leukoscope.errors import UnreadableError
from leukoscope.imaging.read import read_bytes_image
from leukoscope.report import figures, pdf
from leukoscope.report.numbers import clean, count, percent
from leukoscope.report.page import (
    Block,
    Facts,
    List,
    Page,
    Paragraph,
    Pictures,
    Plot,
    Section,
    Table,
)
from leukoscope.report.page import Picture as Shown
from leukoscope.review.exports import (
    CAVEAT,
    SYNTHETIC,
    CellContent,
    Content,
    Picture,
    image_of,
    is_corrected,
    leukocytes,
    shown,
)
from leukoscope.review.vocabulary import spelled

MOST_PICTURES, MOST_COMMENTS = 32, 20  # of a report; the CSV has them all
SIDE = 128  # pixels of a picture's longer side
LONGEST_NAME, LONGEST_COMMENT, LONGEST_NOTES = 60, 160, 600  # characters


def write(content: Content, target: Path, picture: Picture) -> Path:
    """Write the report as PDF, A4; the same content gives the same bytes. Returns `target`.

    Raises InputError where it can't be written, LeukoscopeError where a corrected cell's image is
    gone.
    """
    return pdf.write(page(content, picture), target)


def page(content: Content, picture: Picture) -> Page:
    """The report as blocks."""
    case, model = content["case"], content["model"]
    warning = CAVEAT + (f" {SYNTHETIC}" if model["synthetic"] else "")
    sections = [
        Section("case", "Case and model", _case(content)),
        Section("differential", "Differential count", _differential(content)),
        Section("signature", "Signature", _signature(content)),
    ]
    corrected = [cell for cell in content["cells"] if is_corrected(cell)]
    if corrected:
        sections.append(Section("corrected", "Corrected cells", _corrected(corrected, picture)))
    if any(cell["comment"] for cell in content["cells"]):
        sections.append(Section("comments", "Comments", _comments(content["cells"])))
    amended = " (amended)" if case["version"] > 1 else ""
    subtitle = f"{_name(case['pseudonym'])}, version {case['version']}{amended}. {warning}"
    return Page(
        title="Blood smear, second reading",
        subtitle=subtitle,
        sections=sections,
        banner=warning if content["signed"] else f"NOT SIGNED. {warning}",
        footer=(f"Case {case['id']}, version {case['version']}.",),
    )


def _case(content: Content) -> list[Block]:
    case, model = content["case"], content["model"]
    cells = content["cells"]
    flagged = sum(bool(cell["flag"]) for cell in cells)
    reviewed = sum(cell["label"] is not None for cell in cells)
    facts = Facts(
        [
            ("Cells", f"{len(cells):,}", f"{flagged:,} flagged as doubtful or novel"),
            ("Looked at", f"{reviewed:,}", "given or confirmed a class by a person"),
            ("Corrected", f"{sum(map(is_corrected, cells)):,}", "got another class"),
            ("Agreement", *_agreement(content["agreement"])),
        ]
    )
    rows = [
        ["Patient (pseudonym)", case["pseudonym"]],
        ["Slide", case["slide"]],
        ["Stain", case["stain"]],
        ["Notes", clean(case["notes"].replace("\n", " "), LONGEST_NOTES)],
        ["Case begun", _moment(case["created"])],
        ["Model", f"{model['name']}, version {model['version']}; trained on {model['data']}"],
        ["SHA-256 of the model", model["sha256"]],
        ["SHA-256 of its contract", model["contract_sha256"]],
    ]
    unseen = sum(bool(cell["flag"]) and cell["label"] is None for cell in cells)
    words = f"{count(unseen, 'cell')} flagged as doubtful or novel and looked at by nobody."
    warning = [Paragraph(words, "warning")] if unseen else []
    return [facts, *warning, _table([row for row in rows if row[1]])]


def _differential(content: Content) -> list[Block]:
    shares = content["differential"]
    by_model = {share["name"]: share for share in shares["model"]}
    rows = [
        [_class(share["name"]), *_figures(share), *_figures(by_model.get(share["name"]))]
        for share in shares["reviewer"]
    ]
    head = ["Class", "Reviewer: cells", "share", "95 % interval", "Model: cells", "share",
            "95 % interval"]  # fmt: skip
    totals = [leukocytes(shares["reviewer"]), leukocytes(shares["model"])]
    caption = (
        f"Shares are of the leukocytes: {totals[0]:,} by the reviewer's classes, {totals[1]:,} by "
        "the model's. What is no leukocyte is counted beside them. Intervals are Wilson's; they "
        "say what counting so few cells leaves open, not what a wrong class does."
    )
    table = Table(caption, head, rows, frozenset({0}))
    return [table, *([_plot(shares)] if any(totals) else [])]


def _plot(shares: Mapping[str, Sequence[Mapping[str, Any]]]) -> Plot:
    """Both differentials, the reviewer's line above the model's."""
    data = pd.DataFrame(
        [
            {"class": _class(share["name"]), "reader": reader}
            | {name: share[name] for name in ("share", "low", "high")}
            for reader in ("reviewer", "model")
            for share in shares[reader]
            if share["share"] is not None
        ]
    )
    names = list(dict.fromkeys(data["class"]))
    with figures.style():
        figure = Figure(figsize=(6.6, 0.75 + 0.26 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        looks = (("reviewer", figures.BLUE, "o", -0.15), ("model", figures.MUTED, "D", 0.15))
        for reader, colour, marker, shift in looks:
            part = data[data["reader"] == reader]
            y = [names.index(name) + shift for name in part["class"]]
            axes.hlines(y, 100 * part["low"], 100 * part["high"], color=colour, linewidth=1.4)
            axes.plot(100 * part["share"], y, marker, color=colour, markersize=4, label=reader)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("% of leukocytes")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        figure.legend(loc="outside upper right", ncols=2)
        alt = "Share of each class by reviewer and model with 95 % intervals, as in the table"
        drawing = figures.drawing(figure, "differential", data, alt)
    return Plot([drawing], "Share of leukocytes by class, with 95 % intervals.")


def _agreement(found: Mapping[str, Any]) -> tuple[str, str]:
    """The share of cells that both give the same class, and what to know of it."""
    if found["share"] is None:
        return "undefined", found["reason"]
    kappa = "" if found["kappa"] is None else f"; kappa {found['kappa']:.2f}"
    note = f"{_interval(found)} of {count(found['n'], 'cell')}, unchanged ones as agreed{kappa}"
    return percent(found["share"]), note


def _corrected(cells: Sequence[CellContent], picture: Picture) -> list[Block]:
    items = [
        Shown(
            _embedded(image_of(cell, picture)),
            f"cell {cell['id']}",
            [f"{_class(cell['predicted'], 28)} ({percent(cell['confidence'])})",
             f"→ {_class(shown(cell), 28)}"],
        )
        for cell in cells[:MOST_PICTURES]
    ]  # fmt: skip
    caption = "The model's class with its confidence, then the reviewer's."
    more = len(cells) - len(items)
    if more > 0:
        caption += f" {more:,} more corrected cells are in the CSV export."
    return [Pictures(items, caption)]


def _comments(cells: Sequence[CellContent]) -> list[Block]:
    having = [cell for cell in cells if cell["comment"]]
    items = [
        f"Cell {cell['id']}, {_class(shown(cell))}, {_name(cell['image'])}: "
        + clean(cell["comment"].replace("\n", " "), LONGEST_COMMENT)
        for cell in having[:MOST_COMMENTS]
    ]
    more = len(having) - len(items)
    return [List([*items, *([f"{more:,} more comments are in the CSV export."] if more else [])])]


def _signature(content: Content) -> list[Block]:
    signed = content["signed"]
    if signed is None:
        return [Paragraph("Not signed: nobody stands for these figures yet.", "warning")]
    rows = [
        ["Signed by", signed["by"]],
        ["At", _moment(signed["at"])],
        ["Reason of the amendment", signed["reason"]],
        ["SHA-256 of the signed content", signed["sha256"]],
    ]
    text = (
        "Signed electronically with the account's password. The hash also stands in the audit log, "
        "so that this report can be checked against what was signed."
    )
    return [_table([row for row in rows if row[1]]), Paragraph(text, "quiet")]


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """Names and what they are, without a head."""
    return Table("", ["", ""], rows, frozenset({1}))


def _figures(share: Mapping[str, Any] | None) -> list[str]:
    """Count, share and interval of one class; empty where there is none."""
    if share is None:
        return ["", "", ""]
    if share["share"] is None:
        return [f"{share['count']:,}", "", ""]
    return [f"{share['count']:,}", percent(share["share"]), _interval(share)]


def _interval(found: Mapping[str, Any]) -> str:
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _class(name: str, most: int = LONGEST_NAME) -> str:
    return _name(spelled(name), most)


def _name(text: str, most: int = LONGEST_NAME) -> str:
    return clean(text, most)


def _moment(text: str) -> str:
    """An ISO time as it is read: 2026-11-21 08:30 UTC."""
    moment = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _embedded(data: bytes) -> str:
    """The picture as a small JPEG in a `data:` URI; a grey square where it can't be decoded."""
    try:
        image = Image.fromarray(read_bytes_image(data))
    except UnreadableError:
        image = Image.new("RGB", (SIDE, SIDE), "#d5d9df")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
