"""What came in: safe names, archives opened within limits, single cells told from fields."""

from __future__ import annotations

import hashlib
import io
import logging
import lzma
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from leukoscope.errors import InputError, UnreadableError
from leukoscope.imaging import cells as imaging_cells
from leukoscope.review.blobs import Blobs
from leukoscope.review.problems import text
from leukoscope.review.settings import Settings

log = logging.getLogger("leukoscope.review")
RATIO = 200
"""How many times its packed size a member may have; images hardly shrink at all."""
DIRECTORY_BYTES = 10_000_000
"""The longest list of files of an archive: it is read whole before they can be counted."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError)
_PIECE = 1_000_000
_IGNORED = {"thumbs.db", "desktop.ini", ".ds_store"}
# Of `shows`: how much longer than wide a square may be; by how many of its largest cells across a
# picture is filled, or too far away; how far from its middle, in its sides, a centred cell may lie.
SQUARE, FILLED, FILLED_OBLONG, FARTHEST, CENTRED, MOST_NEIGHBOURS = 1.2, 1.5, 2.0, 8.0, 0.1, 5


def clean(name: str) -> str:
    """A name to show: its path without steps upwards, from the end where it is long."""
    parts = [p for p in name.replace("\\", "/").split("/") if p.strip() not in {"", ".", ".."}]
    return text("/".join(parts)[-255:], "name", least=1, most=255)


# --- archives -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A file from an archive: its place in it, its name, and its SHA-256 or why it isn't stored."""

    place: int
    name: str
    size: int
    sha256: str | None
    error: str = ""


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    with path.open("rb") as handle:
        return handle.read(4) in {b"PK\x03\x04", b"PK\x05\x06"}


def members(path: Path, blobs: Blobs, settings: Settings) -> Iterator[Member]:
    """Store the files of a zip, one by one, none larger than it may be.

    Raises UnreadableError where the whole archive can't be used: damaged, too many files, too many
    bytes. What is wrong with one file stands in it.
    """
    source = _Bounded(path.open("rb", buffering=0))
    try:
        archive = zipfile.ZipFile(source)
    except (*_DAMAGED, OSError, NotImplementedError):
        source.close()
        raise UnreadableError("the zip is damaged", fix="Make it anew.") from None
    with source, archive:
        infos = [one for one in archive.infolist() if not _ignored(one)]
        _check_sizes(infos, settings)
        total = 0
        for place, info in enumerate(infos):
            member = _unpack(archive, info, place, blobs, settings)
            total += member.size
            if total > settings.archive_bytes:  # sizes in a zip's list may lie
                raise UnreadableError(
                    f"the zip holds more than {settings.archive_bytes:,} bytes", fix="Divide it."
                )
            yield member


class _Bounded(io.BufferedReader):
    """A file of which no long piece is read at once, whatever length it says its list has."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a list of {size:,} bytes")
        return super().read(size)


def _ignored(info: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(info.filename.replace("\\", "/").lower()).parts
    return info.is_dir() or not parts or parts[-1] in _IGNORED or "__macosx" in parts


def _check_sizes(infos: list[zipfile.ZipInfo], settings: Settings) -> None:
    if not infos:
        raise UnreadableError("the zip holds no files", fix="Pack images into it.")
    if len(infos) > settings.archive_members:
        raise UnreadableError(
            f"the zip holds {len(infos):,} files; allowed: {settings.archive_members:,}",
            fix="Divide it.",
        )
    total = sum(info.file_size for info in infos)
    if total > settings.archive_bytes:
        raise UnreadableError(
            f"the zip holds {total:,} bytes; allowed: {settings.archive_bytes:,}", fix="Divide it."
        )


def _unpack(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: int, blobs: Blobs, settings: Settings
) -> Member:
    try:
        name = clean(info.filename)
    except InputError:
        name = f"file {place + 1}"
    target = blobs.incoming / secrets.token_hex(16)
    try:
        size = _copy(archive, info, target, settings.file_bytes)
        if is_archive(target):
            raise UnreadableError("it is a zip inside a zip, which isn't opened")
        return Member(place, name, size, blobs.take(target))
    except UnreadableError as problem:
        return Member(place, name, 0, None, problem.message)
    except _DAMAGED:
        return Member(place, name, 0, None, "it is damaged inside the zip")
    except (NotImplementedError, RuntimeError):  # what zipfile raises without a password
        return Member(place, name, 0, None, "it is encrypted, or packed in a way not known here")
    except Exception:
        log.exception("member %d of an archive can't be unpacked", place)
        return Member(place, name, 0, None, "it can't be unpacked; the server's log has more")
    finally:
        target.unlink(missing_ok=True)


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, most: int) -> int:
    limit = min(most, RATIO * max(info.compress_size, 10_000))
    size = 0
    with archive.open(info) as source, target.open("wb") as handle:
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise UnreadableError(
                    f"it has more than {most:,} bytes"
                    if size > most
                    else f"it unpacks to more than {RATIO} times its size"
                )
            handle.write(piece)
    if size == 0:
        raise UnreadableError("the file is empty")
    return size


def member_id(archive_id: str, place: int) -> str:
    """The id of an archive's member, the same at every run."""
    return hashlib.sha256(f"{archive_id}/{place}".encode()).hexdigest()[:32]


# --- from files to cells --------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A file that was read as an image: what it shows, and where."""

    image: np.ndarray
    kind: Literal["cell", "field"]
    boxes: tuple[imaging_cells.Box, ...]


def opened(image: np.ndarray, kind: str) -> Opened:
    """What an image, uint8 RGB (H, W, 3), shows; `auto` decides by `shows`."""
    if kind == "cell":
        return Opened(image, "cell", ())
    boxes = imaging_cells.find_cells(image)
    found = shows(image.shape[1], image.shape[0], boxes) if kind == "auto" else "field"
    return Opened(image, found, tuple(boxes) if found == "field" else ())


def shows(width: int, height: int, boxes: Sequence[imaging_cells.Box]) -> Literal["cell", "field"]:
    """Whether a picture of that size with these cells in it is of a single cell, or a field.

    A picture of one cell is filled by it, or has it in its middle; no scale is assumed. A square
    picture in which no cell is found counts as one, lest it be lost; one that isn't square, as a
    field. Thresholds: chosen on one half of benchmarks/kinds.py's images, confirmed on the other.
    """
    longer, square = max(width, height), max(width, height) <= SQUARE * min(width, height)
    if not boxes:
        return "cell" if square else "field"
    largest = max(max(box.width, box.height) for box in boxes)
    if len(boxes) > MOST_NEIGHBOURS or longer > FARTHEST * largest:
        return "field"
    if longer < (FILLED if square else FILLED_OBLONG) * largest:
        return "cell"
    # The largest isn't always the one meant: a neighbour may be larger.
    centred = any(
        2 * max(box.width, box.height) >= largest
        and max(abs(box.x + box.width / 2 - width / 2), abs(box.y + box.height / 2 - height / 2))
        <= CENTRED * longer
        for box in boxes
    )
    return "cell" if square and centred else "field"
