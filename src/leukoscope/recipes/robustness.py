"""How a model holds up when images get worse: accuracy, calibration and novelty, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukoscope.bundle.inference import Reader
from leukoscope.data import index as indexes
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.evaluate import intervals, metrics
from leukoscope.files import read_json, write_text
from leukoscope.imaging.corruption import SCALES, SEVERITIES, corrupt
from leukoscope.imaging.read import read_image
from leukoscope.parallel import ahead
from leukoscope.progress import track
from leukoscope.recipes.judgement import external_index, open_reader, read_predictions
from leukoscope.recipes.levels import units_of

FILE = "robustness.csv"
LIMIT = 300
"""Images at most: 51 answers each take minutes, and 300 tell 5 points apart."""
UNDISTURBED = "none"

Step = tuple[str, int]
"""A corruption and its severity."""


def robustness(
    source: Path,
    cells: Path | None = None,
    images: Sequence[str] | None = None,
    *,
    out: Path | None = None,
    limit: int = LIMIT,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a model on images as they are and under every corruption of imaging.corruption.

    source: a run, on its own scored part, whose images its index must still hold; or a run or
    bundle on `cells`, an index it hasn't seen. images: only these of them. At most `limit` images,
    drawn at random with the classes in proportion. out: the csv to write, see `output`.

    One row a corruption and severity, the first without any (`none`, 0): corruption, severity,
    value and unit (see imaging.corruption), n, accuracy with its 95 % interval by patient (low,
    high), ece and mean confidence, novel (the share flagged as novel; empty where the model has no
    novelty flag). Images are disturbed as they were read, before any preprocessing. Raises
    InputError, and LeakError where `cells` holds the model's own images.
    """
    if limit < 1:
        raise InputError(f"Got a limit of {limit} images; allowed: at least 1", field="limit")
    reader = open_reader(source)
    frame = _own(source) if cells is None else _external(source, reader, cells)
    frame = _chosen(frame, images, limit, seed)
    found = _table(reader, frame, seed)
    if out is not None:
        write_text(out, found.to_csv(index=False, lineterminator="\n"))
    return found


def output(source: Path, cells: Path | None, beside: Path | None) -> Path:
    """Where robustness.csv belongs: into a run scored on its own part, else beside a given file."""
    if cells is None and not source.is_dir():
        raise InputError(
            f"{source} holds predictions, not a model that could read disturbed images",
            fix="Give a run, or a bundle with --on cells.parquet.",
            field="source",
        )
    if cells is None:
        return source / FILE
    if beside is None:
        raise InputError(
            "Nothing says where the robustness on another index is to be written",
            fix=f"Name a file with -o metrics.json; {FILE} is put beside it.",
            field="output",
        )
    return Path(beside).parent / FILE


def _own(run: Path) -> pd.DataFrame:
    """image, patient, label, path of the images that the run was scored by.

    Of a cross-validated run those that the kept model was not trained on.
    """
    frame, _ = read_predictions(run)
    stated = read_json(run / "environment.json")
    if "view" in frame:
        frame = frame[frame["view"] == 0]
    if "fold" in frame:
        frame = frame[frame["fold"] == stated.get("model_of_fold")]
    try:
        index = indexes.load(Path(stated["index"]["path"]))
    except (KeyError, TypeError):
        raise InputError(
            f"{run / 'environment.json'} doesn't name the run's index",
            fix="Train the run again, or give other images with --on cells.parquet.",
            field="source",
        ) from None
    labels = index.frame.set_index("image")["label"].reindex(frame["image"])
    if labels.tolist() != frame["label"].tolist():
        raise InputError(
            f"The run's index {stated['index']['path']} has other images or labels by now",
            fix="Index the run's images again, or give other images with --on cells.parquet.",
            field="source",
        )
    return _with_paths(frame, index)


def _external(source: Path, reader: Reader, cells: Path) -> pd.DataFrame:
    index, _ = external_index(source, reader, cells)
    return _with_paths(index.frame, index)


