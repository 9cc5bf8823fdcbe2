"""Section on learning from errors: labels that look wrong, the hardest classes, the worst pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import pandas as pd

from leukoscope.evaluate.label_errors import suspects
from leukoscope.report import pictures
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import count, listing, percent
from leukoscope.report.page import (
    Block,
    Cell,
    Details,
    Missing,
    Paragraph,
    Pictures,
    Section,
    Sheet,
    Table,
)
from leukoscope.report.sections_data import no_images

SHEET = "errors.csv"
SHOWN, LISTED, MOST_PAIRS, NAMED = 18, 100, 10, 5
COMMAND = "leukoscope evaluate predictions.csv --report DIR"
ADVICE = (
    "These are suspects, not errors: the model may be the one that is wrong, most of all on rare "
    "or atypical cells. Have someone who knows the cells look at each before a label is changed, "
    "and judge training and test images by the same rule."
)


@dataclass(frozen=True)
class Doubt:
    """A label to look at. `suggested` and `confidence` are the model's, empty where a duplicate's
    other label alone raised the doubt. A row of errors.csv."""

    image: str
    label: str
    suggested: str
    confidence: float | None
    why: str


def section(run: Run) -> Section:
    """What the held-out predictions and the audit say about labels and classes."""
    name = "Learning from errors"
    frame = held_out(run)
    if frame is None:
        text = "The single predictions are not at hand; to keep them, evaluate a file of them:"
        return Section("errors", name, [Missing(text, COMMAND)])
    probs = _probabilities(run, frame)
    found = doubts(run, frame)
    blocks = _says(run, len(frame), found) if probs is not None or found else []
    if probs is None:
        text = "Without class probabilities the model can doubt no label; give prob_<class> to"
        blocks.append(Missing(text, COMMAND))
    blocks += [_hardest(run, frame, found), *_pairs(frame)]
    return Section("errors", name, blocks)


def held_out(run: Run) -> pd.DataFrame | None:
    """One row an image that was held out (validation, test, every fold): `image`, `label`,
    `predicted` and, where known, `prob_<class>` as the mean over the image's rows."""
    frame = run.predictions
    if frame is None:
        return None
    if "image" not in frame:
        return frame.assign(image=[f"row {i}" for i in range(1, len(frame) + 1)])
    if not frame["image"].duplicated().any():
        return frame
    images = frame.groupby("image", sort=False)
    once = images[["label", "predicted"]].first().reset_index()
    if _probabilities(run, frame) is None:
        return once
    probs = images[[f"prob_{name}" for name in run.classes]].mean().reset_index(drop=True)
    names = np.array(run.classes, dtype=object)
    return once.assign(predicted=names[probs.to_numpy().argmax(axis=1)]).join(probs)


def _probabilities(run: Run, frame: pd.DataFrame) -> np.ndarray | None:
    columns = [f"prob_{name}" for name in run.classes]
    if not columns or not set(columns) <= set(frame):
        return None
    return frame[columns].to_numpy(np.float64)


def doubts(run: Run, frame: pd.DataFrame) -> list[Doubt]:
    """Labels to look at: the model's suspects, worst first, then images that only have a duplicate
    of another label. frame: as of `held_out`."""
    twins = _conflicts(run)
    found = []
    for doubt in _suspects(run, frame):
        twin = twins.pop(doubt.image, None)
        found.append(replace(doubt, why=f"{doubt.why}; {twin.why}") if twin else doubt)
    return [*found, *twins.values()]


def _suspects(run: Run, frame: pd.DataFrame) -> list[Doubt]:
    probs = _probabilities(run, frame)
    labels = pd.Index(run.classes).get_indexer(pd.Index(frame["label"]))
    known = np.flatnonzero(labels >= 0)
    if probs is None or not len(known):
        return []
    found = suspects(probs[known], labels[known])
    rows = []
    for row, other in zip(known[found.rows].tolist(), found.suggested.tolist(), strict=True):
        name, label = run.classes[other], run.classes[labels[row]]
        sure = float(probs[row, other])
        why = (
            f"the model gives {name} {percent(sure)} (images of that class get "
            f"{percent(found.thresholds[other])} on average) and {label} "
            f"{percent(probs[row, labels[row]])}"
        )
        rows.append(Doubt(str(frame["image"].iloc[row]), label, name, round(sure, 4), why))
    return rows


def _conflicts(run: Run) -> dict[str, Doubt]:
    """By image that has a duplicate of another label."""
    groups = (run.audit or {}).get("label_conflicts")
    if not groups or run.cells is None:
        return {}
    label = dict(zip(run.cells["image"], run.cells["label"], strict=True))
    found = {}
    for group in [list(map(str, group)) for group in groups if isinstance(group, list)]:
        for image in group:
            others = [f"{o} ({label.get(o)})" for o in group if label.get(o) != label.get(image)]
            if others:
                why = f"the same picture stands under another label: {', '.join(others[:NAMED])}"
                found[image] = Doubt(image, label.get(image, ""), "", None, why)
    return found


