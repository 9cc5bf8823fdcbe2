"""What a person sees on the terminal: tables, sentences, numbers with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from leukoscope.files import to_json
from leukoscope.report import numbers

SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "macro_recall",
         "macro_specificity", "roc_auc_ovr", "cohen_kappa", "log_loss", "ece")  # fmt: skip

_out = Console(highlight=False, soft_wrap=True, emoji=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def error(message: str, fix: str = "") -> None:
    """One line on stderr: what went wrong and what to do."""
    text = f"{message.rstrip('.')}. {fix}".strip()
    _err.print(" ".join(text.split()), style="bold red" if _err.is_terminal else None, markup=False)


def note(text: str) -> None:
    """A remark on stderr."""
    _err.print(text, markup=False)


def say(text: str) -> None:
    """A line on stdout."""
    _out.print(text, markup=False)


def unreadable(files: Sequence[Mapping[str, str]], most: int = 10) -> None:
    """Which files couldn't be read, and why."""
    for bad in files[:most]:
        say(f"Unreadable: {bad['image']}: {bad['why']}")
    if len(files) > most:
        say(f"… and {len(files) - most} more unreadable files")


def json(value: Any) -> None:
    """JSON on stdout, unwrapped and uncoloured."""
    print(to_json(value))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; numbers to the right, empty cells as a dash."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for place, name in enumerate(columns):
        numeric = all(isinstance(row[place], int | float) for row in rows) and bool(rows)
        drawn.add_column(name, justify="right" if numeric or place else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*("–" if cell in (None, "") else _text(cell) for cell in row))
    _out.print(drawn, markup=False)


def _text(cell: Any) -> str:
    from rich.markup import escape

    return escape(f"{cell:.4f}" if isinstance(cell, float) else str(cell))


def figure(metric: str, value: float | None, interval: Sequence[float] | None = None) -> str:
    """A metric's value as reports write it: `88.6% [86.1, 90.9]`, `0.354`; empty where null."""
    return "" if value is None else numbers.measured(metric, value, interval)


def estimate(metric: str, found: Mapping[str, Any] | None, *, difference: bool = False) -> str:
    """A {value, low, high} likewise; a difference in points. Empty where there is none."""
    if found is None or found["value"] is None:
        return ""
    interval = None if found["low"] is None else (found["low"], found["high"])
    write = numbers.difference if difference else numbers.measured
    return write(metric, found["value"], interval)


def metrics(title: str, found: Mapping[str, Any]) -> None:
    """The main figures of a metrics.json, with intervals and the trivial baseline."""
    ci = found.get("ci") or {}
    rows = [
        (name.replace("_", " "), figure(name, found[name], ci.get(name)) or "undefined")
        for name in SHOWN
    ]
    baseline = found.get("baseline") or {}
    rows += [
        (f"baseline: {label}", figure("accuracy", baseline[key]))
        for key, label in (("majority", "largest class"), ("colour_knn", "average colour, 5-NN"))
        if baseline.get(key) is not None
    ]
    unit = (found.get("interval") or {}).get("unit", "image")
    table(f"{title}: {found['n']} images, 95 % intervals by {unit}", ("metric", "value"), rows)


def robustness(rows: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy under each corruption, a line each, beside the value of each severity."""
    start, *disturbed = rows
    say(
        f"Accuracy on {start['n']} images: {numbers.percent(start['accuracy'])}; disturbed, by "
        "strength:"
    )
    for kind in dict.fromkeys(row["corruption"] for row in disturbed):
        own = [row for row in disturbed if row["corruption"] == kind]
        steps = [f"{row['value']:g}: {numbers.percent(row['accuracy'])}" for row in own]
        say(f"  {kind} ({own[0]['unit']}): {', '.join(steps)}")
