"""Figures of a table of predictions at every level: by image, by patient, by slide.

A level above the image is judged in three ways. Where every patient (or slide) has one label, as
where cells inherit their patient's diagnosis, its answer is the class of the highest mean
probability, or that of the most votes. Where cells of many classes come from one patient, as in a
differential count, what counts is the share of each class: the predicted against the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from leukoscope.evaluate import intervals, metrics

Level = Literal["patient", "slide"]
LEVELS: tuple[Level, ...] = ("patient", "slide")
Found = tuple[dict[str, Any] | None, str]
"""Figures and "", or None and why there are none."""


def scored(frame: pd.DataFrame, classes: Sequence[str]) -> metrics.Predictions:
    """A table of label, predicted and perhaps prob_<class> columns as Predictions."""
    columns = _columns(frame, classes)
    probs = frame[columns].to_numpy(float) if columns else None
    return metrics.Predictions.from_names(
        frame["label"].tolist(), frame["predicted"].tolist(), probs, list(classes)
    )


def _columns(frame: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """The columns of probabilities; none unless every class has one."""
    columns = [f"prob_{name}" for name in classes]
    return columns if set(columns) <= set(frame.columns) else []


def patients_of(frame: pd.DataFrame) -> list[str | None]:
    """The patient of each row, None where unknown."""
    return _names(frame, "patient")


def _names(frame: pd.DataFrame, column: str) -> list[str | None]:
    if column not in frame:
        return [None] * len(frame)
    return [None if pd.isna(p) else str(p) for p in frame[column]]


def units_of(frame: pd.DataFrame) -> list[str]:
    """What an interval resamples: patients; where unknown, images with all their views."""
    images = frame["image"] if "image" in frame else frame.index.astype(str)
    return [
        f"image {i}" if p is None else p for p, i in zip(patients_of(frame), images, strict=True)
    ]


def row_ids(frame: pd.DataFrame) -> list[str]:
    """An id a row: the image; of an augmented view, which published protocols score, that too."""
    images = frame["image"].astype(str)
    if "view" not in frame:
        return images.tolist()
    pairs = zip(images, frame["view"], strict=True)
    return [f"{image} view {view}" if view else image for image, view in pairs]


def measure(frame: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """metrics.json of a table of predictions, intervals included, without the baseline.

    Rows of several folds are judged together. `patient_level`, `patient_vote`, `patient_shares`
    and the same of `slide` hold what is said of patients and slides, or None with the reason.
    """
    result = _figures(frame, classes)
    for level in LEVELS:
        parts = {
            f"{level}_level": by_mean(frame, classes, level),
            f"{level}_vote": by_vote(frame, classes, level),
            f"{level}_shares": shares(frame, classes, level),
        }
        for name, (found, why) in parts.items():
            result[name] = found
            if why:
                result["undefined"][name] = why
    return result


def by_mean(frame: pd.DataFrame, classes: Sequence[str], level: Level = "patient") -> Found:
    """Figures of the class of the highest mean probability over a patient's (slide's) images.

    The shape of metrics.json. Only where every patient has one label. Accuracy has Wilson's
    interval over patients, all else a bootstrap over them, from ten of them on; slides are
    resampled with their patient.
    """
    known, why = _one_label(frame, level)
    if why:
        return None, why
    columns = _columns(frame, classes)
    if not columns:
        return None, "no probabilities were given"
    groups = known.groupby("group")
    probs = groups[columns].mean()
    answers = _answers(groups, probs.to_numpy().argmax(axis=1), classes).join(probs)
    return _with_left_out(_figures(answers, classes, level), frame, known, level), ""


def by_vote(frame: pd.DataFrame, classes: Sequence[str], level: Level = "patient") -> Found:
    """Figures of the class that most of a patient's (slide's) images were given, as `by_mean`.

    A tie goes to the class of the higher mean probability; without probabilities to the first in
    the order of the classes.
    """
    known, why = _one_label(frame, level)
    if why:
        return None, why
    groups = known.groupby("group")
    votes = _counts(known, "predicted", classes)
    columns = _columns(frame, classes)
    tied = (votes == votes.max(axis=1, keepdims=True)).astype(float)
    preference = groups[columns].mean().to_numpy() + 1 if columns else 1.0
    answers = _answers(groups, (tied * preference).argmax(axis=1), classes)
    result = _with_left_out(_figures(answers, classes, level), frame, known, level)
    for name, reason in result["undefined"].items():
        if reason == metrics.NO_PROBS:
            result["undefined"][name] = "a vote gives no probabilities"
    ties = int((tied.sum(axis=1) > 1).sum())
    if ties:
        by = "the higher mean probability" if columns else "the order of the classes"
        result["notes"].append(f"{ties} {level}s have a tie, decided by {by}.")
    return result, ""


def shares(frame: pd.DataFrame, classes: Sequence[str], level: Level = "patient") -> Found:
    """The share of each class among a patient's (slide's) images: predicted against true.

    {n, images, median_images, mean_absolute_error, per_class.<name>.{true, predicted, difference,
    mean_absolute_error}, ci, notes}: means over patients, each counting the same however many
    images it gave; `difference` is predicted minus true, negative where a class is counted too
    low. `ci` by a bootstrap over patients, from ten of them on.
    """
    known, why = _grouped(frame, level)
    if why:
        return None, why
    sizes = known.groupby("group").size().to_numpy()
    true, said = (
        _counts(known, column, classes) / sizes[:, None] for column in ("label", "predicted")
    )
    gaps = said - true
    errors = np.abs(gaps)
    values = {"mean_absolute_error": errors.mean(axis=1)}
    for at, name in enumerate(classes):
        values[metrics.class_metric(name, "difference")] = gaps[:, at]
        values[metrics.class_metric(name, "mean_absolute_error")] = errors[:, at]
    patients = _first(known, "patient")
    independent = len({p for p in patients if p is not None}) + patients.count(None)
    result: dict[str, Any] = {
        "n": len(sizes),
        "images": len(known),
        "median_images": float(np.median(sizes)),
        "mean_absolute_error": float(errors.mean()),
        "per_class": {
            name: {
                "true": float(true[:, at].mean()),
                "predicted": float(said[:, at].mean()),
                "difference": float(gaps[:, at].mean()),
                "mean_absolute_error": float(errors[:, at].mean()),
            }
            for at, name in enumerate(classes)
        },
        "ci": {},
        "notes": [],
    }
    if independent >= intervals.FEW_GROUPS:
        found = intervals.mean_interval(np.column_stack(list(values.values())), patients)
        result["ci"] = dict(zip(values, found, strict=True))
    else:
        result["notes"].append(f"No intervals: only {independent} independent {level}s.")
    return _with_left_out(result, frame, known, level), ""


def share_table(
    frame: pd.DataFrame, classes: Sequence[str], level: Level = "patient"
) -> pd.DataFrame:
    """One row a patient (slide) and class: group, n, class, true, predicted, low, high.

    low and high: Wilson's 95 % interval of the predicted share, the error of counting n cells; a
    true share outside is more than that. Empty where no patient (slide) is known.
    """
    from statsmodels.stats.proportion import proportion_confint

    known, why = _grouped(frame, level)
    names = ["group", "n", "class", "true", "predicted", "low", "high"]
    if why:
        return pd.DataFrame(columns=names)
    sizes = known.groupby("group").size()
    k, n = len(classes), np.repeat(sizes.to_numpy(), len(classes))
    true, said = (_counts(known, column, classes).ravel() for column in ("label", "predicted"))
    low, high = proportion_confint(said, n, method="wilson")
    values = (sizes.index.repeat(k), n, np.tile(list(classes), len(sizes)), true / n, said / n)
    return pd.DataFrame(dict(zip(names, (*values, low, high), strict=True)))


# --- groups ---------------------------------------------------------------------------------------


def _grouped(frame: pd.DataFrame, level: Level) -> tuple[pd.DataFrame, str]:
    """The rows whose patient (slide) is known, with its name in `group`; why there are none."""
    patients, slides = patients_of(frame), _names(frame, "slide")
    group = patients if level == "patient" else slides
    if level == "slide":
        # Slides may be numbered anew for every patient.
        group = [
            s if s is None or p is None or p == s else f"{p}, {s}"
            for p, s in zip(patients, slides, strict=True)
        ]
    own = pd.DataFrame({"group": group, "patient": patients}, index=frame.index, dtype=object)
    known = frame.assign(group=own["group"], patient=own["patient"])
    known = known[known["group"].notna()]
    if known.empty:
        return known, f"no {level} is known"
    if level == "slide" and known["patient"].notna().all():
        pairs = len(set(zip(known["patient"], known["group"], strict=True)))
        if pairs == known["patient"].nunique():
            return known, "every patient has one slide, so that it is the same as by patient"
    return known, ""


def _one_label(frame: pd.DataFrame, level: Level) -> tuple[pd.DataFrame, str]:
    """As `_grouped`; a reason too where some patient (slide) has images of several classes."""
    known, why = _grouped(frame, level)
    if why:
        return known, why
    labels = known.groupby("group")["label"].nunique()
    if not (labels > 1).any():
        return known, ""
    mixed = f"{int((labels > 1).sum())} of {len(labels)} {level}s"
    return known, f"{mixed} have images of more than one class, so none has a class of its own"


def _first(known: pd.DataFrame, column: str) -> list[Any]:
    """The first value of a column in each group, None where it is unknown."""
    values = known.drop_duplicates("group").sort_values("group")[column]
    return [None if pd.isna(value) else value for value in values]


def _counts(known: pd.DataFrame, column: str, classes: Sequence[str]) -> np.ndarray:
    """(groups, k) how many images of each group have each class in `column`."""
    codes = pd.Categorical(known[column], categories=list(classes)).codes
    groups, rows = np.unique(known["group"].to_numpy(str), return_inverse=True)
    table = np.zeros((len(groups), len(classes)))
    np.add.at(table, (rows, codes), 1)
    return table


def _answers(groups: Any, chosen: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """image (the group), patient, label, predicted of each group, by its name."""
    first = groups[["label", "patient"]].first()
    said = np.array(list(classes), dtype=object)[chosen]
    return first.assign(image=first.index, predicted=said)


def _with_left_out(
    result: dict[str, Any], frame: pd.DataFrame, known: pd.DataFrame, level: Level
) -> dict[str, Any]:
    """The figures with a remark on the images whose patient (slide) isn't known."""
    if len(known) < len(frame):
        result["notes"].append(f"{len(frame) - len(known)} images without a {level} left out.")
    return result


def _figures(frame: pd.DataFrame, classes: Sequence[str], level: str = "image") -> dict[str, Any]:
    """metrics.json of rows that are images, patients or slides."""
    found = scored(frame, classes)
    patients, units = patients_of(frame), units_of(frame)
    result = metrics.summarise(found, level=level)
    count = len(set(units))
    few = level != "image" and count < intervals.FEW_GROUPS
    result["ci"] = {} if few else intervals.bootstrap(found, units)
    if level != "image" and count == len(frame):
        share = intervals.wilson(int(found.correct.sum()), len(found))
        result["ci"] |= {"accuracy": share, "micro_f1": share}
    about = intervals.describe(found, patients, result["ci"]) | {"groups": count}
    result["interval"] = about
    if about["note"]:
        result["notes"] = [*result["notes"], about["note"]]
    return result