def _says(run: Run, n: int, found: Sequence[Doubt]) -> list[Block]:
    own = sum(doubt.confidence is not None for doubt in found)
    twins = len(found) - own
    apart = run.trained or run.role == "external"
    says = (
        f"{count(own, 'label')} of {count(n, 'held-out image' if apart else 'image')} "
        f"({percent(own / n)}) look{'s' if own == 1 else ''} wrong: the model"
        f"{', which was not trained on these images,' if apart else ''} is as sure of another "
        "class as it usually is of that class's own images (confident learning, Northcutt et al. "
        "2021)."
    )
    if not apart:
        says += (
            " This holds only if the model was not trained on these images, which a file of "
            "predictions can't tell."
        )
    if twins:
        says += (
            f" {count(twins, 'more image')} {'has' if twins == 1 else 'have'} a duplicate of "
            "another label: one of the two is wrong, whatever the model says."
        )
    if run.protocol == "published":
        says += (
            " Under the published protocol views of an image may stand in training too, which "
            "hides errors: look at the clean run's list first."
        )
    if not found:
        return [Paragraph(says)]
    frame = pd.DataFrame(map(astuple, found), columns=list(Doubt.__dataclass_fields__))
    text = "The whole list, worst first, to work through:"
    blocks: list[Block] = [Paragraph(says), Paragraph(ADVICE, "warning"), Sheet(SHEET, frame, text)]
    table = _listed(found)
    shown = _thumbnails(run, found)
    if not shown:
        return [*blocks, table, *([no_images(run)] if run.environment else [])]
    caption = (
        f"{count(len(shown), 'suspicious label')}, worst first. Where the picture shows "
        "what the model suggests, correct the label; where it shows neither, leave the image out."
    )
    folded = Details("The same as a table", [table])
    return [*blocks, Pictures(shown, caption, size="large"), folded]


def _thumbnails(run: Run, found: Sequence[Doubt]) -> list[pictures.Picture]:
    if run.root is None:
        return []
    items = []
    for doubt in found[:SHOWN]:
        sure = f"suggested: {doubt.suggested}, {_sure(doubt)}"
        lines = [doubt.image, f"label: {doubt.label}",
                 sure if doubt.suggested else "a duplicate has another label"]  # fmt: skip
        items.append((doubt.image, f"{doubt.image}: labelled {doubt.label}; {doubt.why}", lines))
    return pictures.gallery(run.root, items, pictures.LARGE)


def _sure(doubt: Doubt) -> str:
    return "" if doubt.confidence is None else percent(doubt.confidence)


def _listed(found: Sequence[Doubt]) -> Table:
    rows: list[list[Cell | str]] = [
        [d.image, d.label, d.suggested or "none", _sure(d), d.why] for d in found[:LISTED]
    ]
    more = len(found) - len(rows)
    rest = f" {more:,} more are in {SHEET}." if more else ""
    head = ["Image", "Label", "Suggested", "Confidence", "Why"]
    return Table(f"Labels to look at, worst first.{rest}", head, rows, frozenset({1, 2, 4}))


# --- hardest classes and pairs --------------------------------------------------------------------


def _hardest(run: Run, frame: pd.DataFrame, found: Sequence[Doubt]) -> Table:
    """One row a class, lowest recall first."""
    known = _probabilities(run, frame) is not None
    doubted = Counter(doubt.label for doubt in found if doubt.suggested)
    lines: list[tuple[float, str, list[Cell | str]]] = []
    for name in sorted(set(frame["label"])):
        part = frame[frame["label"] == name]
        wrong = Counter(other for other in part["predicted"] if other != name)
        recall = 1 - wrong.total() / len(part)
        taken = [f"{other} ({n:,})" for other, n in wrong.most_common(1)]
        own: Cell | str = Cell("undefined", "no probabilities were given")
        if known and name in run.classes:
            own = percent(float(part[f"prob_{name}"].mean()))
        cells = [name, f"{len(part):,}", percent(recall), own, f"{doubted[name]:,}",
                 *(taken or ["none"])]  # fmt: skip
        lines.append((recall, name, cells))
    lines.sort(key=lambda line: line[:2])
    hardest = [name for recall, name, _ in lines if recall <= lines[0][0] + 0.02][:NAMED]
    caption = f"Classes, hardest first: {listing(hardest)}. Each image counts once."
    if lines[0][0] == 1:
        caption = "Classes: no image was taken for another class."
    head = ["Class", "Images", "Recall", "Mean confidence in it", "Suspects", "Most taken for"]
    return Table(caption, head, [cells for *_, cells in lines], frozenset({5}))


def _pairs(frame: pd.DataFrame) -> list[Block]:
    pairs = Counter((a, b) for a, b in zip(frame["label"], frame["predicted"], strict=True)
                    if a != b)  # fmt: skip
    if not pairs:
        return []
    support, total = Counter(frame["label"]), pairs.total()
    shown = pairs.most_common(MOST_PAIRS)
    rows: list[list[Cell | str]] = [
        [f"{a} taken for {b}", f"{n:,}", percent(n / support[a]), percent(n / total)]
        for (a, b), n in shown
    ]
    share = percent(sum(n for _, n in shown) / total)
    caption = (
        f"Most confused pairs, {share} of all {count(total, 'error')}: more images of these teach "
        "the most."
    )
    return [Table(caption, ["Pair", "Errors", "Of the class", "Of all errors"], rows)]
