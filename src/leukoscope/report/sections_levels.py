"""The section on differential counts: the share of each class by patient and by slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from leukoscope.recipes.levels import LEVELS, Level, share_table
from leukoscope.report.figures import BLUE, MUTED, ORANGE, Drawing, drawing, style
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import bounds, count, difference, listing, measured, percent
from leukoscope.report.page import Block, Cell, Paragraph, Plot, Section, Table


def section(run: Run) -> Section | None:
    """Predicted against true shares; None where no patient or slide is known."""
    blocks: list[Block] = []
    for level in LEVELS:
        found = run.metrics.get(f"{level}_shares")
        if isinstance(found, Mapping) and found.get("per_class"):
            blocks += _blocks(run, level, found)
    return Section("levels", "Share of each class by patient", blocks) if blocks else None


def _blocks(run: Run, level: Level, found: Mapping[str, Any]) -> list[Block]:
    ci = found.get("ci") or {}
    rows: list[list[Cell | str]] = []
    for name, row in found["per_class"].items():
        limits, error = (ci.get(f"per_class.{name}.{key}")
                         for key in ("difference", "mean_absolute_error"))  # fmt: skip
        rows.append([
            str(name), percent(row["true"]), percent(row["predicted"]),
            difference("share", row["difference"], limits),
            measured("share", row["mean_absolute_error"], error),
        ])  # fmt: skip
    head = ["Class", "True share", "Predicted share", "Difference", "Mean absolute error"]
    caption = (
        f"Mean over {count(found['n'], level)} of {found['median_images']:g} images each (median), "
        f"every {level} counting the same; differences with 95% intervals by patient."
    )
    made: list[Block] = [Table(caption, head, rows)]
    shares = _table(run, level)
    says = _says(found, level, shares)
    made.insert(0, Paragraph(says) if shares.empty else Plot([_draw(shares, level)], says))
    return [*made, *(Paragraph(str(note), "quiet") for note in found.get("notes") or [])]


def _table(run: Run, level: Level) -> pd.DataFrame:
    frame = run.tested
    return share_table(pd.DataFrame() if frame is None else frame, run.classes, level)


def _outside(shares: pd.DataFrame) -> pd.Series:
    return (shares["true"] < shares["low"]) | (shares["true"] > shares["high"])


def _says(found: Mapping[str, Any], level: str, shares: pd.DataFrame) -> str:
    error = measured("share", found["mean_absolute_error"],
                     (found.get("ci") or {}).get("mean_absolute_error"))  # fmt: skip
    text = f"A {level}'s predicted share of a class is off by {error} on average."
    high, low = (_clear(found, sign) for sign in (1, -1))
    if high:
        text += f" Counted too high: {listing(high)}."
    if low:
        text += f" Counted too low: {listing(low)}."
    if not high and not low and found.get("ci"):
        text += " No class is clearly counted too high or too low."
    if not shares.empty:
        part = percent(float(_outside(shares).mean()))
        text += (
            f" In {part} of all {level}s and classes the error is more than that of counting so "
            "few cells (the true share lies outside the 95% interval of the predicted one)."
        )
    return text


def _clear(found: Mapping[str, Any], sign: int) -> Sequence[str]:
    """The classes whose whole interval lies on one side of zero."""
    chosen = []
    for name in found["per_class"]:
        low, high = bounds((found.get("ci") or {}).get(f"per_class.{name}.difference"))
        if low is not None and high is not None and (low > 0 if sign > 0 else high < 0):
            chosen.append(str(name))
    return chosen


def _draw(shares: pd.DataFrame, level: str) -> Drawing:
    """Each patient and class a point; those beyond the error of counting stand out."""
    outside = _outside(shares).to_numpy()
    most = max(0.05, float(np.nanmax(shares[["true", "predicted"]].to_numpy(float))))
    with style():
        figure = Figure(figsize=(3.7, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, most], [0, most], color=MUTED, linestyle="--", linewidth=1)
        looks = ((~outside, BLUE, "o", 9, "within the error of counting"),
                 (outside, ORANGE, "^", 14, "beyond it"))  # fmt: skip
        for chosen, colour, marker, size, label in looks:
            part = shares[chosen]
            if len(part):
                axes.scatter(part["true"], part["predicted"], s=size, c=colour, marker=marker,
                             linewidths=0, alpha=0.8, label=label)  # fmt: skip
        axes.set(xlim=(-0.02 * most, 1.03 * most), ylim=(-0.02 * most, 1.03 * most))
        axes.set_aspect("equal")
        axes.set_xlabel(f"true share of a class in a {level}")
        axes.set_ylabel("predicted share")
        for each in (axes.xaxis, axes.yaxis):
            each.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.grid()
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2)
        alt = f"Predicted against true share of each class in each {level}"
        return drawing(figure, f"shares_{level}", shares, alt)
