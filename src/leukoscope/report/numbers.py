"""How figures are written: percent with one decimal, the interval in brackets."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

# Metrics that are no share of anything: written as plain decimals.
DECIMALS = frozenset({"cohen_kappa", "mcc", "roc_auc", "roc_auc_ovr", "log_loss", "brier", "loss"})
TITLES = {
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "weighted_f1": "Weighted F1",
    "f1": "F1",
    "mean_ovr_accuracy": "Mean one-vs-rest accuracy",
    "ovr_accuracy": "One-vs-rest accuracy",
    "cohen_kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
    "roc_auc": "ROC AUC",
    "roc_auc_ovr": "ROC AUC, one-vs-rest",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Interval = Sequence[float | None] | None


def title(metric: str) -> str:
    """A metric's name for readers: `macro_recall` is "Macro recall"; dotted paths as
    recipes.schema.PublishedTable has them."""
    place, _, inner = metric.partition(".")
    if place in ("validation", "patient_level") and inner:
        return f"{title(inner)} {'on validation' if place == 'validation' else 'by patient'}"
    if place in ("phases", "history") and inner:
        which, _, inner = inner.partition(".")
        return f"{title(inner)} {'after phase' if place == 'phases' else 'in epoch'} {which}"
    if place == "folds" and inner:
        inner, _, which = inner.rpartition(".")
        return f"{title(inner)}, {which} over the folds"
    if metric == "environment.seconds":
        return "Training time"
    head, _, last = metric.rpartition(".")
    name = TITLES.get(last, last.replace("_", " ").capitalize())
    return f"{head.removeprefix('per_class.')}: {name}" if head else name


def is_time(metric: str) -> bool:
    """Whether the metric is a number of seconds."""
    return metric.rpartition(".")[2] == "seconds"


def is_decimal(metric: str) -> bool:
    """Whether the metric is written as a decimal rather than as a percentage."""
    if metric.startswith("folds."):
        metric = metric.removeprefix("folds.").rpartition(".")[0]
    last = metric.rpartition(".")[2].removeprefix("validation_").removeprefix("train_")
    return is_time(metric) or last in DECIMALS


def number(value: object) -> float | None:
    """The value as a finite float, or None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(share: float) -> str:
    """A share in [0, 1] as "87.3%"; never rounds an imperfect share to 0 or 100."""
    if 0.9995 <= share < 1:
        return ">99.9%"
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{100 * share:.1f}%".replace("-", "−")


def points(share: float) -> str:
    """The size of a difference of shares, without its sign: "3.1 points"."""
    return f"{abs(100 * share):.1f} points"


def plain(metric: str, value: float) -> str:
    """One value in its metric's own unit, without an interval."""
    if is_time(metric):
        return f"{value:,.0f} s"
    return f"{value:.3f}".replace("-", "−") if is_decimal(metric) else percent(value)


def interval(metric: str, limits: Interval) -> str:
    """The interval alone: "[84.1, 90.2]", or "" where it is unknown."""
    low, high = bounds(limits)
    if low is None or high is None:
        return ""
    text = f"{low:.3f}, {high:.3f}" if is_decimal(metric) else f"{100 * low:.1f}, {100 * high:.1f}"
    return f"[{text}]".replace("-", "−")


def measured(metric: str, value: float, limits: Interval = None) -> str:
    """A value with its interval where it is known: "87.3% [84.1, 90.2]"."""
    return f"{plain(metric, value)} {interval(metric, limits)}".rstrip()


def difference(metric: str, value: float, limits: Interval = None) -> str:
    """A signed difference with its interval: "+3.1 points [−0.4, 6.5]"."""
    if is_time(metric):
        return f"{value:+,.0f} s".replace("-", "−")
    text = f"{value:+.3f}".replace("-", "−") if is_decimal(metric) else _signed_points(value)
    return f"{text} {interval(metric, limits)}".rstrip()


def _signed_points(share: float) -> str:
    return f"{100 * share:+.1f} points".replace("-", "−")


def bounds(limits: Interval) -> tuple[float | None, float | None]:
    """Both ends of an interval as floats, or (None, None)."""
    if not isinstance(limits, list | tuple) or len(limits) != 2:
        return None, None
    return number(limits[0]), number(limits[1])


def estimate(item: object) -> tuple[float | None, Interval]:
    """Value and interval of `{value, low, high}`, of `{accuracy, low, high}` or of a number."""
    if isinstance(item, Mapping):
        value = number(item.get("value", item.get("accuracy")))
        return value, (item.get("low"), item.get("high"))
    return number(item), None


def count(n: int, noun: str) -> str:
    """ "1 image", "2,400 images"."""
    plural = f"{noun}es" if noun.endswith("class") else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural}"


def listing(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def clean(text: object, most: int = 0) -> str:
    """Text without control or direction-changing characters, at most `most` characters long."""
    drawn = "".join(
        "\ufffd" if c in _BIDIRECTIONAL or unicodedata.category(c) in {"Cc", "Cs"} else c
        for c in str(text)
    )
    return drawn if not most or len(drawn) <= most else f"{drawn[: most - 1]}…"
