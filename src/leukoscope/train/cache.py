"""Arrays made from images, kept by content: the same image under the same settings is made once.

A file a block, written atomically under a name that is the hash of everything that went into it:
two runs at once, a crash or a changed setting can't give a wrong array, only a missing one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from leukoscope.errors import InputError
from leukoscope.files import atomic, held, output_folder, to_json

FORMAT = 2  # raised where a transform, an augmentation or an operation on features changes
LIMIT = 20 * 2**30  # bytes; the oldest files go first
GRACE = 24 * 3600  # seconds that a file is safe


def folder() -> Path:
    """`$LEUKOSCOPE_CACHE`, or the user's cache folder."""
    given = os.environ.get("LEUKOSCOPE_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("leukoscope"))


class ArrayCache:
    """Blocks of arrays under one set of settings, addressed by the SHA-256 of the image."""

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        stated = {"format": FORMAT, **settings}
        key = hashlib.sha256(to_json(stated).encode()).hexdigest()[:24]
        self.root = folder() / kind / key

    def path(self, sha256: str, block: str) -> Path:
        return self.root / sha256[:2] / f"{sha256}-{block}.npy"

    def get(self, sha256: str, block: str) -> np.ndarray | None:
        """The block, memory-mapped, or None where it is missing or damaged."""
        try:
            return np.load(self.path(sha256, block), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def put(self, sha256: str, block: str, array: np.ndarray) -> None:
        """Keep a block. InputError in one sentence where the disk is full."""
        path = self.path(sha256, block)
        with (
            explained(),
            atomic(path, durable=False) as temporary,
            temporary.open("wb") as handle,
        ):
            np.save(handle, array, allow_pickle=False)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say of what couldn't be written that it belongs to the cache, which -o doesn't move."""
    try:
        yield
    except InputError as problem:
        fix = "Free some space there or name another folder in LEUKOSCOPE_CACHE."
        raise InputError(problem.message, fix=fix, field="output") from problem.__cause__


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keep other processes from trimming the cache within the block; first trim it, unless one of
    them uses it. InputError where it can't be written to."""
    with explained():
        output_folder(folder())
    with held(folder()) as alone:
        if alone:
            trim()
    with held(folder(), shared=True):
        yield


def trim(limit: int = LIMIT) -> None:
    """Delete the oldest files until the cache holds at most `limit` bytes."""
    files = []
    # Among them those that a killed run left half-written.
    for path in folder().rglob("*.*") if folder().is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # another run trims as well
            files.append((path, path.stat()))
    files.sort(key=lambda item: item[1].st_mtime)
    total = sum(status.st_size for _, status in files)
    for path, status in files:
        # Where locks don't work, what a run beside this one may be using is young.
        if total <= limit or time.time() - status.st_mtime < GRACE:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size
