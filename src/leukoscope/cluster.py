"""Work spread over a Ray cluster: `parallel.ahead`, on the cores of other machines.

Plain tasks over chunks of file names, not Ray Data: what is spread is a map in order whose results
go into one table here, and a task that Ray repeats when its worker dies is all that this needs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from leukoscope.compat import require
from leukoscope.errors import InputError, LeukoscopeError, UnknownNameError
from leukoscope.parallel import ahead

A = TypeVar("A")
B = TypeVar("B")
Spread = Callable[..., Iterator[Any]]
"""`parallel.ahead`, or the same over a cluster: of a function that can be sent there."""

CHUNK = 16  # items a task: a second or less, which is what a dead worker costs
RETRIES = 5  # after which a file that kills every worker is named, not tried for ever
CONNECTIONS = 5  # that a head may break off before it counts as one that doesn't answer
_ADDRESS = r"ray://(\[[0-9a-fA-F:]+\]|[^\s/:\[\]]+):\d{1,5}"
# What must be the same everywhere for the same bits to come out.
_PACKAGES = ("leukoscope", "numpy", "onnxruntime", "opencv-python-headless", "openvino", "pillow",
             "scipy", "simplejpeg", "torch")  # fmt: skip


def is_address(engine: str, others: Sequence[str] = ("local",)) -> bool:
    """Whether `engine` is Ray's: `ray`, or `ray://HOST:PORT`; UnknownNameError where it is neither
    that nor one of `others`."""
    if engine == "ray" or re.fullmatch(_ADDRESS, engine):
        return True
    if engine not in others:
        raise UnknownNameError("engine", engine, [*others, "ray", "ray://HOST:PORT"])
    return False


@contextlib.contextmanager
def joined(engine: str) -> Iterator[Spread]:
    """`ahead` for `local`; for `ray` the same over the cluster that this machine belongs to (or is,
    by itself, where it belongs to none), for `ray://HOST:PORT` over that one.

    Raises InputError where Ray isn't installed or doesn't answer; in use where a worker can't run
    the function, sees other files or has other versions of what computes.
    """
    if not is_address(engine):
        yield ahead
        return
    ray = require("ray", "ray")
    # A laboratory's computer tells nobody that it runs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = not ray.is_initialized()
    if own:
        _connect(ray, engine)
    try:
        yield functools.partial(_spread, ray)
    except ConnectionError as problem:
        raise InputError(
            f"The connection to the Ray cluster {engine} was lost: {_line(problem)}",
            fix="See `ray status` on its head, then run the command again.",
            field="engine",
        ) from None
    finally:
        if own:
            ray.shutdown()


def unseen(path: Path) -> InputError:
    """What to say of a file that a worker couldn't read, and this machine can."""
    return InputError(
        f"A worker of the cluster can't read {path}, which this machine can",
        fix="Put the images where every host of the cluster sees them under the same path.",
        field="engine",
    )


def _connect(ray: Any, engine: str) -> None:
    # Its own address given to it is found as `ray` finds one: by RAY_ADDRESS, or on this machine.
    address = {} if engine == "ray" else {"address": engine}
    for left in reversed(range(CONNECTIONS)):
        try:
            ray.init(**address, logging_level="ERROR", log_to_driver=False)
            return
        except Exception as problem:  # noqa: BLE001 - its errors share no class of their own
            # The head forks a server for each client while its own threads run, and some die of
            # that before they start (github.com/ray-project/ray/issues/63202). The next one won't.
            if left and isinstance(problem, ConnectionAbortedError):
                continue
            raise InputError(
                f"No Ray cluster answers at {engine}: {_line(problem)}",
                fix="Start one with: ray start --head --disable-usage-stats (docs/cluster.md); its "
                "Ray and Python must be of the versions here.",
                field="engine",
            ) from None


def _line(problem: BaseException) -> str:
    """The last line of an error, where Ray's tracebacks say what happened."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(problem).__name__


def _spread(
    ray: Any,
    function: Callable[[A], B],
    items: Iterable[A],
    depth: int = 0,  # noqa: ARG001 - as `ahead` takes it
    **_: Any,  # how many threads, which are prepared so
) -> Iterator[B]:
    """`map(function, items)` in order; two tasks a core are under way. A worker has one core, and
    gets the function once."""
    key, sent = uuid.uuid4().hex, ray.put((_versions(), function))
    task = ray.remote(_chunk).options(num_cpus=1, max_retries=RETRIES)
    source = iter(items)
    chunks = iter(lambda: list(islice(source, CHUNK)), [])
    under_way = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    # Inside a list the reference is sent and not what it stands for.
    asked = ((chunk, task.remote(key, [sent], chunk)) for chunk in chunks)
    pending = deque(islice(asked, under_way))
    while pending:
        yield from _got(ray, *pending.popleft())
        pending.extend(islice(asked, 1))


def _got(ray: Any, chunk: Sequence[A], reference: Any) -> list[Any]:
    try:
        found = ray.get(reference)
    except ray.exceptions.RayTaskError as problem:
        raise _strange(problem, chunk) from problem.cause
    except ray.exceptions.RayError as problem:
        raise _strange(problem, chunk) from None
    if isinstance(found, dict):
        raise InputError(found["message"], fix=found["fix"], field=found["field"])
    return found


def _strange(problem: BaseException, chunk: Sequence[Any]) -> InputError:
    return InputError(
        f"The cluster couldn't do its part from {chunk[0]} on: {type(problem).__name__}, "
        f"{_line(problem)}",
        fix="Install the same leukoscope with its extras on every host; where the workers die, "
        "see `ray status` and the memory of the hosts.",
        field="engine",
    )


_held: dict[str, Callable[[Any], Any]] = {}


def _chunk(key: str, sent: list[Any], items: list[Any]) -> list[Any] | dict[str, str]:
    """A task: what the function says of these items, or the message of what went wrong."""
    try:
        if key not in _held:
            import ray

            versions, function = ray.get(sent[0])
            _check(versions)
            _held.clear()
            _held[key] = function
        return [_held[key](item) for item in items]
    except LeukoscopeError as problem:
        return {"message": problem.message, "fix": problem.fix, "field": problem.field}


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _check(wanted: dict[str, str]) -> None:
    found = _versions()
    other = [
        f"{name} {found.get(name, 'missing')} for {wanted[name]}"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    if other:
        raise InputError(
            f"Worker host {socket.gethostname()} has other versions: {', '.join(other)}",
            fix="Install the same ones everywhere (pip install -c constraints.txt), since others "
            "may give other results.",
            field="engine",
        )
