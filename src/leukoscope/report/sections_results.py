"""Sections on what came out: learning curves, confusions, classes, comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from leukoscope.data.datasets import datasets
from leukoscope.evaluate.metrics import SCALARS
from leukoscope.evaluate.predictions import Predictions
from leukoscope.recipes.published import applying
from leukoscope.report import figures
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import (
    bounds,
    count,
    difference,
    estimate,
    listing,
    measured,
    number,
    percent,
    plain,
    points,
    title,
)
from leukoscope.report.page import (
    Block,
    Cell,
    Details,
    List,
    Missing,
    Paragraph,
    Plot,
    Section,
    Table,
)
from leukoscope.report.sections_paper import shown

PER_CLASS = ("precision", "recall", "specificity", "f1", "ovr_accuracy", "roc_auc")
MOST_CONFUSIONS = 3
MOST_OPEN_ROWS = 20  # of a paper's table before it is folded away
MOST_POINTS = 200  # of a ROC curve


def value(run: Run, metric: str) -> Cell | str:
    """One of the run's own metrics, `per_class.<name>.<metric>` among them, with its interval or
    the reason why it is undefined."""
    return shown(metric, run.measured.lookup(metric))


# --- learning curves ------------------------------------------------------------------------------


def chosen_epoch(history: pd.DataFrame) -> int | None:
    """The place of the epoch that was kept: of lowest validation loss in the last phase."""
    losses = history.get("validation_loss", pd.Series(dtype=float)).to_numpy(float)
    if "phase" in history:
        losses = np.where(history["phase"] == history["phase"].iloc[-1], losses, np.nan)
    return None if np.isnan(losses).all() else int(np.nanargmin(losses))


def learning(run: Run) -> Section:
    """Loss and accuracy by epoch, of each network by itself, a line a fold."""
    name = "Learning curves"
    blocks = []
    for network, history in _networks(run.history):
        parts = [part for _, part in history.groupby("fold")] if "fold" in history else [history]
        places = [chosen_epoch(part) for part in parts] if not _averaged(run) else []
        chosen = [
            int(part.index[place])
            for part, place in zip(parts, places, strict=False)
            if place is not None
        ]
        both = [figures.learning_curve(history, w, chosen, network) for w in ("loss", "accuracy")]
        drawn = [drawing for drawing in both if drawing is not None]
        if drawn:
            blocks.append(Plot(drawn, _learning_says(run, network, parts, chosen)))
    if not blocks:
        text = "There is no training history, as nothing was trained here; to have one, run"
        command = "leukoscope train RECIPE cells.parquet -o RUN"
        return Section("learning", name, [Missing(text, command)])
    return Section("learning", name, blocks)


def _networks(history: pd.DataFrame | None) -> list[tuple[str, pd.DataFrame]]:
    if history is None:
        return []
    if "network" not in history:
        return [("", history)]
    return [(str(name), part) for name, part in history.groupby("network", sort=False)]


def _averaged(run: Run) -> bool:
    """Whether what was kept is an average of epochs, and so none of them."""
    training = run.recipe.get("training")
    averaging = training.get("averaging") if isinstance(training, Mapping) else None
    return isinstance(averaging, Mapping) and bool(averaging.get("start"))


def _learning_says(
    run: Run, network: str, parts: Sequence[pd.DataFrame], chosen: Sequence[int]
) -> str:
    head = f"{network}: " if network else ""
    history = parts[0]
    phases = history["phase"].nunique() if "phase" in history else 1
    borders = " Dotted lines part the phases of training." if phases > 1 else ""
    if _averaged(run):
        return f"{head}The weights kept are an average over the last epochs.{borders}"
    if not chosen:
        return f"{head}No validation loss was recorded, so which epoch is best can't be told."
    if len(parts) > 1:
        epochs = [str(list(part.index).index(row) + 1)
                  for part, row in zip(parts, chosen, strict=False)]  # fmt: skip
        return (
            f"{head}One line a fold; rings mark the epochs kept: {listing(epochs)}. Lines that lie "
            f"close together mean that the result hardly depends on the fold.{borders}"
        )
    return f"{head}{_one_history_says(history, list(history.index).index(chosen[0]))}{borders}"


def _one_history_says(history: pd.DataFrame, chosen: int) -> str:
    row, n = history.iloc[chosen], len(history)
    loss = float(row["validation_loss"])
    says = [f"Epoch {chosen + 1} of {n} was kept, with a validation loss of {loss:.3f}"]
    if chosen == n - 1:
        says.append("the loss was still falling at the end, so longer training may gain more")
    else:
        says.append(f"{count(n - 1 - chosen, 'later epoch')} brought nothing better")
    train, held_out = (
        number(_item(row, "train_accuracy")),
        number(_item(row, "validation_accuracy")),
    )
    if train is not None and held_out is not None:
        gap = train - held_out
        side = "above" if gap >= 0 else "below"
        kind = "a sign of overfitting" if gap > 0.05 else "no sign of overfitting"
        says.append(f"training accuracy is {points(gap)} {side} validation accuracy there, {kind}")
    return f"{'; '.join(says)}."


def _item(row: pd.Series, name: str) -> object:
    return float(row[name]) if name in row and pd.notna(row[name]) else None


# --- confusion matrix -----------------------------------------------------------------------------


def confusion(run: Run) -> Section:
    """Which class is taken for which."""
    name = "Confusion matrix"
    counts = run.confusions
    if not len(counts):
        text = "metrics.json holds no confusion matrix; to compute it from the predictions, run"
        command = f"leukoscope evaluate {run.folder.name} -o metrics.json"
        return Section("confusion", name, [Missing(text, command)])
    drawing = figures.confusion_matrix(counts, run.classes)
    return Section("confusion", name, [Plot([drawing], _confusion_says(counts, run.classes))])


def _confusion_says(counts: np.ndarray, classes: list[str]) -> str:
    errors = counts - np.diag(np.diag(counts))
    scale = "Darker means a larger share of the row."
    if not errors.sum():
        return f"No image was taken for another class. {scale}"
    k = len(classes)
    order = np.argsort(-errors.ravel(), kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(i), k) for i in order if errors.ravel()[i] > 0]
    says = [
        f"{classes[i]} taken for {classes[j]} ({counts[i, j]} of {counts[i].sum()})"
        for i, j in pairs
    ]
    part = sum(errors[i, j] for i, j in pairs) / errors.sum()
    return (
        f"Most confusions: {listing(says)}; together {percent(part)} of all "
        f"{count(int(errors.sum()), 'error')}. {scale}"
    )


# --- figures overall and by class -----------------------------------------------------------------


def classes(run: Run) -> Section:
    """Every metric with its interval, then by class with support."""
    known = [m for m in SCALARS if m in run.metrics]
    known += sorted(
        m for m, v in run.metrics.items() if m not in SCALARS and m != "n" and number(v) is not None
    )
    rows: list[list[Cell | str]] = [[title(metric), value(run, metric)] for metric in known]
    unit = "patient" if run.metrics.get("level") == "patient" else "image"
    caption = f"Overall, on {count(run.metrics.get('n') or 0, unit)}, with 95% intervals."
    overall = Table(caption, ["Metric", "Value"], rows)
    notes: list[Block] = [Paragraph(str(note), "quiet") for note in run.metrics.get("notes") or []]
    return Section(
        "classes", "Figures overall and by class", [overall, *notes, *_parts(run), *_per_class(run)]
    )


def _parts(run: Run) -> list[Block]:
    """Accuracy and macro F1 by patient and slide, on validation, after each phase and over the
    folds."""
    shown_metrics = ("accuracy", "macro_f1")
    parts = {
        "By patient, mean probability": run.metrics.get("patient_level"),
        "By patient, vote": run.metrics.get("patient_vote"),
        "By slide, mean probability": run.metrics.get("slide_level"),
        "By slide, vote": run.metrics.get("slide_vote"),
        "On validation": run.metrics.get("validation"),
    }
    for phase, found in (run.metrics.get("phases") or {}).items():
        parts[f"After phase {phase}"] = found
    rows: list[list[Cell | str]] = []
    for name, found in parts.items():
        if isinstance(found, Mapping):
            inner = Run(run.folder, dict(found))
            unit = str(found.get("level") or "image")
            figures_of = [value(inner, metric) for metric in shown_metrics]
            rows.append([name, count(found.get("n") or 0, unit), *figures_of])
    folds = run.metrics.get("folds") or {}
    known = [folds[m] for m in shown_metrics if m in folds]
    if known:
        spread = [_spread(found) for found in known]
        rows.append(
            ["Mean and standard deviation", count(len(known[0]["values"]), "fold"), *spread]
        )
    if not rows:
        return []
    caption = (
        "The same figures counted otherwise: a patient's answer is the class of the highest mean "
        "probability over its images, or of the most votes."
    )
    return [Table(caption, ["Part", "Number", *map(title, shown_metrics)], rows, frozenset({1}))]


def _spread(found: Mapping[str, Any]) -> Cell | str:
    """Mean and standard deviation over folds."""
    mean, sd = number(found.get("mean")), number(found.get("sd"))
    if mean is None:
        return Cell("undefined", "it is defined in no fold")
    return percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"


def _per_class(run: Run) -> list[Block]:
    table = run.metrics.get("per_class")
    if not isinstance(table, Mapping) or not table:
        command = f"leukoscope evaluate {run.folder.name} -o metrics.json"
        return [Missing("metrics.json holds no figures by class; to compute them, run", command)]
    columns = [m for m in PER_CLASS if any(m in row for row in table.values())]
    rows: list[list[Cell | str]] = []
    for name, row in table.items():
        cells = [value(run, f"per_class.{name}.{m}") for m in columns]
        rows.append([str(name), *cells, f"{row.get('support', 0):,}"])
    return [Table(_classes_say(table), ["Class", *map(title, columns), "Support"], rows)]


def _classes_say(table: Mapping[str, Any]) -> str:
    recalls = {n: r for n, row in table.items() if (r := number(row.get("recall"))) is not None}
    if not recalls:
        return "By class."
    worst = min(recalls, key=lambda n: recalls[n])
    best = max(recalls, key=lambda n: recalls[n])
    support = table[worst].get("support", 0)
    text = (
        f"By class. {worst} is missed most often (recall {percent(recalls[worst])} of {support:,}),"
        f" {best} least often ({percent(recalls[best])})."
    )
    few = [n for n, row in table.items() if (row.get("support") or 0) < 20]
    return (
        f"{text} Fewer than 20 images: {listing(few)}; read their figures with care."
        if few
        else text
    )


# --- ROC ------------------------------------------------------------------------------------------


def roc(run: Run, place: str = "", model: str = "") -> Section:
    """Every class against the rest, at every threshold."""
    name = "ROC curves"
    table = run.metrics.get("per_class") or {}
    areas = {
        c: a for c in run.classes if (a := number((table.get(c) or {}).get("roc_auc"))) is not None
    }
    if run.scored is None or run.scored.probs is None or not areas:
        text = "Without class probabilities there are no ROC curves; give prob_<class> columns to"
        command = "leukoscope evaluate predictions.csv -o metrics.json"
        return Section("roc", name, [Missing(text, command)])
    drawing = figures.roc(roc_curves(run.scored, areas), areas, place, model)
    worst = min(areas, key=lambda c: areas[c])
    says = (
        f"Each class against the rest. {worst} is told apart worst (AUC {areas[worst]:.3f}): of "
        f"all pairs of one {worst} and one other image {percent(areas[worst])} are ranked right."
    )
    more = len(areas) - figures.MOST_CURVES
    if more > 0:
        says += f" {count(more, 'class')} of higher AUC stand{'s' if more == 1 else ''} in grey."
    return Section("roc", name, [Plot([drawing], says)])


def roc_curves(found: Predictions, classes: Iterable[str]) -> pd.DataFrame:
    """`class, false_positive_rate, true_positive_rate` of each class against the rest, at most
    MOST_POINTS points a class."""
    from sklearn.metrics import roc_curve

    assert found.probs is not None
    frames = []
    for name in classes:
        column = found.classes.index(name)
        false, true, _ = roc_curve(found.labels == column, found.probs[:, column])
        kept = np.unique(np.linspace(0, len(false) - 1, MOST_POINTS).round().astype(int))
        points_of = {"false_positive_rate": false[kept], "true_positive_rate": true[kept]}
        frames.append(pd.DataFrame({"class": name, **points_of}))
    return pd.concat(frames, ignore_index=True)


# --- beside the paper, beside the other protocol --------------------------------------------------


def published(run: Run) -> Section:
    """The paper's figures for this arm beside those measured here."""
    name = "Measured beside published"
    tables, remark = applying(run.published, len(run.classes))
    if not tables:
        arm = f" for the arm {run.arm!r}" if run.arm else ""
        text = f"The recipe names no published figure{arm}"
        if run.published:
            text += f" on data of {count(len(run.classes), 'class')}"
        command = f"[[published]] with [published.figures.{run.arm or 'ARM'}]"
        return Section("published", name, [Missing(f"{text}; add a table to the recipe:", command)])
    head = ["Metric", "Published", "Measured here", "Difference"]
    blocks: list[Block] = [Paragraph(_published_says(run, tables))]
    for table in tables:
        rows = [_beside_paper(run, metric, theirs) for metric, theirs in table["figures"].items()]
        made = Table(f"{table['title']}; the intervals are those of this run.", head, rows)
        long = len(rows) > MOST_OPEN_ROWS
        blocks.append(Details(f"{table['title']}: {count(len(rows), 'figure')}", [made]) if long
                      else made)  # fmt: skip
    blocks.append(Paragraph(remark or _data_sets(run)))
    traps = [str(trap) for trap in run.recipe.get("traps") or []]
    if traps:
        blocks += [Paragraph("To know about the published figures:"), List(traps)]
    return Section("published", name, blocks)


