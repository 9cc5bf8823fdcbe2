"""A zip from outside, unpacked within limits: runs in a decoder's process (review.untrusted)."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from leukoscope.errors import InputError, UnreadableError
from leukoscope.review.problems import clean

if TYPE_CHECKING:
    from leukoscope.review.untrusted import Limits

ENTRY_BYTES = 2_000
"""Room for a file in an archive's list, which is read whole before its files can be counted."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError)
_PIECE = 1_000_000
_IGNORED = {"thumbs.db", "desktop.ini", ".ds_store"}

Message = tuple[dict[str, Any], tuple[bytes, ...]]


def members(path: Path, start: int, limits: Limits) -> Iterator[Message]:
    """The files of a zip, in its order, from number `start` on: for each its {place, name}, its
    pieces, and {why}: why it can't be used, or "".

    Raises UnreadableError where the whole archive can't be used: damaged, too many files, too many
    bytes.
    """
    source = _Bounded(path.open("rb", buffering=0))
    source.most = limits.members * ENTRY_BYTES
    try:
        archive = zipfile.ZipFile(source)
    except (*_DAMAGED, OSError, NotImplementedError):
        source.close()
        raise UnreadableError("the zip is damaged", fix="Make it anew.") from None
    with source, archive:
        infos = [one for one in archive.infolist() if not _ignored(one)]
        _check_sizes(infos, limits)
        for place, info in enumerate(infos[start:], start):
            yield {"place": place, "name": _name(info, place)}, ()
            error = ""
            try:
                for piece in _pieces(archive, info, limits):
                    yield {}, (piece,)
            except UnreadableError as problem:
                error = problem.message
            except _DAMAGED:
                error = "it is damaged inside the zip"
            except (NotImplementedError, RuntimeError):  # what zipfile raises without a password
                error = "it is encrypted, or packed in a way not known here"
            except MemoryError:
                error = "it needs more memory to unpack than a decoder may take"
            except Exception as problem:  # noqa: BLE001 - unpackers raise nearly anything
                error = f"it can't be unpacked ({type(problem).__name__})"
            yield {"why": error}, ()


class _Bounded(io.BufferedReader):
    """A file of which no long piece is read at once, whatever length it says its list has."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise zipfile.BadZipFile(f"a list of {size:,} bytes")
        return super().read(size)


def _ignored(info: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(info.filename.replace("\\", "/").lower()).parts
    return info.is_dir() or not parts or parts[-1] in _IGNORED or "__macosx" in parts


def _name(info: zipfile.ZipInfo, place: int) -> str:
    try:
        return clean(info.filename)
    except InputError:
        return f"file {place + 1}"


def _check_sizes(infos: list[zipfile.ZipInfo], limits: Limits) -> None:
    if not infos:
        raise UnreadableError("the zip holds no files", fix="Pack images into it.")
    if len(infos) > limits.members:
        raise UnreadableError(
            f"the zip holds {len(infos):,} files; allowed: {limits.members:,}", fix="Divide it."
        )
    total = sum(info.file_size for info in infos)
    if total > limits.archive_bytes:
        raise UnreadableError(
            f"the zip holds {total:,} bytes; allowed: {limits.archive_bytes:,}", fix="Divide it."
        )


def _pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> Iterator[bytes]:
    most = limits.file_bytes
    limit = min(most, limits.ratio * max(info.compress_size, 10_000))
    size = 0
    with archive.open(info) as source:
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise UnreadableError(
                    f"it has more than {most:,} bytes"
                    if size > most
                    else f"it unpacks to more than {limits.ratio} times its size"
                )
            yield piece
    if size == 0:
        raise UnreadableError("the file is empty")
