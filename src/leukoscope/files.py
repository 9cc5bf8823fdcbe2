"""Writing files so that what stands under a name is always whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.errors import InputError, some

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space or choose another output with -o."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space or choose another output."),
    errno.EFBIG: ("the file would be larger than is allowed", "Raise the limit (ulimit -f)."),
    errno.EROFS: ("the file system is read-only", "Choose an output folder you may write to."),
    errno.EACCES: ("permission is denied", "Choose an output folder you may write to."),
    errno.EPERM: ("permission is denied", "Choose an output folder you may write to."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter output name."),
    errno.ENOTDIR: ("part of the path is a file", "Choose a path whose parents are folders."),
    errno.EISDIR: ("a folder stands there", "Choose a file name, not a folder."),
    errno.ENOENT: ("the folder does not exist", "Create it first or choose another path."),
    errno.EEXIST: ("a file of that name stands there", "Remove it or choose another output."),
}


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into one sentence with the fix (InputError)."""
    try:
        yield
    except OSError as problem:
        why, fix = reason(problem)
        raise InputError(f"Can't write {path}: {why}", fix=fix, field="output") from problem


def reason(problem: OSError) -> tuple[str, str]:
    """Why the operating system refused, and what to do about it."""
    # numpy says how much it wrote and swallows the errno; only a full disk writes less.
    short = problem.errno is None and "written" in str(problem)
    number = errno.ENOSPC if short else problem.errno or 0
    return _REASONS.get(number, (problem.strerror or str(problem), "Choose another path."))


def refuse_special(path: Path) -> None:
    """InputError where a folder, device or pipe stands at `path`: only files are ever replaced."""
    with explain_os_errors(path):
        try:
            mode = Path(path).stat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise InputError(
                f"Can't write {path}: it is no regular file",
                fix="Choose a file name, or print with --json.",
                field="output",
            )


def refuse_overwriting(out: Path | None, inputs: Iterable[str | Path | None]) -> None:
    """InputError where `out` is one of the files that are read: originals stay untouched."""
    if out is None or not os.path.exists(out):  # noqa: PTH110 - Path.exists raises on long names
        return
    same = [str(i) for i in inputs if i and os.path.exists(i) and os.path.samefile(i, out)]  # noqa: PTH110, PTH121
    if same:
        raise InputError(
            f"The output {out} is also an input ({some(same)}), which would be lost",
            fix="Choose another output.",
            field="output",
        )


@contextlib.contextmanager
def atomic(
    path: Path, *, durable: bool = True, within: Path | None = None, mode: int = 0o666
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` only where the block succeeds.

    A crash, a full disk or ctrl-C leaves the old file, or none, never half a file. Not `durable`,
    a power cut may leave an empty one: for what can be made again, and is checked when read.
    within: another folder of the same file system for the temporary file, which a kill leaves
    there. mode: the file's permissions, less the umask.
    """
    path = Path(path)
    refuse_special(path)
    with explain_os_errors(path):
        new = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        # A short name of its own: the target's may already be as long as the file system allows.
        handle, name = tempfile.mkstemp(
            prefix=".part-", suffix=path.suffix[-16:], dir=within or path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if durable:
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())
            temporary.chmod(mode & ~_UMASK)
            temporary.replace(path)
            if durable:
                for folder in (path.parent, *(made.parent for made in new)):
                    sync_folder(folder)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut, as fsync does a file's bytes."""
    if os.name != "posix":  # elsewhere folders can't be opened, and needn't be
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that can't
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


_UMASK = _umask()  # once, since asking means setting, for all threads


def output_folder(path: Path) -> Path:
    """Create the folder `path` where needed; InputError unless it can be written to."""
    path = Path(path)
    with explain_os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


def sole(folder: Path) -> int:
    """Hold a folder for this process until it ends, however it ends, or closes this descriptor.

    InputError where another process holds it.
    """
    with explain_os_errors(folder):
        handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                # Not flock, which a child would keep holding after its parent was killed.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(handle)
            if problem.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise InputError(
                f"Another server works on the folder {folder}",
                fix="Stop that one, or give another --folder.",
                field="folder",
            ) from None
        return handle


def write_text(path: Path, text: str) -> None:
    """Write text atomically, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity become null, numpy values plain ones."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """The value as indented JSON text that any reader accepts."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """The value with numpy scalars, arrays, paths, tuples and NaN turned into JSON values."""
    if isinstance(value, dict):
        return {printable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | Path):
        return printable(str(value))
    return value


def printable(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that is no UTF-8 become `\\udc..`."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_json(path: Path) -> Any:
    """Parse a JSON file; InputError in one sentence where it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"Can't read {path}: {problem}", fix="Check the path.") from None
    except (ValueError, RecursionError) as problem:  # also a number of 5,000 digits
        raise InputError(f"{path} is not JSON: {problem}", fix="Write it anew.") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[bool]:
    """Lock a folder until the block ends, or the process does, in whatever way.

    Yields whether it is locked: False where another process holds it. `shared` waits for it and
    keeps out only who wants it alone. Where there are no such locks it always is.
    """
    if fcntl is None:
        yield True
        return
    with explain_os_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except OSError as problem:  # otherwise a file system that has no locks
        alone = problem.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
    try:
        yield alone
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Delete what processes that were killed left half-written in a folder of our own."""
    for part in Path(folder).rglob(".part-*"):
        part.unlink(missing_ok=True)
