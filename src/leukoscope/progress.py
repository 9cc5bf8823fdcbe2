"""What long work says on stderr: progress bars on a terminal, and remarks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, drawing a bar with the time left where stderr is a terminal."""
    # Of the processes that torchrun started only the first draws.
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as draw

    yield from draw(items, description, total=total, console=Console(stderr=True), transient=True)


def remark(text: str) -> None:
    """Say something that isn't an error."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)
