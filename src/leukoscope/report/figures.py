"""Figures of a report: each an SVG whose text stays text, with the data it was drawn from.

Colours are Okabe and Ito's (2008), told apart by the colour-blind; line style, marker or number
repeats what colour says, so that nothing is lost in black and white.
"""

from __future__ import annotations

import base64
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from leukoscope.report.numbers import clean

PAPER, INK, MUTED, RULE = "#ffffff", "#1c2024", "#5c6470", "#d5d9df"
BLUE, ORANGE = "#0072b2", "#d55e00"
SHARE, ON_SHARE = "#00558f", "#fefefe"  # the confusion matrix's ramp and the text on its dark end
# In the page the same colours follow the reader's light or dark setting.
_VARIABLES = {
    PAPER: "--paper",
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    BLUE: "--blue",
    ORANGE: "--orange",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "leukoscope",
    "text.parse_math": False,  # a class may be called "$x$"
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
}


@dataclass(frozen=True)
class Drawing:
    """A figure: file stem, SVG text, the data it shows, and what it is for those who can't see."""

    name: str
    svg: str
    data: pd.DataFrame
    alt: str
    width: float  # CSS pixels at natural size

    @property
    def data_uri(self) -> str:
        """The data as CSV in a `data:` URI, so that a page alone can give it."""
        text = self.data.to_csv(index=False)
        return f"data:text/csv;base64,{base64.b64encode(text.encode('utf-8')).decode()}"

    @property
    def inline(self) -> Markup:
        """The SVG for a page: colours by variable, identifiers of its own, nothing external."""
        body = self.svg[self.svg.index("<svg") :]
        head, rest = body.split(">", 1)
        box = re.search(r'viewBox="[^"]*"', head)
        rest = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", rest, flags=re.S)
        rest = re.sub(r'\bid="', f'id="{self.name}-', rest)
        rest = re.sub(r"url\(#", f"url(#{self.name}-", rest)
        rest = re.sub(r'xlink:href="#', f'href="#{self.name}-', rest)
        for colour, variable in _VARIABLES.items():
            rest = rest.replace(colour, f"var({variable})")
        label = escape(clean(self.alt))
        return Markup(  # matplotlib escapes the text that it writes
            f'<svg role="img" aria-label="{label}" {box.group(0) if box else ""}'
            ' preserveAspectRatio="xMinYMin"'
            f' style="width:{self.width:.0f}px">{rest}'
        )


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser draws the text with its own fonts, so a glyph that matplotlib's
        # font lacks is not missing from the figure.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _drawing(figure: Figure, name: str, data: pd.DataFrame, alt: str) -> Drawing:
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return Drawing(name, stream.getvalue(), data, alt, 96 * figure.get_figwidth())


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%".replace("-", "−"))


def learning_curve(history: pd.DataFrame, what: str, chosen: int | None) -> Drawing | None:
    """Training and validation `what` (`loss` or `accuracy`) over epochs; None without figures.

    `chosen` is the row of the chosen epoch. Epochs are counted through all phases.
    """
    columns = [c for c in (f"train_{what}", f"validation_{what}") if c in history]
    columns = [c for c in columns if history[c].notna().any()]
    if not columns:
        return None
    steps = np.arange(1, len(history) + 1)
    with _style():
        figure, axes = _figure(3.7, 2.7)
        looks = {"train": (ORANGE, "--", "o"), "validation": (BLUE, "-", "s")}
        for column in columns:
            part = column.partition("_")[0]
            colour, line, marker = looks[part]
            axes.plot(
                *(steps, history[column]),
                color=colour,
                linestyle=line,
                marker=marker if len(history) <= 30 else None,
                markersize=3,
                linewidth=1.5,
                label={"train": "training"}.get(part, part),
            )
        if chosen is not None:
            axes.axvline(
                chosen + 1, color=MUTED, linewidth=0.9, linestyle=":", label="chosen epoch"
            )
        for start in _phase_starts(history):
            axes.axvline(start + 0.5, color=RULE, linewidth=1.2)
        axes.set_title(what.capitalize())
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if what == "accuracy":
            axes.yaxis.set_major_formatter(_percent())
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
        kept = [c for c in ("phase", "epoch", *columns) if c in history]
        alt = f"Line chart of {what} over {len(history)} epochs, training and validation"
        return _drawing(figure, f"learning_{what}", history[kept], alt)


def _phase_starts(history: pd.DataFrame) -> list[int]:
    if "phase" not in history:
        return []
    phases = history["phase"].tolist()
    return [i for i in range(1, len(phases)) if phases[i] != phases[i - 1]]


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Drawing:
    """Counts and row shares; `matrix` is (k, k) int with true classes as rows."""
    k = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    names = [clean(c, 22) for c in classes]
    side = 0.62 if k <= 10 else 0.46
    margin = 0.35 + 0.075 * max(map(len, names))
    with _style():
        figure, axes = _figure(max(3.4, k * side + margin + 0.2), max(2.9, k * side + margin))
        for (row, column), share in np.ndenumerate(shares):
            cell = Rectangle((column, row), 1, 1, facecolor=SHARE, alpha=share, linewidth=0)
            axes.add_patch(cell)
            _cell_text(axes, row, column, int(matrix[row, column]), share, small=k > 10)
        axes.set(xlim=(0, k), ylim=(k, 0), aspect="equal")
        axes.set_xticks(np.arange(k) + 0.5, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(k) + 0.5, names)
        axes.set_xticks(np.arange(k + 1), minor=True)
        axes.set_yticks(np.arange(k + 1), minor=True)
        axes.grid(which="minor")
        axes.tick_params(which="both", length=0)
        axes.spines[:].set(visible=True, color=RULE)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        data = pd.DataFrame(
            [
                (classes[i], classes[j], int(matrix[i, j]), shares[i, j] if totals[i, 0] else None)
                for i, j in np.ndindex(k, k)
            ],
            columns=["true", "predicted", "count", "row_share"],
        )
        alt = f"Confusion matrix of {k} classes: rows true, columns predicted, counts, row shares"
        return _drawing(figure, "confusion_matrix", data, alt)


