"""The t-SNE map of a model's features as a figure, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from leukoscope import files
from leukoscope.errors import InputError
from leukoscope.report import figures
from leukoscope.report.figures import INK, MUTED, PAPER, Drawing
from leukoscope.report.numbers import clean, count, percent

NAME = "tsne"
COLUMNS = ("image", "x", "y", "predicted", "label", "novelty")
NEIGHBOURS = 5
MOST_VECTORS = 2000  # more points are drawn as pixels, lest the page take seconds
COLOURS = (*figures.SERIES, "#e69f00", "#56b4e9", "#8a7000")


def read(folder: Path) -> pd.DataFrame | None:
    """tsne.csv of a folder of explanations, labels null where unknown; None where there is none.

    InputError where it lacks a column or a row's place.
    """
    path = folder / f"{NAME}.csv"
    if not path.is_file():
        return None
    text = dict.fromkeys(("image", "predicted", "label"), str)
    try:
        frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
        places = frame[list(COLUMNS)][["x", "y"]].to_numpy(float)
    except (OSError, ValueError, KeyError) as problem:
        raise _broken(path, str(problem).splitlines()[0][:160]) from None
    if not len(frame) or not np.isfinite(places).all() or frame["predicted"].isna().any():
        raise _broken(path, "a row without x, y or predicted, or no rows")
    return frame


def _broken(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is not what explain --tsne writes: {why}",
        fix="Make it anew with leukoscope explain RUN --tsne -o DIR.",
        field="tsne",
    )


def write(folder: Path) -> None:
    """Draw tsne.csv of a folder as tsne.svg and tsne.png beside it."""
    frame = read(folder)
    if frame is None:
        raise InputError(f"{folder} holds no {NAME}.csv", fix="Make it with --tsne.", field="tsne")
    made = draw(frame)
    files.write_text(folder / f"{NAME}.svg", made.svg)
    with files.atomic(folder / f"{NAME}.png") as temporary, figures.style():
        made.figure.savefig(temporary, format="png", dpi=220)


def draw(frame: pd.DataFrame) -> Drawing:
    """Each image a point: coloured and numbered by label, a cross where the answer was wrong.

    Where no label is known, coloured by the predicted class.
    """
    known = frame["label"].notna()
    by = frame["label"].fillna("no label") if known.any() else frame["predicted"]
    wrong = (known & (frame["label"] != frame["predicted"])).to_numpy()
    names = sorted(by.unique())
    height = 3.6 + 0.19 * -(-(len(names) + 1) // 2)
    with figures.style():
        figure = Figure(figsize=(3.7, height), layout="constrained")
        axes = figure.add_subplot()
        handles = []
        for place, name in enumerate(names):
            colour = COLOURS[place % len(COLOURS)]
            part = (by == name).to_numpy()
            for chosen, marker, size, edge in ((~wrong, "o", 10, "none"), (wrong, "X", 26, INK)):
                rows = frame[part & chosen]
                axes.scatter(rows["x"], rows["y"], s=size, c=colour, marker=marker, linewidths=0.5,
                             edgecolors=edge, zorder=3 if marker == "X" else 2,
                             rasterized=len(frame) > MOST_VECTORS)  # fmt: skip
            middle = frame.loc[part, ["x", "y"]].median()
            axes.text(middle["x"], middle["y"], str(place + 1), weight="bold", zorder=4,
                      ha="center", va="center",
                      path_effects=[withStroke(linewidth=2.5, foreground=PAPER)])  # fmt: skip
            handles.append(_handle("o", colour, f"{place + 1}  {clean(name, 22)}"))
        if wrong.any():
            handles.append(_handle("X", MUTED, "wrong answer"))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
        alt = f"t-SNE of the features of {count(len(frame), 'image')}, numbered by class"
        return figures.drawing(figure, NAME, frame, alt)


def _handle(marker: str, colour: str, text: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=text)


def conclusion(frame: pd.DataFrame) -> str:
    """What to conclude: how far classes lie apart, and where wrong answers lie."""
    text = f"t-SNE of the features of {count(len(frame), 'image')}: near ones look alike to the " \
        "model; how far groups lie apart, and how large they are, means nothing. "  # fmt: skip
    known = frame[frame["label"].notna()]
    if known["label"].nunique() < 2 or len(known) <= NEIGHBOURS:
        return text + "Too few labels are known to say whether classes lie apart."
    same = _same_class(known)
    text += f"Of an image's {NEIGHBOURS} nearest {percent(same.mean())} have its label"
    wrong = (known["label"] != known["predicted"]).to_numpy()
    if not wrong.any() or wrong.all():
        return f"{text}."
    right, errors = percent(same[~wrong].mean()), percent(same[wrong].mean())
    where = (
        "errors lie among other classes: to the model these cells look like them"
        if same[wrong].mean() < 0.5
        else "errors lie among their own class: the last layer, not the features, loses them"
    )
    return f"{text}; {right} of right answers and {errors} of wrong ones: {where}."


def _same_class(known: pd.DataFrame) -> np.ndarray:
    """(n,) the share of an image's nearest in the map that have its label."""
    from scipy.spatial import cKDTree

    places = known[["x", "y"]].to_numpy(float)
    labels = known["label"].to_numpy()
    near = cKDTree(places).query(places, NEIGHBOURS + 1)[1][:, 1:]
    return (labels[near] == labels[:, None]).mean(axis=1)
