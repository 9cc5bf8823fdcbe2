"""What is wrong with a data set before anything is trained on it, and in plain words.

Leaks (patients or pictures on both sides of a split), copies, copies with different labels,
unreadable files, and the shortcut baseline: how far a classifier gets that sees nothing but the
average colour. Where that is far, a good figure of a network may mean stain, not cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leukoscope.data import duplicates, split
from leukoscope.data.duplicates import Duplicates
from leukoscope.data.signature import COLOUR_FEATURES
from leukoscope.errors import some
from leukoscope.evaluate.intervals import bootstrap, wilson
from leukoscope.evaluate.predictions import Predictions

if TYPE_CHECKING:
    from leukoscope.data.index import CellIndex

NEIGHBOURS = 5
FOLDS = 5
FEW_GROUPS = 1000  # up to which groups are weighed one by one
FEWEST = 6  # images below which five neighbours say nothing
_RESPLIT = "split anew with: leukoscope split cells.parquet -o split.parquet"


def audit(
    cells: CellIndex,
    split_frame: pd.DataFrame | None = None,
    *,
    found: Duplicates | None = None,
) -> dict[str, Any]:
    """The audit of an index, and of a split of it, in the shape of DESIGN.md's `audit.json`.

    Besides its keys: `n`, `classes` (images of each), `patients` (how many are known) and
    `summary`, sentences of which the first is the verdict. `found` saves looking for duplicates
    again. Raises InputError where the split names images that the index doesn't have.
    """
    found = found or duplicates.find(cells)
    frame = cells.frame
    across = split.Crossing([], [])
    left_out: list[str] = []
    if split_frame is not None:
        left_out = split.left_out(cells, split_frame)
        across = split.crossing(cells, split_frame, found)
    result: dict[str, Any] = {
        "verdict": "leak" if across.patients or across.groups else "clean",
        "n": len(frame),
        "classes": {str(k): int(v) for k, v in frame["label"].value_counts().sort_index().items()},
        "patients": int(frame["patient"].nunique()),
        "unreadable": sorted(cells.unreadable, key=lambda entry: entry["image"]),
        "exact_duplicates": found.exact,
        "near_duplicates": found.near,
        "label_conflicts": _label_conflicts(frame, found),
        "patients_across_roles": across.patients,
        "duplicates_across_roles": across.groups,
        "shortcut": _shortcut(cells, split_frame, found),
    }
    result["summary"] = _summary(result, split_frame is not None, left_out)
    return result


def _label_conflicts(frame: pd.DataFrame, found: Duplicates) -> list[list[str]]:
    labels = pd.Series(frame["label"].to_numpy()).groupby(found.clusters).nunique()
    inside = pd.Series(found.clusters).isin(labels.index[labels > 1]).to_numpy()
    members = frame["image"][inside].groupby(found.clusters[inside])
    return sorted(sorted(group) for _, group in members)


def shortcut_predictions(
    cells: CellIndex,
    split_frame: pd.DataFrame | None = None,
    *,
    found: Duplicates | None = None,
    role: str = "test",
) -> pd.DataFrame:
    """What two classifiers that see no cell say: columns image, fold, label, patient, colour_knn
    and majority, one row an image that has `role` in a fold.

    `colour_knn` is the class of the five nearest training images in the nine colour statistics,
    standardised on the training images; `majority` their most frequent class. Without a split,
    out of fold over stratified folds that keep patients and duplicates together; classes that one
    patient or picture alone shows are then left out, because no fold could both train and test
    on them. Empty where there is nothing to train or to test on.
    """
    frame = cells.frame[["image", "label", "patient", "colour"]].sort_values("image")
    if split_frame is None:
        split_frame = _folds(cells, found or duplicates.find(cells))
    parts = []
    for fold, roles in split_frame.groupby("fold"):
        train = frame[frame["image"].isin(roles.loc[roles["role"] == "train", "image"])]
        test = frame[frame["image"].isin(roles.loc[roles["role"] == role, "image"])]
        if len(train) and len(test):
            parts.append(_predicted(train, test).assign(fold=fold))
    columns = ["image", "fold", "label", "patient", "colour_knn", "majority"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _predicted(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    nearest = KNeighborsClassifier(n_neighbors=min(NEIGHBOURS, len(train)))
    model = make_pipeline(StandardScaler(), nearest)
    labels = train["label"].to_numpy(dtype=str)
    model.fit(np.stack(train["colour"].to_list()), labels)
    names, counts = np.unique(labels, return_counts=True)
    return test[["image", "label", "patient"]].assign(
        colour_knn=model.predict(np.stack(test["colour"].to_list())),
        majority=str(names[counts.argmax()]),
    )


def _folds(cells: CellIndex, found: Duplicates) -> pd.DataFrame:
    """Train and test roles of grouped stratified folds, as many as the smallest class allows."""
    from sklearn.model_selection import StratifiedGroupKFold

    frame = cells.frame[["image", "label"]].assign(group=split.groups(cells, found))
    frame = frame.sort_values("image", ignore_index=True)
    apart = frame.groupby("label")["group"].nunique()
    frame = frame[frame["label"].isin(apart.index[apart > 1])].reset_index(drop=True)
    if frame["label"].nunique() < 2:
        return pd.DataFrame(columns=list(split.COLUMNS))
    group, count = pd.factorize(frame["group"])[0], min(FOLDS, int(apart[apart > 1].min()))
    tested = np.empty(len(frame), int)
    if group.max() >= FEW_GROUPS:
        tested[:] = _dealt(frame["label"], group, count)
    else:
        folds = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=0)
        for fold, (_, test) in enumerate(folds.split(frame, frame["label"], group)):
            tested[test] = fold
    roles = [np.where(tested == fold, "test", "train").astype(object) for fold in range(count)]
    parts = [
        pd.DataFrame({"image": frame["image"], "fold": fold, "role": role})
        for fold, role in enumerate(roles)
    ]
    return pd.concat(parts, ignore_index=True)


def _dealt(label: pd.Series, group: np.ndarray, folds: int) -> np.ndarray:
    """The fold (n,) of each image: whole groups dealt out like cards, class by class, the large
    ones first. scikit-learn weighs every group against every fold, a millisecond each."""
    images = pd.DataFrame({"group": group, "label": pd.factorize(label, sort=True)[0]})
    each = images.groupby("group")["label"].agg(["median", "size"])
    each["random"] = np.random.default_rng(0).permutation(len(each))
    order = each.sort_values(["median", "size", "random"], ascending=[True, False, True]).index
    fold = np.empty(len(each), int)
    fold[order] = np.arange(len(each)) % folds
    return fold[group]


def _shortcut(
    cells: CellIndex, split_frame: pd.DataFrame | None, found: Duplicates
) -> dict[str, Any]:
    """{accuracy, low, high, majority, features}; nulls and a `reason` where it can't be told."""
    frame = cells.frame
    empty: dict[str, Any] = dict.fromkeys(("accuracy", "low", "high", "majority"))
    empty["features"] = list(COLOUR_FEATURES)
    if frame["label"].nunique() < 2:
        return empty | {"reason": "all images have one class"}
    if len(frame) < FEWEST:
        return empty | {"reason": f"only {len(frame)} images; at least {FEWEST} are needed"}
    predicted = shortcut_predictions(cells, split_frame, found=found)
    if predicted.empty:
        missing = "too few patients or pictures a class to test on any"
        return empty | {
            "reason": missing if split_frame is None else "the split has no train or no test images"
        }
    right = (predicted["colour_knn"] == predicted["label"]).to_numpy()
    majority = (predicted["majority"] == predicted["label"]).to_numpy()
    result = empty | {"accuracy": float(right.mean()), "majority": float(majority.mean())}
    interval = _interval(predicted, right)
    if interval is None:
        return result | {"reason": "no interval: all test images are of one patient"}
    return result | {"low": interval[0], "high": interval[1]}


