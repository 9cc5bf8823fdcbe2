"""Work done ahead in threads, in order, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

# Of a batch system it is the cores lent that count.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = max(2, CORES)


def ahead(
    function: Callable[[A], B],
    items: Iterable[A],
    depth: int = max(16, 2 * WORKERS),
    start: Callable[[], None] | None = None,
    workers: int = WORKERS,
) -> Iterator[B]:
    """`map(function, items)` in order, at most `depth` results ahead of who asks.

    For functions that spend their time outside the interpreter's lock, as decoding does. `start`
    runs first in every one of the `workers` threads.
    """
    source = iter(items)
    with ThreadPoolExecutor(workers, initializer=start) as pool:
        pending = deque(pool.submit(function, item) for item in islice(source, depth))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(source, 1))
        finally:
            for future in pending:
                future.cancel()
