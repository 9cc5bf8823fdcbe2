"""The section on disturbed images: curves, where accuracy breaks, and whether anyone notices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leukoscope.report.figures import BLUE, ORANGE, Drawing, drawing, style
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import clean, count, listing, measured, number, percent, points
from leukoscope.report.page import Block, Cell, Missing, Paragraph, Plot, Section, Table

NAME = "Robustness to image quality"
COSTLY = 0.05
"""A fall of accuracy that is called out: more than so much."""
_PER_DRAWING = 6
_TITLES = {
    "jpeg": "JPEG",
    "haematoxylin": "Blue stain (haematoxylin)",
    "eosin": "Red stain (eosin)",
}


def section(run: Run) -> Section | None:
    """Behaviour under disturbed images; how to measure it where it was not, if that is possible."""
    frame = run.robustness
    if frame is None:
        return None
    if not {"corruption", "severity", "accuracy"} <= set(frame):
        text = (
            "robustness.csv lacks one of corruption, severity and accuracy; to write it anew, run"
        )
        command = f"leukoscope evaluate {run.folder.name} --robustness"
        return Section("robustness", NAME, [Missing(text, command)])
    frame = _complete(frame)
    kinds = [kind for kind in dict.fromkeys(frame["corruption"]) if kind != "none"]
    groups = [kinds[at : at + _PER_DRAWING] for at in range(0, len(kinds), _PER_DRAWING)]
    drawings = [_draw(frame, group, place) for place, group in enumerate(groups)]
    blocks: list[Block] = [Plot(drawings, _says(frame, kinds)), _first_falls(frame, kinds)]
    quiet = (
        "Images are disturbed as they were read, before any preprocessing. The novelty flag keeps "
        "up with a disturbance where the share of flagged images rises by at least as much as "
        "accuracy falls."
    )
    return Section("robustness", NAME, [*blocks, Paragraph(quiet, "quiet")])


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    """Every column that is drawn, and the undisturbed images as severity 0 of each corruption."""
    frame = frame.copy()
    for column in ("value", "unit", "n", "low", "high", "ece", "confidence", "novel"):
        if column not in frame:
            frame[column] = "" if column == "unit" else np.nan
    frame["unit"] = frame["unit"].fillna("").astype(str)
    clear = frame[frame["corruption"] == "none"].head(1)
    disturbed = frame[frame["corruption"] != "none"]
    starts = [clear.assign(corruption=kind) for kind in dict.fromkeys(disturbed["corruption"])]
    kept = [part for part in (*starts, disturbed) if len(part)]
    joined = pd.concat(kept, ignore_index=True)
    return joined.sort_values("severity", kind="stable").reset_index(drop=True)


def _title(kind: str) -> str:
    return _TITLES.get(kind, clean(kind, 30).capitalize())


def _draw(frame: pd.DataFrame, kinds: list[str], place: int) -> Drawing:
    """Accuracy with its interval and the share flagged as novel, by strength."""
    columns = min(2, len(kinds))
    rows = -(-len(kinds) // columns)
    with style():
        size = (1.85 * columns + 0.2, 1.75 * rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, kind in zip(grid.flat, kinds, strict=False):
            _curve(axes, frame[frame["corruption"] == kind], kind)
        for axes in list(grid.flat)[len(kinds) :]:
            axes.remove()
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, columnspacing=1.2)
        kept = frame[frame["corruption"].isin(kinds)].sort_values(["corruption", "severity"])
        alt = f"Accuracy and share flagged as novel against the strength of {', '.join(kinds)}"
        name = f"robustness_{place + 1}" if place else "robustness"
        return drawing(figure, name, kept, alt)


def _curve(axes: Axes, part: pd.DataFrame, kind: str) -> None:
    steps = part["severity"].to_numpy(float)
    if part["low"].notna().any():
        axes.fill_between(steps, part["low"].astype(float), part["high"].astype(float),
                          color=BLUE, alpha=0.2, linewidth=0)  # fmt: skip
    line: dict[str, Any] = {"marker": "o", "markersize": 3}
    axes.plot(steps, part["accuracy"], color=BLUE, label="accuracy", **line)
    if part["novel"].notna().any():
        axes.plot(steps, part["novel"].astype(float), color=ORANGE, linestyle="--", marker="s",
                  markersize=2.5, linewidth=1.1, label="flagged as novel")  # fmt: skip
    axes.set_title(_title(kind), fontsize=8)
    values = [number(value) for value in part["value"]]
    labels = [f"{step:g}" if v is None else f"{v:g}" for v, step in zip(values, steps, strict=True)]
    if steps[0] == 0 and values[-1] is not None:
        labels[0] = "–"  # undisturbed: 0 would be a value of the scale
    axes.set_xticks(steps, labels, fontsize=7)
    axes.set_xlabel(clean(part["unit"].iloc[-1], 40) or "strength", fontsize=7)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    axes.grid(axis="y")


# --- what to conclude -----------------------------------------------------------------------------


def _falls(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The steps of a corruption with `fall`, what they cost in accuracy, and `alarm`, the rise of
    the share flagged; empty without undisturbed images to compare with."""
    part = frame[frame["corruption"] == kind]
    clear = part[part["severity"] == 0]
    if clear.empty:
        return part.head(0).assign(fall=0.0, alarm=0.0)
    part = part[part["severity"] > 0]
    return part.assign(
        fall=clear["accuracy"].iloc[0] - part["accuracy"].astype(float),
        alarm=part["novel"].astype(float) - float(clear["novel"].iloc[0] or 0),
    )