def _with_paths(frame: pd.DataFrame, index: indexes.CellIndex) -> pd.DataFrame:
    kept = frame[["image", "patient", "label"]].reset_index(drop=True)
    kept["path"] = pd.Series([index.path(image) for image in kept["image"]], dtype=object)
    return kept


def _chosen(
    frame: pd.DataFrame, images: Sequence[str] | None, limit: int, seed: int
) -> pd.DataFrame:
    """The named rows, cut to `limit` with the classes in proportion."""
    if images is not None:
        unknown = sorted(set(images) - set(frame["image"]))
        if unknown:
            raise UnknownNameError("image", unknown[0], frame["image"])
        frame = frame[frame["image"].isin(images)]
    if frame.empty:
        raise InputError("There are no images to score", fix="Name some.", field="images")
    mixed = frame.iloc[np.random.default_rng([seed, 0]).permutation(len(frame))]
    # How far through its class a row stands: every class is used up at the same pace.
    rank = mixed.groupby("label").cumcount() + 0.5
    place = rank / mixed.groupby("label")["label"].transform("size")
    return mixed.loc[place.sort_values(kind="stable").index[:limit]].reset_index(drop=True)


def _table(reader: Reader, frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    steps: list[Step] = [(UNDISTURBED, 0)]
    steps += [(name, severity) for name in SCALES for severity in range(1, SEVERITIES + 1)]
    places = {step: at for at, step in enumerate(steps)}
    classes = reader.contract.classes
    probs = np.empty((len(steps), len(frame), len(classes)))
    novelty = np.empty((len(steps), len(frame)))
    tasks = [(row, name) for row in range(len(frame)) for name in (UNDISTURBED, *SCALES)]

    def prepare(task: tuple[int, str]) -> tuple[int, list[Step], np.ndarray]:
        row, name = task
        made = list(_disturbed(frame["path"][row], frame["image"][row], name, seed))
        pixels = np.stack([reader.prepare(image) for _, image in made])
        return row, [step for step, _ in made], pixels

    for row, own, pixels in track(ahead(prepare, tasks, 6), "Disturbed images", len(tasks)):
        said = reader.answer(pixels)
        for at, step in enumerate(own):
            probs[places[step], row] = said.probs[at]
            novelty[places[step], row] = said.novelty[at]
    labels = pd.Categorical(frame["label"], categories=classes).codes.astype(np.int64)
    rows = [
        {"corruption": name, "severity": severity, **_unit(name, severity), "n": len(frame),
         **_scores(labels, probs[at], novelty[at], classes, units_of(frame))}
        for at, (name, severity) in enumerate(steps)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _disturbed(
    path: Path, image: str, name: str, seed: int
) -> Iterator[tuple[Step, np.ndarray]]:  # fmt: skip
    """An image under every severity of a corruption, or as it is."""
    pixels = read_image(path)
    if name == UNDISTURBED:
        yield (name, 0), pixels
        return
    for severity in range(1, SEVERITIES + 1):
        # The same draw for every severity: one image goes one way, ever further.
        key = [seed, *f"{name} {image}".encode("utf-8", "backslashreplace")]
        yield (name, severity), corrupt(pixels, name, severity, np.random.default_rng(key))


def _unit(name: str, severity: int) -> dict[str, Any]:
    if name == UNDISTURBED:
        return {"value": None, "unit": ""}
    return {"value": SCALES[name].values[severity - 1], "unit": SCALES[name].unit}


def _scores(
    labels: np.ndarray,
    probs: np.ndarray,
    novelty: np.ndarray,
    classes: Sequence[str],
    units: Sequence[str],
) -> dict[str, float | None]:
    """The figures of one step."""
    found = metrics.Predictions(labels, probs.argmax(axis=1), probs, tuple(classes))
    low, high = intervals.bootstrap(found, units, metrics=["accuracy"])["accuracy"] or (None, None)
    return {
        "accuracy": float(found.correct.mean()),
        "low": low,
        "high": high,
        "ece": metrics.metrics["ece"](found),
        "confidence": float(probs.max(axis=1).mean()),
        "novel": None if np.isnan(novelty).any() else float((novelty > 1).mean()),
    }