def _interval(predicted: pd.DataFrame, right: np.ndarray) -> tuple[float, float] | None:
    """95 %: bootstrap by patient where patients are known, otherwise Wilson."""
    if predicted["patient"].isna().all():
        return wilson(int(right.sum()), len(right))
    labels = predicted["label"].to_numpy(dtype=str)
    said = predicted["colour_knn"].to_numpy(dtype=str)
    classes = sorted({*labels, *said})
    answers = Predictions.from_names(list(labels), list(said), None, classes)
    patients = list(predicted["patient"])
    return bootstrap(answers, patients, metrics=["accuracy"])["accuracy"]


def _summary(result: dict[str, Any], has_split: bool, left_out: list[str]) -> list[str]:
    """Sentences for people: the verdict, then each finding with its count and the fix."""
    return [
        _verdict(result, has_split),
        *_about_copies(result),
        *_about_files(result, left_out),
        _about_shortcut(result["shortcut"]),
    ]


def _verdict(result: dict[str, Any], has_split: bool) -> str:
    if not has_split:
        return "No leak is possible yet: no split was given, so only the images were checked."
    if result["verdict"] == "clean":
        known = "no patient and " if result["patients"] else ""
        return f"Clean: {known}no picture stands in more than one role of the split."
    faults = []
    if result["patients_across_roles"]:
        patients = result["patients_across_roles"]
        faults.append(f"{_count(len(patients), 'patient')} ({some(patients)})")
    if result["duplicates_across_roles"]:
        groups = result["duplicates_across_roles"]
        faults.append(f"{_count(len(groups), 'group')} of duplicate images")
    return (
        f"Leak: {' and '.join(faults)} in more than one role of the split; figures measured on it "
        f"are too good: {_RESPLIT}."
    )


