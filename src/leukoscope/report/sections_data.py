"""Sections on what went in: audit, split, sample images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from leukoscope.report import pictures
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import count, measured, number, percent, points
from leukoscope.report.page import (
    Block,
    Cell,
    Details,
    List,
    Missing,
    Paragraph,
    Pictures,
    Section,
    Table,
)

ROLES = ("train", "validation", "test")
GROUPS = {
    "exact_duplicates": ("Exact duplicates", "the same picture under several names"),
    "near_duplicates": ("Near duplicates", "one picture turned, cropped, brightened or re-encoded"),
    "label_conflicts": ("Label conflicts", "one picture with more than one label"),
    "duplicates_across_roles": ("Duplicates across roles", "one picture in training and in test"),
}
SHOWN_GROUPS, SHOWN_IN_GROUP, LISTED_GROUPS = 3, 4, 200
SAMPLES, MOST_SAMPLES = 6, 120


def no_images(run: Run) -> Missing:
    """The sentence that stands where pictures would."""
    root = run.index.get("root")
    if root:
        write = f"from leukoscope.report.run import write; write({run.folder.name!r})"
        return Missing(
            f"The images are not at {root}, so no pictures are shown; put them back there and run",
            f'python -c "{write}"',
        )
    return Missing(
        "This run records no image folder, so no pictures are shown; index the images and train:",
        "leukoscope train RECIPE cells.parquet -o RUN",
    )


# --- audit ----------------------------------------------------------------------------------------


def audit(run: Run) -> Section:
    """What the audit found, in sentences, counts and pictures."""
    found = run.audit
    if found is None:
        text = "No audit was made of these images; to look for duplicates, leaks and shortcuts, run"
        command = "leukoscope audit cells.parquet --split split.parquet"
        return Section("audit", "Audit of the data", [Missing(text, command)])
    sentences = [str(sentence) for sentence in found.get("summary") or []]
    blocks: list[Block] = [List(sentences)] if sentences else []
    blocks.append(_audit_counts(found))
    shown = False
    for key, (name, meaning) in GROUPS.items():
        groups = _groups(found.get(key))
        if groups:
            gallery = _group_pictures(run, name, meaning, groups)
            shown = shown or bool(gallery)
            blocks += [*gallery, _group_list(name, groups)]
    if not shown and any(found.get(key) for key in GROUPS):
        blocks.append(no_images(run))
    blocks += _audit_lists(found)
    return Section("audit", "Audit of the data", blocks)


def _groups(value: Any) -> list[list[str]]:
    """Groups of image names; each entry may also be a single name."""
    return [[str(n) for n in g] if isinstance(g, list) else [str(g)] for g in value or []]


def _audit_counts(found: dict[str, Any]) -> Table:
    rows: list[list[Cell | str]] = []
    for key, (name, meaning) in GROUPS.items():
        groups = _groups(found.get(key))
        rows.append([name, f"{len(groups):,}", f"{sum(map(len, groups)):,}", meaning])
    patients = found.get("patients_across_roles") or []
    rows.append(
        ["Patients across roles", f"{len(patients):,}", "", "one patient in training and in test"]
    )
    unreadable = found.get("unreadable") or []
    rows.append(["Unreadable files", "", f"{len(unreadable):,}", "left out of everything"])
    views = number(found.get("views_across_roles"))
    if views:
        meaning = "augmented views of one image in several roles"
        rows.append(["Views across roles", "", f"{views:,.0f}", meaning])
    shortcut = found.get("shortcut") or {}
    accuracy = number(shortcut.get("accuracy"))
    caption = "What was looked for and how often it was found."
    if accuracy is not None and not found.get("summary"):
        reached = measured("accuracy", accuracy, (shortcut.get("low"), shortcut.get("high")))
        caption += f" A classifier that sees only average colour reaches {reached}."
    return Table(caption, ["Finding", "Groups", "Images", "Meaning"], rows, frozenset({3}))


def _group_pictures(run: Run, name: str, meaning: str, groups: list[list[str]]) -> list[Block]:
    if run.root is None:
        return []
    blocks: list[Block] = []
    for position, group in enumerate(groups[:SHOWN_GROUPS], 1):
        items = [(image, f"{name}: {image}", [image]) for image in group[:SHOWN_IN_GROUP]]
        shown = pictures.gallery(run.root, items)
        more = len(group) - len(shown)
        rest = f" {more} more are not shown." if shown and more else ""
        caption = f"{name}, group {position} of {len(groups):,}: {meaning}.{rest}"
        if shown:
            blocks.append(Pictures(shown, caption))
    return blocks


def _group_list(name: str, groups: list[list[str]]) -> Details:
    rows: list[list[Cell | str]] = [
        [str(i), ", ".join(group)] for i, group in enumerate(groups[:LISTED_GROUPS], 1)
    ]
    more = len(groups) - LISTED_GROUPS
    caption = f"{name}, by group." + (f" {more:,} more are in audit.json." if more > 0 else "")
    table = Table(caption, ["Group", "Images"], rows, frozenset({1}))
    return Details(f"{name}: {count(len(groups), 'group')}", [table])


def _audit_lists(found: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    patients = found.get("patients_across_roles") or []
    if patients:
        text = ", ".join(map(str, patients[:LISTED_GROUPS]))
        title = f"Patients across roles: {count(len(patients), 'patient')}"
        blocks.append(Details(title, [Paragraph(text)]))
    unreadable = found.get("unreadable") or []
    if unreadable:
        rows: list[list[Cell | str]] = [
            [str(item.get("image", "")), str(item.get("why", ""))]
            for item in unreadable[:LISTED_GROUPS]
        ]
        table = Table("Files that could not be read.", ["File", "Why"], rows, frozenset({1}))
        blocks.append(Details(f"Unreadable: {count(len(unreadable), 'file')}", [table]))
    return blocks


# --- split ----------------------------------------------------------------------------------------


def split(run: Run) -> Section:
    """How many images of each class, and how many patients, stand in each role."""
    title = "Split"
    if run.split is None:
        text = "This run has no split; to make one that keeps patients and duplicates together, run"
        command = "leukoscope split cells.parquet -o split.parquet"
        return Section("split", title, [Missing(text, command)])
    frame = run.split.assign(
        image=run.split["image"].astype(str), role=run.split["role"].astype(str)
    )
    blocks: list[Block] = []
    folds = sorted(frame["fold"].unique()) if "fold" in frame else []
    if len(folds) > 1:
        blocks.append(Paragraph(f"The split has {len(folds)} folds; fold {folds[0]} is shown."))
        frame = frame[frame["fold"] == folds[0]]
    roles = [r for r in ROLES if (frame["role"] == r).any()]
    roles += sorted(set(frame["role"]) - set(roles))
    if run.cells is not None:
        frame = frame.merge(run.cells.drop_duplicates("image"), on="image", how="left")
    else:
        frame = frame.assign(label=None, patient=None)
    blocks.append(_role_table(frame, roles))
    blocks.append(Paragraph(_patients(frame), "quiet"))
    return Section("split", title, blocks)


def _role_table(frame: pd.DataFrame, roles: list[str]) -> Table:
    labels = frame["label"].fillna("(label not at hand)")
    counts = pd.crosstab(labels, frame["role"]).reindex(columns=roles, fill_value=0)
    rows: list[list[Cell | str]] = [
        [str(name), *(f"{n:,}" for n in row), f"{sum(row):,}"]
        for name, row in zip(counts.index, counts.to_numpy().tolist(), strict=True)
    ]
    totals = [int(n) for n in counts.sum()]
    rows.append(["All classes", *(f"{n:,}" for n in totals), f"{sum(totals):,}"])
    if frame["patient"].notna().any():
        patients = [frame.loc[frame["role"] == r, "patient"].nunique() for r in roles]
        rows.append(["Patients", *(f"{n:,}" for n in patients), f"{frame['patient'].nunique():,}"])
    shares = [f"{percent(n / sum(totals))} {r}" for n, r in zip(totals, roles, strict=True)]
    what = "Views" if "view" in frame else "Images"
    caption = f"{what} by class and role: {', '.join(shares)}."
    return Table(caption, ["Class", *roles, "all"], rows)


def _patients(frame: pd.DataFrame) -> str:
    if "view" in frame:
        shared = frame.groupby("image")["role"].nunique()
        crossing = int((shared > 1).sum())
        return f"{crossing:,} of {count(len(shared), 'image')} have views in more than one role."
    known = frame.dropna(subset=["patient"])
    if known.empty:
        return (
            "No patient is known here, so images of one patient may stand on both sides: "
            "nothing but duplicates can be kept together."
        )
    shared = known.groupby("patient")["role"].nunique()
    crossing = int((shared > 1).sum())
    if crossing:
        return (
            f"{count(crossing, 'patient')} of {len(shared):,} stand in more than one role: a leak."
        )
    return f"No patient stands in more than one role ({len(shared):,} patients)."


# --- samples --------------------------------------------------------------------------------------


def samples(run: Run) -> Section:
    """A few images of each class, spread evenly over the index."""
    title = "Sample images"
    if run.cells is None or run.root is None:
        return Section("samples", title, [no_images(run)])
    labels = sorted(run.cells["label"].unique())
    each = max(1, min(SAMPLES, MOST_SAMPLES // max(1, len(labels))))
    items: list[tuple[str, str, tuple[str, ...]]] = []
    for label in labels[:MOST_SAMPLES]:
        names = sorted(run.cells.loc[run.cells["label"] == label, "image"])
        spread = np.linspace(0, len(names) - 1, min(each, len(names))).round().astype(int)
        items += [(names[i], f"{label}: {names[i]}", (label,) if not at else ())
                  for at, i in enumerate(spread)]  # fmt: skip
    shown = pictures.gallery(run.root, items)
    if not shown:
        return Section("samples", title, [no_images(run)])
    caption = f"Up to {each} of each class, in its order in the index. {_colour_says(run)}"
    return Section("samples", title, [Pictures(shown, caption, size="rows")])


def _colour_says(run: Run) -> str:
    shortcut = (run.audit or {}).get("shortcut") or {}
    accuracy, majority = number(shortcut.get("accuracy")), number(shortcut.get("majority"))
    if accuracy is None or majority is None:
        return (
            "Look for what tells the classes apart other than the cell: staining, background, size."
        )
    more = accuracy - majority
    if more < 0.05:
        return (
            "Average colour alone hardly tells these classes apart, so the cells themselves must."
        )
    return (
        f"Average colour alone is worth {points(more)} over guessing ({percent(accuracy)}): "
        "staining or background differs between these classes, and a model may lean on it."
    )
