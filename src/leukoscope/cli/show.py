"""What a person sees on the terminal: tables, sentences, numbers with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from leukoscope.files import to_json

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


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """`88.6 % [86.1, 90.9]`, or `undefined`."""
    if value is None:
        return "undefined"
    text = f"{100 * value:.1f} %"
    return (
        text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    )


def estimate(found: Mapping[str, Any] | None) -> str:
    """A {value, low, high} as a percentage with its interval; empty where there is none."""
    if found is None or found["value"] is None:
        return ""
    both = None not in (found["low"], found["high"])
    return percent(found["value"], (found["low"], found["high"]) if both else None)


def metrics(title: str, found: Mapping[str, Any]) -> None:
    """The main figures of a metrics.json, with intervals and the trivial baseline."""
    ci = found.get("ci") or {}
    rows = [
        (name.replace("_", " "), percent(found[name], ci.get(name)))
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision",
                     "macro_recall", "macro_specificity", "roc_auc_ovr")
    ]  # fmt: skip
    rows += [
        (name.replace("_", " "), "undefined" if found[name] is None else f"{found[name]:.3f}")
        for name in ("cohen_kappa", "log_loss", "ece")
    ]
    baseline = found.get("baseline") or {}
    rows += [
        (f"baseline: {label}", percent(baseline[key]))
        for key, label in (("majority", "largest class"), ("colour_knn", "average colour, 5-NN"))
        if baseline.get(key) is not None
    ]
    unit = (found.get("interval") or {}).get("unit", "image")
    table(f"{title}: {found['n']} images, 95 % intervals by {unit}", ("metric", "value"), rows)
