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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
SERIES = (BLUE, ORANGE, "#009e73", "#cc79a7", INK)
LINES, MARKERS = ("-", "--", ":", "-."), "osD^v"  # a period other than the colours'
SHARE, ON_SHARE = "#00558f", "#fefefe"  # the confusion matrix's ramp and the text on its dark end
# In the page the same colours follow the reader's light or dark setting.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    BLUE: "--blue",
    ORANGE: "--orange",
}
MOST_CURVES = 10  # named in one figure
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
    figure: Figure = field(compare=False, repr=False)

    @property
    def width(self) -> float:
        """CSS pixels at natural size."""
        return 96 * float(self.figure.get_figwidth())

    @property
    def data_uri(self) -> str:
        """The data as CSV in a `data:` URI, so that a page alone can give it."""
        return csv_uri(self.data)

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
        rest = rest.replace(PAPER, "transparent")  # so that the edge shows where there is more
        label = escape(clean(self.alt))
        return Markup(  # matplotlib escapes the text that it writes
            f'<svg role="img" aria-label="{label}" {box.group(0) if box else ""}'
            ' preserveAspectRatio="xMinYMin"'
            f' style="width:{self.width:.0f}px">{rest}'
        )


def csv_uri(data: pd.DataFrame) -> str:
    """A table as CSV in a `data:` URI."""
    text = data.to_csv(index=False)
    return f"data:text/csv;base64,{base64.b64encode(text.encode('utf-8')).decode()}"


