"""What came in: safe names, archives opened within limits, single cells told from fields."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from leukoscope.errors import UnreadableError
from leukoscope.imaging import cells as imaging_cells
from leukoscope.review.problems import DecoderFailed, clean

if TYPE_CHECKING:
    from leukoscope.review.blobs import Blobs

# Of `shows`: how much longer than wide a square may be; by how many of its largest cells across a
# picture is filled, or too far away; how far from its middle, in its sides, a centred cell may lie.
SQUARE, FILLED, FILLED_OBLONG, FARTHEST, CENTRED, MOST_NEIGHBOURS = 1.2, 1.5, 2.0, 8.0, 0.1, 5

CRASHES = 3
"""Decoders that one archive may cost before the rest of it is given up."""


# --- archives -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A file from an archive: its place in it, its name, and its SHA-256 or why it isn't stored."""

    place: int
    name: str
    size: int
    sha256: str | None
    error: str = ""
    crashed: bool = False


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    with path.open("rb") as handle:
        return handle.read(4) in {b"PK\x03\x04", b"PK\x05\x06"}


def members(path: Path, blobs: Blobs) -> Iterator[Member]:
    """Store the files of a zip, one by one, within the limits of the store's decoder.

    Raises UnreadableError where the whole archive can't be used. What is wrong with one file, its
    decoder's crash included, stands in it.
    """
    known: dict[int, str] = {}
    start = total = 0
    for attempt in range(CRASHES):
        try:
            for member in _members(path, blobs, start, known):
                total += member.size
                if total > blobs.decoder.limits.archive_bytes:  # sizes in a zip's list may lie
                    raise UnreadableError(
                        f"the zip holds more than {blobs.decoder.limits.archive_bytes:,} bytes",
                        fix="Divide it.",
                    )
                yield member
                start = member.place + 1
        except DecoderFailed as problem:
            if start not in known or attempt + 1 == CRASHES:
                raise
            yield Member(start, known[start], 0, None, problem.message, crashed=True)
            start += 1
        else:
            return


def _members(path: Path, blobs: Blobs, start: int, known: dict[int, str]) -> Iterator[Member]:
    """Those from number `start` on; `known` takes the name of each that is begun."""
    target = blobs.incoming / secrets.token_hex(16)
    place, size = start, 0
    try:
        for said, pieces in blobs.decoder.stream("unpacked", path, start=start):
            if "place" in said:
                place, size = int(said["place"]), 0
                known[place] = clean(str(said["name"]))
                target.write_bytes(b"")
            elif "why" in said:
                yield _stored(target, blobs, place, known[place], size, str(said["why"]))
                target.unlink()
            else:
                with target.open("ab") as handle:
                    size += handle.write(pieces[0])
    finally:
        target.unlink(missing_ok=True)


def _stored(target: Path, blobs: Blobs, place: int, name: str, size: int, error: str) -> Member:
    if not error and is_archive(target):
        error = "it is a zip inside a zip, which isn't opened"
    return Member(place, name, size, None if error else blobs.take(target), error)


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


def opened(image: np.ndarray, kind: str, most: int = imaging_cells.MOST) -> Opened:
    """What an image, uint8 RGB (H, W, 3), shows, with at most so many cells; `auto` decides by
    `shows`."""
    if kind == "cell":
        return Opened(image, "cell", ())
    boxes = imaging_cells.find_cells(image, most)
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