def _about_copies(result: dict[str, Any]) -> list[str]:
    sentences = []
    kept = "a split made here keeps them together"
    for key, what in (
        ("exact_duplicates", "byte-identical files"),
        ("near_duplicates", "the same picture turned, mirrored, cropped, brightened or recoded"),
    ):
        groups = result[key]
        if groups:
            images = sum(map(len, groups))
            sentences.append(
                f"{_count(images, 'image')} in {_count(len(groups), 'group')} are {what}; {kept}."
            )
    if result["label_conflicts"]:
        count = _count(len(result["label_conflicts"]), "group")
        sentences.append(
            f"{count} of duplicates have more than one label: look at them and correct the labels."
        )
    return sentences


def _about_files(result: dict[str, Any], left_out: list[str]) -> list[str]:
    sentences = []
    if result["unreadable"]:
        names = [entry["image"] for entry in result["unreadable"]]
        sentences.append(
            f"{_count(len(names), 'file')} can't be read and were left out ({some(names)}): "
            "replace or remove them."
        )
    if left_out:
        sentences.append(
            f"{_count(len(left_out), 'image')} of the index are not in every fold of the split "
            f"({some(left_out)}): {_RESPLIT}."
        )
    if not result["patients"]:
        sentences.append(
            "No patient is known, so images of one patient may stand in two roles unseen: name "
            "patients in a csv (column patient) if you have them."
        )
    return sentences


def _about_shortcut(shortcut: dict[str, Any]) -> str:
    if shortcut["accuracy"] is None:
        return f"The colour shortcut could not be measured: {shortcut['reason']}."
    accuracy = f"{shortcut['accuracy']:.1%}".replace("%", " %")
    majority = f"{shortcut['majority']:.1%}".replace("%", " %")
    if shortcut["low"] is not None:
        accuracy += f" [{100 * shortcut['low']:.1f}, {100 * shortcut['high']:.1f}]"
    ahead = shortcut["low"] is not None and shortcut["low"] > shortcut["majority"]
    return (
        f"A classifier that only sees average colour {'already ' if ahead else ''}reaches "
        f"{accuracy}; the majority class alone {majority}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
