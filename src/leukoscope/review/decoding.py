"""Decoders: processes in which everything from outside is opened, so that a crash, a hang or a
file that swells beyond all measure costs that file and nothing else.

A process has one file at a time. Where it dies, or doesn't answer in time, it is replaced, and
whoever asked gets DecoderFailed with the reason in one sentence. Processes start when they are
first needed, by forks of a small one that has the libraries loaded (where the system has that).
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from leukoscope.bundle.contract import Contract
from leukoscope.errors import LeukoscopeError, UnreadableError
from leukoscope.imaging.cells import Box
from leukoscope.imaging.quality import FLAGS
from leukoscope.parallel import WORKERS
from leukoscope.review import untrusted
from leukoscope.review.problems import DecoderFailed
from leukoscope.review.untrusted import TOGETHER, Limits

log = logging.getLogger("leukoscope.review")
PROBLEM = "It can't be processed; the server's log has more"
WORK = untrusted.work
_START = 120.0  # seconds for a process to load its libraries
_PATIENCE = 10.0  # seconds for a process to end that has hung up

_way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_context: Any = multiprocessing.get_context(_way)
if _way == "forkserver":
    _context.set_forkserver_preload([untrusted.__name__])
_starting = threading.Lock()  # multiprocessing's own lists aren't made for threads

Answer = tuple[dict[str, Any], list[bytes]]


@dataclass(frozen=True)
class Cut:
    """A cell, cut out and prepared for the model, (3, h, w); `png` is its picture, b"" where it is
    the whole file."""

    width: int
    height: int
    quality: tuple[str, ...]
    prepared: np.ndarray
    png: bytes


@dataclass(frozen=True)
class Opened:
    """An image file: what it shows, its cells' boxes, and its cell or the first cells, cut out."""

    kind: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    cells: list[Cut]


class Decoder:
    """Opens files in processes of their own (final). Any thread may ask.

    `contract` says how cells are prepared; without one there are only pictures. One process more
    than cores, so that pictures come while a batch is read. All methods raise UnreadableError with
    the reason alone, DecoderFailed where the process failed.
    """

    def __init__(
        self, limits: Limits | None = None, contract: Contract | None = None, processes: int = 0
    ) -> None:
        self.limits = limits or Limits()
        self.contract = contract
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes or WORKERS + 1):
            self._idle.put(None)

    def warm(self) -> None:
        """Have the libraries loaded in the background, so that the first file needn't wait."""
        if _way == "forkserver":
            from multiprocessing import forkserver

            with _starting, _nameless_main():
                forkserver.ensure_running()

    def await_first(self) -> None:
        """Wait until a process has loaded its libraries."""
        process = self._idle.get()
        try:
            process = self._alive(process)
        finally:
            self._idle.put(process)

    def _alive(self, process: _Process | None) -> _Process:
        """The process, or a new one where there is none or it has ended."""
        if process is not None and process.alive:
            return process
        return _Process(self.limits, self.contract)

    def close(self) -> None:
        """End the processes that have nothing to do."""
        with contextlib.suppress(queue.Empty):
            while True:
                idle = self._idle.get_nowait()
                if idle is not None:
                    idle.end()

    def pixels(self, path: Path) -> np.ndarray:
        """The image, uint8 RGB (H, W, 3)."""
        said, (data,) = self._ask("pixels", path)
        return np.frombuffer(data, np.uint8).reshape(said["shape"])

    def picture(self, path: Path, size: int = 0) -> bytes:
        """The image as a PNG; with `size` as a WebP whose longer side is at most that."""
        return self._ask("picture", path, size=size)[1][0]

    def prepared(self, path: Path) -> np.ndarray:
        """The image as the model takes it, float32 (3, h, w)."""
        return self._array(self._ask("prepared", path)[1][0])

    def open(self, path: Path, kind: str) -> Opened:
        """What the image shows, `auto` to have that found out, with its first cells."""
        (said, _), *cells = self.stream("opened", path, kind=kind)
        boxes = tuple(Box(*(int(number) for number in box)) for box in said["boxes"])
        cut = [self._cut(answer) for answer in cells]
        return Opened(said["kind"], int(said["width"]), int(said["height"]), boxes, cut)

    def cut(self, path: Path, boxes: list[Box]) -> list[Cut]:
        """These cells of a field, TOGETHER at most."""
        assert len(boxes) <= TOGETHER
        places = [[box.x, box.y, box.width, box.height] for box in boxes]
        return [self._cut(answer) for answer in self.stream("cut", path, boxes=places)]

    def _cut(self, answer: Answer) -> Cut:
        said, (prepared, png) = answer
        quality = tuple(flag for flag in FLAGS if flag in said["quality"])
        return Cut(int(said["width"]), int(said["height"]), quality, self._array(prepared), png)

    def _array(self, data: bytes) -> np.ndarray:
        assert self.contract is not None
        return np.frombuffer(data, np.float32).reshape(3, *self.contract.input.size)

    def _ask(self, task: str, path: Path, **given: Any) -> Answer:
        (answer,) = self.stream(task, path, **given)
        return answer

    def stream(self, task: str, path: Path, **given: Any) -> Iterator[Answer]:
        """The answers to one request, as they come: see untrusted.Opener."""
        process = self._idle.get()
        ended = False
        try:
            process = self._alive(process)
            process.send({"task": task, "path": str(path), **given})
            while True:
                said, parts = process.receive(self.limits.seconds)
                ended = bool({"done", "error", "bug"} & said.keys())
                if "error" in said:
                    raise UnreadableError(str(said["error"]), fix=str(said["fix"]))
                if "bug" in said:
                    log.error("a decoder can't process %s (%s): %s", path.name, task, said["bug"])
                    raise LeukoscopeError(PROBLEM)
                if ended:
                    return
                yield said, parts
        except (EOFError, OSError) as problem:
            if process is None:
                raise
            why = process.why(self.limits)
            log.error("a decoder failed on %s (%s): %s", path.name, task, why)
            raise DecoderFailed(why, fix="Export the file again.") from problem
        finally:
            if not ended and process is not None:
                process.end()
            self._idle.put(process if ended else None)