def _cell_text(axes: Axes, row: int, column: int, n: int, share: float, *, small: bool) -> None:
    # White is read better than ink from a share of .7 on, in the light and the dark page alike.
    colour = ON_SHARE if share >= 0.7 else INK if n else MUTED
    at: dict[str, Any] = {"ha": "center", "color": colour}
    if small or not n:
        axes.text(column + 0.5, row + 0.5, f"{n}", va="center", fontsize=7 if small else 8.5, **at)
        return
    weight = "bold" if row == column else "normal"
    axes.text(column + 0.5, row + 0.43, f"{n}", va="center", fontsize=9, fontweight=weight, **at)
    axes.text(column + 0.5, row + 0.75, f"{100 * share:.0f}%", va="center", fontsize=6.5, **at)


def _look(kind: str) -> tuple[str, str]:
    """Colour and marker of a kind of value, the same in every figure."""
    looks = {"published": (ORANGE, "s"), "figure": (MUTED, "D")}
    return looks.get(kind.partition(" ")[0], (BLUE, "o"))


def ranges(
    name: str,
    data: pd.DataFrame,
    alt: str,
    *,
    share: bool = True,
    title: str = "",
) -> Drawing:
    """Values with intervals, one row each, from the columns `name, value, low, high[, kind]`.

    `kind` sets colour and marker and is named in a legend.
    """
    kinds = list(dict.fromkeys(data["kind"])) if "kind" in data else [""]
    names = list(dict.fromkeys(data["name"]))
    with _style():
        figure, axes = _figure(3.7, 0.75 + 0.42 * len(names) * max(1, 0.62 * len(kinds)))
        for which, kind in enumerate(kinds):
            part = data[data["kind"] == kind] if kind else data
            shift = (which - (len(kinds) - 1) / 2) * 0.24
            y = np.array([names.index(n) for n in part["name"]]) + shift
            value = part["value"].to_numpy(float)
            low = part["low"].astype(float).fillna(part["value"]).to_numpy()
            high = part["high"].astype(float).fillna(part["value"]).to_numpy()
            colour, marker = _look(kind)
            axes.hlines(y, low, high, color=colour, linewidth=1.6)
            axes.plot(value, y, marker, color=colour, markersize=5.5, label=kind or None)
        axes.set_yticks(range(len(names)), [textwrap.fill(clean(n, 60), 24) for n in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        if share:
            axes.xaxis.set_major_formatter(_percent())
        if title:
            axes.set_title(title)
        if len(kinds) > 1:
            figure.legend(loc="outside lower center", ncols=2)
        return _drawing(figure, name, data, alt)


def reliability(bins: pd.DataFrame) -> Drawing:
    """Accuracy against confidence, from `low, high, n, confidence, accuracy` of each bin."""
    filled = bins[bins["n"] > 0]
    with _style():
        figure = Figure(figsize=(3.7, 3.7), layout="constrained")
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect")
        axes.plot(
            *(filled["confidence"], filled["accuracy"]),
            color=BLUE,
            marker="o",
            markersize=4,
            linewidth=1.5,
            label="this model",
        )
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.set_ylabel("share correct")
        axes.grid()
        axes.legend(loc="upper left")
        width = bins["high"] - bins["low"]
        counts.bar(bins["low"], bins["n"], width=width * 0.92, align="edge", color=BLUE, alpha=0.55)
        counts.set_ylabel("count")
        counts.set_xlabel("confidence of the answer")
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for each in (axes.xaxis, axes.yaxis):
            each.set_major_formatter(_percent())
        alt = "Reliability diagram: share of correct answers against stated confidence, with counts"
        return _drawing(figure, "reliability", bins, alt)


def robustness(frame: pd.DataFrame, metric: str) -> Drawing:
    """`metric` against the strength of each disturbance (columns `corruption`, `severity`)."""
    kinds = list(dict.fromkeys(frame["corruption"]))
    columns = min(2, len(kinds))
    rows = -(-len(kinds) // columns)
    with _style():
        figure = Figure(figsize=(1.7 * columns + 0.3, 1.6 * rows + 0.2), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, kind in zip(grid.flat, kinds, strict=False):
            part = frame[frame["corruption"] == kind].sort_values("severity")
            axes.plot(part["severity"], part[metric], color=BLUE, marker="o", markersize=3)
            axes.set_title(clean(kind, 26))
            axes.grid(axis="y")
            axes.yaxis.set_major_formatter(_percent())
        for axes in list(grid.flat)[len(kinds) :]:
            axes.remove()
        kept = frame[["corruption", "severity", metric]]
        alt = f"{metric.capitalize()} against the strength of {len(kinds)} kinds of disturbance"
        return _drawing(figure, "robustness", kept, alt)