def _beside_paper(run: Run, metric: str, theirs: float) -> list[Cell | str]:
    found = run.measured.lookup(metric)
    ours, ends = estimate(found)
    if ours is None:
        return [title(metric), plain(metric, theirs), shown(metric, found), shown(metric, found)]
    low, high = bounds(ends)
    shift = None if low is None or high is None else [low - theirs, high - theirs]
    return [
        title(metric),
        plain(metric, theirs),
        measured(metric, ours, ends),
        difference(metric, ours - theirs, shift),
    ]


def _published_says(run: Run, tables: Sequence[Mapping[str, Any]]) -> str:
    stated = (table["figures"].get("accuracy") for table in tables)
    theirs = next((figure for figure in stated if figure is not None), None)
    ours = number(run.metrics.get("accuracy"))
    if theirs is None or ours is None:
        return "The paper's figures as it states them."
    low, high = bounds(run.limits("accuracy"))
    side = "above" if ours > theirs else "below"
    text = f"Accuracy here is {points(ours - theirs)} {side} the published figure"
    if low is None or high is None:
        return f"{text}."
    inside = "within" if low <= theirs <= high else "outside"
    return f"{text}, which lies {inside} this run's 95% interval."


def _data_sets(run: Run) -> str:
    mine = str(run.index.get("name") or "the images of this run")
    key = str(run.recipe.get("dataset") or "")
    theirs = datasets[key].title if key in datasets else key
    if theirs and mine in (key, theirs):
        return (
            f"The paper and this run name the same data set, {mine}; the parts tested may differ."
        )
    if theirs:
        return (
            f"The data sets differ: the paper measured on {theirs}, this run on {mine}. "
            "The difference is one of data as much as of method."
        )
    return (
        f"This run measured on {mine}, the paper on its own data set: unless they are the same "
        "images, the difference is one of data as much as of method."
    )


