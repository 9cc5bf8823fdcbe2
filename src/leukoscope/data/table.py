"""The csv file that lists images, read strictly: every fault is named with its line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from leukoscope.errors import InputError, nearest, some


def read_table(src: Path) -> tuple[list[int], list[dict[str, str]]]:
    """The csv's line numbers and records, values stripped; InputError where it is no such table."""
    try:
        text = src.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{src} is not UTF-8 text", fix="Save it as CSV UTF-8.") from None
    except OSError as problem:
        raise InputError(f"Can't read {src}: {problem.strerror}", fix="Check the path.") from None
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
    try:
        numbered = [
            (reader.line_num, [v.strip() for v in values]) for values in reader if any(values)
        ]
    except csv.Error as problem:
        raise InputError(f"{src} is no csv: {problem}", fix="Save it as CSV UTF-8.") from None
    columns = [name.lower() for name in numbered[0][1]] if numbered else []
    for needed in ("image", "label"):
        if columns.count(needed) != 1:
            near = nearest(needed, columns)
            raise InputError(
                f"{src} needs exactly one column {needed!r}; its columns are "
                f"{some(columns, 12) or 'none'}",
                fix=f"Rename {near!r} to {needed!r}." if near else f"Add the column {needed!r}.",
                field=needed,
            )
    if len(numbered) == 1:
        raise InputError(f"{src} has a header but no rows", fix="Add one row an image.")
    refuse_lines(src, "more values than columns", [n for n, v in numbered if len(v) > len(columns)])
    refuse_lines(src, "a null byte", [n for n, v in numbered if any("\0" in value for value in v)])
    blank = [""] * len(columns)
    return [n for n, _ in numbered[1:]], [
        dict(zip(columns, values + blank[len(values) :], strict=True)) for _, values in numbered[1:]
    ]


def refuse_lines(src: Path, what: str, lines: list[int]) -> None:
    """InputError naming the lines, where there are any."""
    if lines:
        raise InputError(
            f"{src} has {what} in line {some([str(n) for n in lines])}",
            fix="Correct or remove these rows.",
            field="src",
        )
