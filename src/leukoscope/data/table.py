"""Tables from files, read strictly: the csv that lists images, and any parquet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leukoscope.errors import InputError, nearest, some
from leukoscope.files import atomic


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


def read_parquet(
    path: Path, what: str, *, fix: str, field: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """The table of a parquet file, or those of the `columns` that it has, verified.

    Raises InputError saying why it isn't `what`.
    """
    # os.path, because pathlib raises on names that are too long.
    if not os.path.isfile(path):  # noqa: PTH113
        got = "a folder" if os.path.isdir(path) else "nothing there"  # noqa: PTH112
        raise InputError(f"{path} can't be read as {what}: {got}", fix=fix, field=field)
    try:
        # Arrow's own file: its threads may let go of one of Python's only while the interpreter
        # ends, which aborts the process (https://github.com/apache/arrow/issues/50482). Bytes,
        # since Arrow takes no str that isn't UTF-8.
        with pa.OSFile(os.fsencode(path)) as handle:
            about = pq.read_metadata(handle)
            _refuse_bomb(about, handle.size(), path)
            if columns is not None:
                columns = [name for name in about.schema.to_arrow_schema().names if name in columns]
            handle.seek(0)
            table = pq.read_table(handle, columns=columns, partitioning=None)
        table.validate(full=True)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as problem:  # names of columns
        why = str(problem).split("\n")[0].split(". ")[0]
        raise InputError(
            f"{path} can't be read as {what}: it is no parquet file ({why})", fix=fix, field=field
        ) from None
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise InputError(
            f"{path} can't be read as {what}: it has several columns {some(twice)}",
            fix=fix,
            field=field,
        )
    return table


def _refuse_bomb(about: pq.FileMetaData, size: int, path: Path) -> None:
    """InputError for rows or bytes that a file of `size` bytes holds only where they are all alike:
    a kilobyte can say a billion rows. Every row of ours names an image of its own."""
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    stored = sum(max(0, group.total_byte_size) for group in groups)
    # Said in two places, which needn't agree; room is made for what the groups say.
    rows = max(about.num_rows, sum(max(0, group.num_rows) for group in groups))
    if rows > 10**6 + 100 * size or stored > 2**26 + 1000 * size:
        raise InputError(
            f"{path} has {size:,} bytes, which unpack to {rows:,} rows of {stored:,} "
            "bytes; allowed: 100 rows and 1000 bytes a byte of the file",
            fix="Write the table anew without compression.",
            field="source",
        )


def as_lists(table: pa.Table, names: Sequence[str], path: Path) -> dict[str, list[Any]]:
    """Columns as Python values; InputError where a value has no such (the year 300,000, say)."""
    found = {}
    for name in names:
        try:
            found[name] = table[name].to_pylist()
        except Exception as problem:  # noqa: BLE001 - every type of column has errors of its own
            raise InputError(
                f"{path} has values in the column {name!r} that can't be read: {problem}",
                fix=f"Remove the column or write it as text, not as {table[name].type}.",
                field=name,
            ) from None
    return found


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a parquet file atomically; InputError where that can't be."""
    with atomic(path) as temporary, temporary.open("wb") as handle:
        pq.write_table(table, handle, compression="zstd")