def protocols(run: Run) -> Section:
    """This run beside the same recipe and arm under the other protocol."""
    name = "Clean beside published protocol"
    beside = run.beside
    if beside is None:
        recipe = run.recipe.get("name") or "RECIPE"
        text = "Only one protocol was run; to measure how much the published one flatters, run"
        command = f"leukoscope reproduce {recipe} cells.parquet -o DIR"
        return Section("protocols", name, [Missing(text, command)])
    other = str(beside.get("protocol") or "other")
    own = run.protocol or "this run"
    theirs, ends = beside.get("metrics") or {}, beside.get("ci") or {}
    rows: list[list[Cell | str]] = []
    data = []
    for metric in [m for m in SCALARS if m in theirs]:
        there = number(theirs[metric])
        cell = "undefined" if there is None else measured(metric, there, ends.get(metric))
        given = (beside.get("difference") or {}).get(metric)
        rows.append([title(metric), value(run, metric), cell, _difference(metric, given)])
        here = number(run.metrics.get(metric))
        if metric in ("accuracy", "macro_f1") and here is not None and there is not None:
            data.append((title(metric), own, here, *bounds(run.limits(metric))))
            data.append((title(metric), other, there, *bounds(ends.get(metric))))
    frame = pd.DataFrame(data, columns=["name", "kind", "value", "low", "high"])
    blocks: list[Block] = []
    if len(frame):
        alt = "Accuracy and macro F1 under both protocols with intervals"
        blocks.append(Plot([figures.ranges("protocols", frame, alt)], _beside_says(run, other)))
    caption = "Difference is published minus clean, with its 95% interval."
    head = ["Metric", own.capitalize(), other.capitalize(), "Difference"]
    return Section("protocols", name, [*blocks, Table(caption, head, rows)])


def _difference(metric: str, given: Any) -> Cell | str:
    found = number(given.get("value")) if isinstance(given, Mapping) else None
    if found is None or not isinstance(given, Mapping):
        return Cell("undefined", "the difference was not computed")
    return difference(metric, found, (given.get("low"), given.get("high")))


def _beside_says(run: Run, other: str) -> str:
    given = (run.beside or {}).get("difference") or {}
    metric = "accuracy" if "accuracy" in given else next(iter(given), "")
    found = number(given[metric].get("value")) if metric else None
    if found is None:
        return f"This run beside the {other} protocol; no difference was computed."
    low, high = bounds((given[metric].get("low"), given[metric].get("high")))
    shift = difference(metric, found, (low, high))
    text = f"The published protocol changes {title(metric).lower()} by {shift}"
    if low is None or high is None:
        return f"{text}; without an interval nothing follows."
    if low > 0:
        return f"{text}: it flatters, and the clean figure is the one to trust."
    if high < 0:
        return f"{text}: here it does not flatter."
    return f"{text}: no clear difference on these images."
