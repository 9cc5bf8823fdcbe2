"""What the benchmarks share: candidates timed in alternation, ratios, Markdown, the machine."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Candidates = Mapping[str, Callable[[], float | None]]


def alternate(candidates: Candidates, rounds: int = 5) -> dict[str, list[float]]:
    """Seconds that each candidate takes, once a round in turn, after one warm-up each.

    In turn, so that whatever else the machine does falls on all alike. A candidate that returns a
    number has timed itself: what it returned counts.
    """
    for candidate in candidates.values():
        candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            began = time.perf_counter()
            own = candidate()
            took = time.perf_counter() - began
            seconds[name].append(took if own is None else float(own))
    return seconds


def table(
    seconds: Mapping[str, Sequence[float]],
    *,
    against: str = "",
    items: Mapping[str, float] | float = 0,
    unit: str = "images",
    first: str = "what",
) -> str:
    """A Markdown table: median and spread (fastest to slowest) of each candidate's seconds.

    `items` (one number, or one a candidate) adds items a second, `against` names the candidate
    whose speed the column `ratio` is relative to: above 1 is faster, by items where they are given.
    """
    speeds = {name: _count(items, name) / statistics.median(s) for name, s in seconds.items()}
    head = [first, "median, s", "fastest to slowest, s"]
    head += [f"{unit} a second"] * bool(items) + [f"x {against}"] * bool(against)
    rows = []
    for name, each in seconds.items():
        row = [name, f"{statistics.median(each):.3g}", f"{min(each):.3g} to {max(each):.3g}"]
        row += [f"{speeds[name]:,.4g}"] * bool(items)
        row += [f"{speeds[name] / speeds[against]:.2f}"] if against else []
        rows.append(row)
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns after the first are right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [list(head), rule, *[[str(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(*packages: str) -> str:
    """One line: processor, cores, memory, load, versions of Python and `packages`, date."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = [f"Python {platform.python_version()}", *map(_versioned, packages)]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{_processor()}, {os.cpu_count()} cores, {total:.0f} GiB; load {os.getloadavg()[0]:.1f}; "
        f"{', '.join(found)}; {date}"
    )


def _processor() -> str:
    """The processor's name and the matrix instructions that decide about speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    said = {key.strip(): value.strip() for key, value in pairs}
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    flags = [flag for flag in known if flag in said.get("flags", "").split()]
    return f"{said.get('model name', platform.machine())} ({', '.join(flags)})"


def _versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} absent"


def _count(items: Mapping[str, float] | float, name: str) -> float:
    count = items[name] if isinstance(items, Mapping) else items
    return float(count or 1)