@contextlib.contextmanager
def _nameless_main() -> Iterator[None]:
    """Without this a new process would first run the program anew that asked for it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Process:
    """One process and the line to it (final)."""

    def __init__(self, limits: Limits, contract: Contract | None) -> None:
        self._line, theirs = _context.Pipe()
        self._late = False
        self._most = 3 * limits.pixels + 2**26  # bytes of one piece: pixels, at the most
        given = theirs, limits.model_dump_json(), contract.model_dump_json() if contract else ""
        with _starting, theirs, _nameless_main():
            self._process = _context.Process(target=WORK, args=given, daemon=True)
            self._process.start()
        self.receive(_START)  # its start is no file's fault

    @property
    def alive(self) -> bool:
        with _starting:
            return bool(self._process.is_alive())

    def send(self, request: dict[str, Any]) -> None:
        self._line.send_bytes(json.dumps(request).encode())

    def receive(self, seconds: float) -> Answer:
        """The next message; EOFError or OSError where none comes in so many seconds."""
        timer = threading.Timer(seconds, self._stop)
        timer.start()
        try:
            said = json.loads(self._line.recv_bytes(self._most))
            parts = [self._line.recv_bytes(self._most) for _ in range(int(said["parts"]))]
        finally:
            timer.cancel()
            timer.join()
        if self._late:
            raise EOFError
        return said, parts

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def end(self) -> None:
        """Let go of it; what still computes is stopped."""
        self._line.close()
        self._process.kill()
        with _starting:
            self._process.join(_PATIENCE)

    def why(self, limits: Limits) -> str:
        """Why it is gone, in a sentence about the file."""
        with _starting:
            self._process.join(_PATIENCE)
        code = self._process.exitcode
        if self._late:
            return f"the decoder took longer than the {limits.seconds:g} s allowed"
        if code == -getattr(signal, "SIGXCPU", 0):
            return f"the decoder used up the {limits.cpu_seconds} s of processor time allowed"
        if code == -getattr(signal, "SIGKILL", 0):
            return "the decoder was killed, most likely for want of memory"
        name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        return f"the decoder crashed on it ({name})"