@contextmanager
def style() -> Iterator[None]:
    """How every figure looks, while it is put together and drawn."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser draws the text with its own fonts, so a glyph that matplotlib's
        # font lacks is not missing from the figure.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def drawing(figure: Figure, name: str, data: pd.DataFrame, alt: str) -> Drawing:
    """A figure that was put together in `style`, drawn in it."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    figure.set_layout_engine("none")  # laid out once; the PDF draws it as it stands
    return Drawing(name, stream.getvalue(), data, alt, figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%".replace("-", "−"))


def learning_curve(
    history: pd.DataFrame, what: str, chosen: Sequence[int], network: str = ""
) -> Drawing | None:
    """Training and validation `what` (`loss` or `accuracy`) over epochs; None without figures.

    One line a fold. `chosen` are the rows' labels of the epochs that were kept. Epochs are counted
    through all phases, whose borders are marked.
    """
    columns = [c for c in (f"train_{what}", f"validation_{what}") if c in history]
    columns = [c for c in columns if history[c].notna().any()]
    if not columns:
        return None
    parts = [part for _, part in history.groupby("fold")] if "fold" in history else [history]
    few = len(parts) == 1 and len(history) <= 30
    with style():
        figure, axes = _figure(3.7, 2.7)
        looks = {"train": (ORANGE, "--", "o"), "validation": (BLUE, "-", "s")}
        for column in columns:
            colour, line, marker = looks[column.partition("_")[0]]
            for part in parts:
                axes.plot(
                    *(np.arange(1, len(part) + 1), part[column]),
                    color=colour,
                    linestyle=line,
                    marker=marker if few else None,
                    markersize=3,
                    linewidth=1.5 if len(parts) == 1 else 0.9,
                    label=_part_name(column) if part is parts[0] else None,
                )
        _kept_epochs(axes, parts, columns[-1], chosen)
        for start in sorted({start for part in parts for start in _phase_starts(part)}):
            axes.axvline(start + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_title(f"{what.capitalize()}{f', {clean(network, 30)}' if network else ''}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if what == "accuracy":
            axes.yaxis.set_major_formatter(_percent())
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
        kept = [c for c in ("network", "fold", "phase", "epoch", *columns) if c in history]
        alt = f"Line chart of {what} over {max(map(len, parts))} epochs, training and validation"
        return drawing(figure, name_of("learning", network, what), history[kept], alt)


def _part_name(column: str) -> str:
    part = column.partition("_")[0]
    return "training" if part == "train" else part


def _kept_epochs(
    axes: Axes, parts: Sequence[pd.DataFrame], column: str, chosen: Sequence[int]
) -> None:
    """A ring around each epoch that was kept."""
    places = [(at + 1, part.loc[row, column])
              for part in parts for at, row in enumerate(part.index) if row in chosen]  # fmt: skip
    if places:
        x, y = zip(*places, strict=True)
        look: dict[str, Any] = {
            "color": INK,
            "markerfacecolor": "none",
            "markersize": 9,
            "markeredgewidth": 1.2,
        }
        axes.plot(x, y, "o", **look, label="epoch kept")


def name_of(*parts: str) -> str:
    """A file stem and anchor from words, of which any may be empty."""
    return re.sub("[^a-z0-9]+", "_", " ".join(parts).lower()).strip("_")


def _phase_starts(history: pd.DataFrame) -> list[int]:
    if "phase" not in history:
        return []
    phases = history["phase"].tolist()
    return [i for i in range(1, len(phases)) if phases[i] != phases[i - 1]]


def confusion_matrix(
    matrix: np.ndarray, classes: Sequence[str], place: str = "", model: str = ""
) -> Drawing:
    """Counts and row shares; `matrix` is (k, k) int with true classes as rows.

    Of several models each has a `place` in the names of the files, and its name as title.
    """
    k = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    names = [clean(c, 22) for c in classes]
    side = 0.62 if k <= 10 else 0.46
    margin = 0.35 + 0.075 * max(map(len, names))
    with style():
        figure, axes = _figure(max(3.4, k * side + margin + 0.2), max(2.9, k * side + margin))
        for (row, column), share in np.ndenumerate(shares):
            if share:
                cell = Rectangle((column, row), 1, 1, facecolor=SHARE, alpha=share, linewidth=0)
                axes.add_artist(cell)  # without add_patch's slow look at the limits
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
        if model:
            axes.set_title(clean(model, 40))
        return drawing(figure, name_of("confusion_matrix", place), data, alt)


def _cell_text(axes: Axes, row: int, column: int, n: int, share: float, *, small: bool) -> None:
    if small and not n:  # a large matrix is read by what is in it
        return
    # White is read better than ink from a share of .7 on, in the light and the dark page alike.
    colour = ON_SHARE if share >= 0.7 else INK if n else MUTED
    at: dict[str, Any] = {"ha": "center", "color": colour, "in_layout": False}
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
    with style():
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
        return drawing(figure, name, data, alt)


def reliability(models: Mapping[str, pd.DataFrame]) -> Drawing:
    """Accuracy against confidence, by model `low, high, n, confidence, accuracy` of each bin; of a
    single model with `accuracy_low, accuracy_high`."""
    with style():
        figure = Figure(figsize=(3.7, 3.9), layout="constrained")
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect")
        for at, (name, bins) in enumerate(models.items()):
            filled = bins[bins["n"] > 0]
            axes.plot(
                *(filled["confidence"], filled["accuracy"]),
                **_series(at),
                marker=MARKERS[at % len(MARKERS)],
                markersize=4,
                linewidth=1.5,
                label=clean(name, 30),
            )
            if len(models) == 1:
                ends = filled["accuracy_low"], filled["accuracy_high"]
                axes.vlines(filled["confidence"], *ends, color=BLUE, linewidth=1)
            edges = [*bins["low"], bins["high"].iloc[-1]]
            counts.stairs(bins["n"], edges, fill=len(models) == 1, **_series(at))
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.set_ylabel("share correct")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2)
        counts.set_ylabel("count")
        counts.set_xlabel("confidence of the answer")
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for each in (axes.xaxis, axes.yaxis):
            each.set_major_formatter(_percent())
        alt = "Reliability diagram: share of correct answers against stated confidence, with counts"
        frames = [bins.assign(model=name) for name, bins in models.items()]
        return drawing(figure, "reliability", pd.concat(frames, ignore_index=True), alt)


def _series(at: int) -> dict[str, Any]:
    """Colour and line of the `at`-th of several: together they tell twenty apart."""
    return {"color": SERIES[at % len(SERIES)], "linestyle": LINES[at % len(LINES)]}


def roc(
    curves: pd.DataFrame, areas: Mapping[str, float], place: str = "", model: str = ""
) -> Drawing:
    """One-vs-rest ROC curves from `class, false_positive_rate, true_positive_rate`.

    areas: the AUC of each class; those of the lowest are named, the others are drawn thinly.
    """
    order = sorted(areas, key=lambda name: areas[name])
    close = 0.3 if areas[order[0]] > 0.95 else 1.0
    with style():
        figure, axes = _figure(3.7, 3.75 + 0.16 * min(len(order), MOST_CURVES))
        for at, name in enumerate(order):
            part = curves[curves["class"] == name]
            named = at < MOST_CURVES
            look = _series(at) | {"linewidth": 1.5} if named else {"color": RULE, "linewidth": 0.8}
            label = f"{clean(name, 34)}, AUC {areas[name]:.3f}" if named else None
            axes.plot(part["false_positive_rate"], part["true_positive_rate"], **look, label=label,
                      zorder=3 if named else 2)  # fmt: skip
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=0.8)
        axes.set(xlim=(-0.01 * close, close), ylim=(1 - close, 1 + 0.01 * close), aspect="equal")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        for each in (axes.xaxis, axes.yaxis):
            each.set_major_formatter(_percent())
        axes.grid()
        corner = "upper left corner" if close < 1 else ""
        axes.set_title(", ".join(part for part in (clean(model, 24), corner) if part))
        figure.legend(loc="outside lower left", ncols=1)
        alt = f"ROC curves of {len(order)} classes, each against the rest"
        return drawing(figure, name_of("roc", place), curves, alt)