def _says(frame: pd.DataFrame, kinds: list[str]) -> str:
    falls = pd.concat([_falls(frame, kind) for kind in kinds])
    clear = frame[frame["severity"] == 0]
    if clear.empty or falls.empty:
        worst = frame.iloc[int(frame["accuracy"].to_numpy(float).argmin())]
        return (
            f"Accuracy is lowest under {worst['corruption']} at {_strength(worst)}: "
            f"{percent(float(worst['accuracy']))}."
        )
    start = clear.iloc[0]
    on = "" if pd.isna(start["n"]) else f" on {count(int(start['n']), 'image')}"
    text = f"Undisturbed, accuracy is {_accuracy(start)}{on}. "
    costly = falls[falls["fall"] > COSTLY]
    if costly.empty:
        return f"{text}No disturbance costs more than {points(COSTLY)}."
    least = costly[costly["severity"] == costly["severity"].min()]
    first = least.iloc[int(least["fall"].to_numpy(float).argmax())]
    text += (
        f"It falls by more than {points(COSTLY)} first under {_lower(first['corruption'])} "
        f"at {_strength(first)}, to {_accuracy(first)}"
    )
    steady = [_lower(kind) for kind in kinds if kind not in set(costly["corruption"])]
    text += f", and never under {listing(steady)}. " if steady else ". "
    return text + _noticed(costly)


def _noticed(costly: pd.DataFrame) -> str:
    """Whether the novelty flag rises where accuracy falls."""
    if costly["alarm"].isna().all():
        return "This model has no novelty flag to notice it."
    kept = costly["alarm"] >= costly["fall"]
    text = f"At {kept.sum()} of {count(len(costly), 'such step')} the novelty flag keeps up"
    if kept.all():
        return f"{text}: who reads the flags is warned."
    silent = costly[~kept]
    worst = silent.iloc[int((silent["fall"] - silent["alarm"]).to_numpy(float).argmax())]
    return (
        f"{text}; it lags most under {_lower(worst['corruption'])} at {_strength(worst)}, where "
        f"accuracy falls by {points(worst['fall'])} and {percent(float(worst['novel']))} are "
        "flagged: the flag alone does not warn of such images."
    )


def _first_falls(frame: pd.DataFrame, kinds: list[str]) -> Table:
    """For each corruption the first step that costs more than COSTLY, or its last."""
    rows: list[list[Cell | str]] = []
    for kind in kinds:
        falls = _falls(frame, kind)
        if falls.empty:
            continue
        costly = falls[falls["fall"] > COSTLY]
        shown = (costly if len(costly) else falls.tail(1)).iloc[0]
        share = [number(shown[column]) for column in ("confidence", "ece", "novel")]
        rows.append(
            [
                _title(kind),
                _strength(shown) if len(costly) else f"none up to {_strength(shown)}",
                _accuracy(shown),
                *(Cell("undefined", "not measured") if s is None else percent(s) for s in share),
            ]
        )
    caption = (
        f"The first strength that costs more than {points(COSTLY)} of accuracy, and what the model "
        "says there: confidence far above accuracy misleads."
    )
    head = ["Disturbance", "First costly strength", "Accuracy", "Confidence",
            "Calibration error", "Flagged novel"]  # fmt: skip
    return Table(caption, head, rows, frozenset({1}))


def _lower(kind: str) -> str:
    name = _title(kind)
    return name if name.isupper() or name[:2].isupper() else name[0].lower() + name[1:]


def _strength(row: pd.Series) -> str:
    """The strength of a step with its unit: "40 (quality)"."""
    value, unit = number(row["value"]), clean(row["unit"], 60)
    if value is None:
        return f"strength {row['severity']:g}"
    return f"{value:g} ({unit})" if unit else f"{value:g}"


def _accuracy(row: pd.Series) -> str:
    return measured("accuracy", float(row["accuracy"]), (number(row["low"]), number(row["high"])))
