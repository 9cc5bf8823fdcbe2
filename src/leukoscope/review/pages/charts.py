"""Charts of quality over time as plain numbers, for a template to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leukoscope.review.quality import EXPECTED_NOVEL, MOST_NOVEL, SHIFT, Estimate, Period

WIDTH, HEIGHT = 460, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 452, 12, 146


@dataclass(frozen=True)
class Mark:
    """One period: where it stands in pixels, and its words."""

    x: float
    y: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Chart:
    """A drawing of WIDTH x HEIGHT pixels. ticks, times, limits: (place, text)."""

    title: str
    says: str
    marks: Sequence[Mark]
    ticks: Sequence[tuple[float, str]]
    times: Sequence[tuple[float, str]]
    limits: Sequence[tuple[float, str]]
    step: float
    bars: bool = False


def charts(periods: Sequence[Period]) -> list[Chart]:
    """Volume, agreement, drift of confidence and of novelty, share of novel cells."""
    most = max([p.cells for p in periods], default=1)
    volume = [Estimate(p.cells, 0, p.cells) for p in periods]
    return [
        _chart("Cells read", "", periods, volume, (0, most), str_of=lambda v: f"{v:.0f}",
               bars=True),
        _chart("Agreement in signed cases", "Cells that kept the model's class.", periods,
               [p.agreement for p in periods], (0, 1), str_of=_percent),
        _chart("Drift of confidence", "Difference from validation, in its standard deviations.",
               periods, [p.confidence_shift for p in periods], _about_zero(
                   [p.confidence_shift for p in periods]), (-SHIFT, SHIFT)),
        _chart("Drift of novelty", "Difference from validation, in its standard deviations.",
               periods, [p.novelty_shift for p in periods], _about_zero(
                   [p.novelty_shift for p in periods]), (-SHIFT, SHIFT)),
        _chart("Novel cells", f"Expected: {_percent(EXPECTED_NOVEL)}.", periods,
               [p.novel for p in periods], (0, max([p.novel.high or 0 for p in periods],
                                                   default=0)), (EXPECTED_NOVEL, MOST_NOVEL),
               _percent),
    ]  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _about_zero(estimates: Sequence[Estimate]) -> tuple[float, float]:
    ends = [abs(end) for e in estimates for end in (e.low, e.high, e.value) if end is not None]
    reach = min(max([2 * SHIFT, *ends]), 4.0)
    return -reach, reach


def _chart(
    title: str,
    says: str,
    periods: Sequence[Period],
    estimates: Sequence[Estimate],
    span: tuple[float, float],
    limits: Sequence[float] = (),
    str_of: Callable[[float], str] = lambda v: f"{v:+.2g}" if v else "0",
    bars: bool = False,
) -> Chart:
    low, high = span[0], max([span[1], *limits])
    high += (high - low) * 0.05 or 1.0
    step = (RIGHT - LEFT) / max(len(periods), 1)

    def place(value: float) -> float:
        inside = min(max(value, low), high)
        return round(BOTTOM - (inside - low) / (high - low) * (BOTTOM - TOP), 1)

    marks = [
        Mark(
            round(LEFT + (i + 0.5) * step, 1),
            place(e.value),
            place(e.value if e.low is None else e.low),
            place(e.value if e.high is None else e.high),
            f"{periods[i].start}: {str_of(e.value)}",
        )
        for i, e in enumerate(estimates)
        if e.value is not None
    ]
    every = max(1, math.ceil(len(periods) / 6))
    times = [
        (round(LEFT + (i + 0.5) * step, 1), f"{p.start:%-d %b}")
        for i, p in enumerate(periods)
        if i % every == 0
    ]
    return Chart(
        title, says, marks, [(place(v), str_of(v)) for v in _round_values(low, high)], times,
        [(place(v), str_of(v)) for v in limits], min(step * 0.7, 40), bars,
    )  # fmt: skip


def _round_values(low: float, high: float) -> list[float]:
    """Round numbers in a range, at most six."""
    power = 10 ** math.floor(math.log10((high - low) / 5))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) <= 5 * power * m)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
