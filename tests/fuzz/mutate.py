"""Damage that a blind change of bytes would never reach, because a format's checks stand before it.

A parquet table is changed as a table, JSON and TOML as trees, PNG chunk by chunk with right sums.
All of it hangs on one `random.Random`, which libFuzzer seeds and hypothesis draws from.
"""

from __future__ import annotations

import datetime
import decimal
import io
import json
import random
import struct
import tomllib
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

ODD: tuple[Any, ...] = (
    "", " ", "\0", "a\nb", "\x1b[31m", "\u202e", "NA", "nan", "None", "1.0", "1e999", "-1",
    "é" * 40, "x" * 3000, "../../../etc/passwd", "/dev/zero", "a/../a", "=1+1", "test", "train",
    "P1", "[", "70/15/15", "inf/1/1", "0/0/100", "resize", "dense", "lymphocyte",
    0, 1, 2, -1, 255, 2**31, 2**63 - 1, -(2**63), 2**64, 10**400, 0.0, -0.0, 0.5, 1.0, -1.5, 1e-320,
    1e308, float("nan"), float("inf"), float("-inf"), True, False, None, [], [[]], [None], {},
    {"": {}}, {"step": "resize"}, {"step": "resize", "size": [8, 8]},
    {"operation": "rotate", "p": 2.0}, {"layer": "relu"},
    datetime.date(1, 1, 1), datetime.datetime(9999, 12, 31, 23), datetime.time(1),
)  # fmt: skip
ODD_BYTES = (b"", b"\0", b"\xff\xfe", b"PAR1", b"\xff\xff\xff\x7f", b"\xff" * 8, b"9" * 5000, b'"')
NAMES = ("image", "label", "patient", "slide", "source", "mask", "width", "height", "sha256",
         "phash", "thumbnail", "colour", "size", "mtime_ns", "fold", "role", "predicted", "view",
         "prob_lymphocyte", "prob_", "prob_0", "LABEL", "", "a.b", "\udce9")  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four changes in its own format; of bytes where it has none of them."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _kind(data)(data, rng)
    return data


def _kind(data: bytes) -> Callable[[bytes, random.Random], bytes]:
    if data.startswith(b"PAR1"):
        return _parquet
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png
    if data.lstrip().startswith(b"{"):
        return _json
    return _toml if b" = " in data and b"\0" not in data else _bytes


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Something put in, taken out, doubled or overwritten."""
    start, length = rng.randint(0, len(data)), rng.choice((0, 1, 1, 2, 4, 8, 64))
    new = rng.choice(
        (rng.choice(ODD_BYTES), bytes([rng.randrange(256)]), data[start:][:length] * 2)
    )
    return data[:start] + new + data[start + length :]


# --- trees ----------------------------------------------------------------------------------------


def _json(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(_tree(json.loads(data), rng), default=str).encode()
    except (ValueError, RecursionError):  # damaged already, or deeper than can be written
        return _bytes(data, rng)


def _toml(data: bytes, rng: random.Random) -> bytes:
    try:
        tree = _tree(tomllib.loads(data.decode()), rng)
        return tomli_w.dumps(tree).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):  # TOML knows no null
        return _bytes(data, rng)


def _tree(tree: Any, rng: random.Random) -> Any:
    """One place of the tree changed."""
    places = list(_places(tree))
    if not places:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    kind = rng.randrange(7)
    if kind < 3:
        holder[key] = rng.choice(ODD)
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        other, place = rng.choice(places)
        holder[key] = _copied(other[place]) if place in other or isinstance(other, list) else 0
    elif kind == 5:
        for _ in range(rng.choice((1, 2, 1000))):
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
    elif isinstance(holder, list):
        holder.insert(rng.randint(0, len(holder)), _copied(holder[key]))
    else:
        holder[rng.choice((key + "s", key[::-1], "", *NAMES[:-1]))] = holder.pop(key)
    return tree


def _places(tree: Any) -> Any:
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _copied(value: Any) -> Any:
    """Since a tree that holds itself has no end."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


# --- tables ---------------------------------------------------------------------------------------

