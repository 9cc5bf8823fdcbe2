"""What runs in the decoders' processes: all that looks into files from outside.

A process gets its limits once, then one request after the other, and answers each with messages:
JSON, followed by as many pieces of bytes as it says. Nothing that it sends is ever unpickled, it
can write no file, and where it crashes, only the file at hand is lost (review.decoding).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from leukoscope.bundle.contract import Contract
from leukoscope.bundle.inference import prepare
from leukoscope.errors import LeukoscopeError, UnreadableError
from leukoscope.imaging import cells as imaging_cells
from leukoscope.imaging.quality import flags
from leukoscope.imaging.read import png, read_bytes, read_bytes_image
from leukoscope.review import archives, files
from leukoscope.tables import Table

TOGETHER = 32
"""Cells of a field that one request cuts out: each has some 700 kB with its picture."""


class Limits(Table):
    """What one file may cost. `pixels` is width x height, `file_bytes` of a file or an archive's
    member; `seconds` pass until an answer, or its next part, comes, of which the process may
    compute `cpu_seconds`; `memory` are bytes beyond what its libraries take."""

    pixels: Annotated[int, Field(ge=1)] = 100_000_000
    file_bytes: Annotated[int, Field(ge=1)] = 200_000_000
    cells: Annotated[int, Field(ge=1)] = imaging_cells.MOST
    members: Annotated[int, Field(ge=1)] = 5_000
    archive_bytes: Annotated[int, Field(ge=1)] = 2_000_000_000
    ratio: Annotated[int, Field(ge=1)] = 200
    seconds: Annotated[float, Field(gt=0)] = 120.0
    cpu_seconds: Annotated[int, Field(ge=1)] = 60
    memory: Annotated[int, Field(ge=1)] = 3_000_000_000


Message = tuple[dict[str, Any], Sequence[bytes | memoryview]]
BEHIND = 10
"""How much nicer a decoder is than the server (nice(2)): files come as fast as they are taken, so
decoding them would take as much of the processors as answering people."""


def work(connection: Connection, limits: str, contract: str) -> None:
    """The process: answer until the server hangs up. `limits`, `contract`: as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the server's
    allowed = Limits.model_validate_json(limits)
    opener = Opener(allowed, Contract.model_validate_json(contract) if contract else None)
    cv2.setNumThreads(1)  # there is a process a core
    _confine(allowed.memory)
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(json.dumps({"ready": True, "parts": 0}).encode())
        while True:
            request = json.loads(connection.recv_bytes())
            _allow(allowed.cpu_seconds)
            for header, parts in _answer(opener, request):
                connection.send_bytes(json.dumps({**header, "parts": len(parts)}).encode())
                for part in parts:
                    connection.send_bytes(part)
                _allow(allowed.cpu_seconds)


def _confine(memory: int) -> None:
    """No more memory than that, no files, no core dumps of patients' images; where the processors
    are busy, people who review come first, and where the whole machine's memory ends, this process
    is the one to go. Without effect where the system has no such limits: there only
    `Limits.seconds` holds."""
    try:
        import resource
    except ImportError:
        return
    os.nice(BEHIND)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
        taken = int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        taken = 2**30
    for limit, most in (
        (resource.RLIMIT_AS, taken + memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _allow(seconds: int) -> None:
    """So much processor time from now on; then the system ends the process."""
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answer(opener: Opener, request: dict[str, Any]) -> Iterator[Message]:
    """The messages of one request; the last one says `done`, `error` or `bug`."""
    try:
        task: Callable[..., Iterator[Message]] = getattr(opener, request.pop("task"))
        yield from task(Path(request.pop("path")), **request)
    except LeukoscopeError as problem:
        yield {"error": problem.message, "fix": problem.fix}, ()
    except (MemoryError, cv2.error) as problem:
        if isinstance(problem, cv2.error) and problem.code != cv2.Error.StsNoMem:
            yield {"bug": traceback.format_exc()}, ()
            return
        most = opener.limits.memory
        why = f"it needs more than the {most:,} bytes of memory that a decoder may take"
        yield {"error": why, "fix": "Cut or shrink it first."}, ()
    except Exception:  # noqa: BLE001 - the server logs it
        yield {"bug": traceback.format_exc()}, ()
    else:
        yield {"done": True}, ()


class Opener:
    """The requests (final): each method is one, a generator of messages."""

    def __init__(self, limits: Limits, contract: Contract | None) -> None:
        self.limits = limits
        self.contract = contract

    def pixels(self, path: Path) -> Iterator[Message]:
        """The image, uint8 RGB (H, W, 3)."""
        image = self._image(path)
        yield {"shape": image.shape}, (image.data.cast("B"),)

    def picture(self, path: Path, size: int) -> Iterator[Message]:
        """The image as a PNG; with `size` as a WebP whose longer side is at most that."""
        if not size:
            yield {}, (png(self._image(path)),)
            return
        image = Image.fromarray(self._image(path))
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "WEBP", quality=88, method=2)
        yield {}, (out.getvalue(),)

    def prepared(self, path: Path) -> Iterator[Message]:
        """The image as the model takes it, float32 (3, h, w)."""
        yield {}, (self._prepared(self._image(path)),)

    def opened(self, path: Path, kind: str) -> Iterator[Message]:
        """What it shows, then its cell, or its first cells."""
        image = self._image(path)
        opened = files.opened(image, kind, self.limits.cells)
        places = [[box.x, box.y, box.width, box.height] for box in opened.boxes]
        height, width = image.shape[:2]
        yield {"kind": opened.kind, "width": width, "height": height, "boxes": places}, ()
        if opened.kind == "cell":
            yield self._cell(image, b"")
        yield from self._cells(image, opened.boxes[:TOGETHER])

    def cut(self, path: Path, boxes: list[list[int]]) -> Iterator[Message]:
        """The cells in these boxes."""
        yield from self._cells(self._image(path), [imaging_cells.Box(*box) for box in boxes])

    def unpacked(self, path: Path, start: int) -> Iterator[Message]:
        """The files in a zip from number `start` on: see archives.members."""
        yield from archives.members(path, start, self.limits)

    def _image(self, path: Path) -> np.ndarray:
        size = path.stat().st_size
        if size > self.limits.file_bytes:
            raise UnreadableError(
                f"it has {size:,} bytes, more than the {self.limits.file_bytes:,} allowed",
                fix="Cut it into smaller images.",
            )
        data = read_bytes(path, max_pixels=self.limits.pixels)
        return read_bytes_image(data, max_pixels=self.limits.pixels)

    def _cells(self, image: np.ndarray, boxes: Sequence[imaging_cells.Box]) -> Iterator[Message]:
        for box in boxes:
            (cell,) = imaging_cells.crop(image, [box])
            yield self._cell(cell, png(cell))

    def _cell(self, image: np.ndarray, picture: bytes) -> Message:
        height, width = image.shape[:2]
        header = {"width": width, "height": height, "quality": flags(image)}
        return header, (self._prepared(image), picture)

    def _prepared(self, image: np.ndarray) -> memoryview:
        assert self.contract is not None
        return np.ascontiguousarray(prepare(image, self.contract)).data.cast("B")
