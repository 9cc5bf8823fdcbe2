"""Images by their SHA-256: written once, whole and durable; small copies made when asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from leukoscope.errors import InputError
from leukoscope.files import atomic, explain_os_errors, output_folder, sha256_of, sync_folder
from leukoscope.review.decoding import Decoder
from leukoscope.review.problems import NotFound

THUMBNAILS = (96, 256)
_SHOWN = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif"}


class Blobs:
    """Content-addressed files in a folder (final): `blobs/ab/abcd…`, `derived/…` can be deleted.

    `decoder` looks into them.
    """

    def __init__(self, folder: Path, decoder: Decoder | None = None) -> None:
        self.folder = output_folder(folder / "blobs")
        self.derived = output_folder(folder / "derived")
        self.incoming = output_folder(folder / "incoming")
        self.decoder = decoder or Decoder()

    def path(self, sha256: str) -> Path:
        """Where the bytes of that hash lie; NotFound where they don't."""
        path = self.place(sha256)
        if not path.is_file():
            raise NotFound(f"The image {sha256[:12]} is missing", fix="Restore the folder.")
        return path

    def place(self, sha256: str) -> Path:
        """Where the bytes of that hash lie or will lie; InputError where it is no hash."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise InputError(f"{sha256!r} is no SHA-256", field="sha256")
        return self.folder / sha256[:2] / sha256

    def put(self, data: bytes) -> str:
        """Store bytes; their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        place = self.place(sha256)
        if not _whole(place, len(data)):
            with atomic(place, within=self.incoming) as temporary:
                temporary.write_bytes(data)
        return sha256

    def take(self, path: Path) -> str:
        """Store a file; its SHA-256. The file itself stays, as a link to the same bytes: never
        write to it again, delete it once what it is has been noted."""
        sha256 = sha256_of(path)
        place = self.place(sha256)
        if not _whole(place, path.stat().st_size):
            with atomic(place, within=self.incoming) as temporary:
                temporary.unlink()
                try:
                    os.link(path, temporary)
                except OSError:  # a file system without links
                    shutil.copyfile(path, temporary)
        return sha256

    def pixels(self, sha256: str) -> np.ndarray:
        """The image, uint8 RGB (H, W, 3); UnreadableError, with the reason alone, if it is none."""
        return self.decoder.pixels(self.path(sha256))

    def thumbnail(self, sha256: str, size: int) -> Path:
        """A WebP whose longer side is at most `size`, one of THUMBNAILS, made once."""
        if size not in THUMBNAILS:
            raise InputError(
                f"A thumbnail has {' or '.join(map(str, THUMBNAILS))} px, not {size}", field="size"
            )
        make = self.decoder.picture
        return self.derive(f"{size}", sha256, ".webp", lambda: make(self.path(sha256), size))

    def shown(self, sha256: str) -> tuple[Path, str]:
        """The image as a browser can show it, and its media type: the file itself, or a PNG."""
        path = self.path(sha256)
        with path.open("rb") as handle:
            head = handle.read(4)
        kind = next((kind for magic, kind in _SHOWN.items() if head.startswith(magic)), None)
        if kind:
            return path, kind
        made = self.derive("shown", sha256, ".png", lambda: self.decoder.picture(path))
        return made, "image/png"

    def derive(self, kind: str, name: str, suffix: str, make: Callable[[], bytes]) -> Path:
        """The path of a derived file, made at the first demand; `name` starts with a hash."""
        place = self.derived / kind / name[:2] / f"{name}{suffix}"
        # A power cut may leave an empty one: these aren't written durably.
        if not place.is_file() or not place.stat().st_size:
            data = make()
            with atomic(place, durable=False, within=self.incoming) as temporary:
                temporary.write_bytes(data)
        return place

    def tidy(self, expected: Collection[str]) -> None:
        """Delete what a kill left half-written: all in `incoming` that no upload goes on with.

        expected: the ids of uploads that are being received. Only where nobody else is writing.
        """
        with explain_os_errors(self.incoming):
            for path in self.incoming.iterdir():
                if path.name not in expected:
                    path.unlink()


def _whole(place: Path, size: int) -> bool:
    """Whether the bytes lie there, for good: whoever stored them a moment ago may not be through
    with it, and what a power cut or a full disk cut short is written anew."""
    if not place.is_file() or place.stat().st_size != size:
        return False
    sync_folder(place.parent)
    return True


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds a folder."""
    with explain_os_errors(folder):
        return shutil.disk_usage(folder).free
