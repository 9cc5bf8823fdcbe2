"""Decoders that die where a file says so; a light module, for their processes import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leukoscope.review import untrusted
from leukoscope.review.untrusted import Limits, Opener


def _die(how: str) -> None:
    signals = {"segfault": signal.SIGSEGV, "killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
    if how in signals:
        os.kill(os.getpid(), signals[how])
    while how == "busy":
        pass
    if how == "exit":
        os._exit(3)
    if how == "asleep":
        time.sleep(60)
    if how == "swollen":
        bytearray(10**9)
    Path("written-by-a-decoder").write_text("x" * 9999)


def work_and_die(connection: Any, limits: str, contract: str) -> None:
    """untrusted.work, in whose process a file that says so ends it."""
    usual, pieces = Opener._image, untrusted.archives._pieces

    def image(self: Opener, path: Path) -> Any:
        data = path.read_bytes()
        if data.startswith(b"die "):
            _die(data.split()[1].decode())
        return usual(self, path)

    def unpacked(archive: Any, info: Any, allowed: Limits) -> Iterator[bytes]:
        if info.filename.startswith("die-"):
            _die(info.filename.split("-")[1].removesuffix(".png"))
        yield from pieces(archive, info, allowed)

    Opener._image, untrusted.archives._pieces = image, unpacked  # type: ignore[method-assign]
    untrusted.work(connection, limits, contract)