_TYPES = (
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int8(), pa.uint64(),
    pa.float16(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("ns", "Europe/Berlin"),
    pa.duration("s"), pa.decimal128(20, 3), pa.list_(pa.int32()),
    pa.dictionary(pa.int8(), pa.string()),
    pa.null(), pa.struct([("a", pa.string())]), pa.map_(pa.string(), pa.int64()), pa.binary(4),
)  # fmt: skip
_WRITTEN = ("none", "snappy", "gzip", "zstd", "brotli", "lz4")


def _parquet(data: bytes, rng: random.Random) -> bytes:
    try:
        about = pq.read_metadata(io.BytesIO(data))
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        stored = sum(group.total_byte_size for group in groups)
        rows = max([about.num_rows, *(group.num_rows for group in groups)])
        if rows > 1000 or stored > 2**20:  # a bomb: for the reader to refuse, not for us
            return _bytes(data, rng)
        table = pq.read_table(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - damaged already
        return _bytes(data, rng)
    try:
        table = _table(table, rng)
        out = io.BytesIO()
        pq.write_table(
            table, out, compression=rng.choice(_WRITTEN), use_dictionary=rng.random() < 0.3,
            write_statistics=False, store_schema=rng.random() < 0.7,
            data_page_version=rng.choice(("1.0", "2.0")),
            row_group_size=rng.choice((1, 2, None)) if table.num_rows < 100 else None,
        )  # fmt: skip
    except (
        pa.ArrowException,
        ValueError,
        TypeError,
        OverflowError,
        UnicodeError,
        decimal.DecimalException,
    ):
        return _bytes(data, rng)
    return out.getvalue()


def _table(table: pa.Table, rng: random.Random) -> pa.Table:
    """Metadata, rows, or a column changed."""
    names, kind = table.column_names, rng.randrange(9)
    if kind == 0 or not names:
        return _metadata(table, rng)
    if kind == 1:
        rows = (
            [rng.randrange(table.num_rows) for _ in range(rng.randrange(8))] if len(table) else []
        )
        return table.take(pa.array(rows, pa.int64()))
    at = rng.randrange(len(names))
    if kind == 2:
        return table.remove_column(at)
    if kind == 3:
        names[at] = rng.choice(NAMES)
        return table.rename_columns(names)
    if kind == 4:
        return table.append_column(rng.choice(NAMES), table.column(rng.randrange(len(names))))
    if kind == 5:
        return table.set_column(
            at, names[at], table.column(at).cast(rng.choice(_TYPES), safe=False)
        )
    if kind == 6:  # text that is no UTF-8
        raw = pa.array([bytes([rng.randrange(256)]) * 3] * len(table), pa.binary()).view(
            pa.string()
        )
        return table.set_column(at, names[at], raw)
    values = table.column(at).to_pylist()
    odd = rng.choice(ODD)
    if kind == 7 and values:
        values[rng.randrange(len(values))] = odd
    else:
        values = [odd] * len(values)
    return table.set_column(at, names[at], pa.array(values))


def _metadata(table: pa.Table, rng: random.Random) -> pa.Table:
    about = dict(table.schema.metadata or {})
    key = rng.choice((b"leukoscope", b"leukoscope", b"pandas"))
    return table.replace_schema_metadata(about | {key: _json(about.get(key, b"{}"), rng)})


# --- PNG ------------------------------------------------------------------------------------------


def _png(data: bytes, rng: random.Random) -> bytes:
    """A chunk's content changed, or a chunk added, moved or left out; the sums are right again."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        chunks.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return _bytes(data, rng)
    place = rng.randrange(len(chunks))
    name, content = chunks.pop(place)
    kind = rng.randrange(6)
    if kind < 3:
        content = _inflated(content, rng) if name == b"IDAT" and kind else _bytes(content, rng)
        chunks.insert(place, (name, content))
    elif kind == 3:
        known = (b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"eXIf", b"zTXt", b"acTL", b"fcTL", b"IDAT")
        chunks.insert(place, (rng.choice(known), content))
    elif kind == 4:
        chunks.insert(rng.randint(0, len(chunks)), (name, content))
    return data[:8] + b"".join(
        struct.pack(">I4s", len(c), n) + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )


def _inflated(content: bytes, rng: random.Random) -> bytes:
    try:
        return zlib.compress(_bytes(zlib.decompress(content), rng))
    except zlib.error:
        return _bytes(content, rng)
