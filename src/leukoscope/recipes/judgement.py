"""Judging predictions: metrics with intervals, baselines, paired tests. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukoscope.bundle.inference import Answers, Reader
from leukoscope.data import index as indexes
from leukoscope.data.audit import shortcut_predictions
from leukoscope.data.index import CellIndex
from leukoscope.data.table import read_parquet
from leukoscope.errors import InputError, LeakError, UnknownNameError, some
from leukoscope.evaluate import significance
from leukoscope.files import read_json
from leukoscope.progress import track
from leukoscope.recipes.levels import measure, patients_of, row_ids, scored, units_of

_TEXT = ("label", "predicted", "patient", "slide", "image")
_WHOLE = re.compile(r"\d+(\.0*)?")


def baseline(index: CellIndex, roles: pd.DataFrame, role: str) -> dict[str, float | None]:
    """Accuracy of the majority class and of 5-NN on colour statistics on the same images."""
    if not (roles["role"] == role).any():
        return {"majority": None, "colour_knn": None}
    said = shortcut_predictions(index, roles, role=role)
    return {
        "majority": float((said["label"] == said["majority"]).mean()),
        "colour_knn": float((said["label"] == said["colour_knn"]).mean()),
    }


def evaluate(source: Path, on: Path | None = None) -> dict[str, Any]:
    """metrics.json of a run's scored part, of any tool's predictions, or of a model on `on`.

    source: a run folder, a bundle folder (with `on`), or a .csv/.parquet of label, predicted and
    perhaps prob_<class>, patient, image. on: another index, whose images the model hasn't seen;
    LeakError where some of them are among the run's own.
    """
    return judged(source, on)[0]


def judged(source: Path, on: Path | None = None) -> tuple[dict[str, Any], pd.DataFrame]:
    """metrics.json as in `evaluate`, and the predictions that it is about."""
    if on is not None:
        return _external(source, on)
    frame, classes = read_predictions(source)
    result = measure(frame, classes)
    if source.is_dir():
        result = _with_stored(result, _stored(source))
    return result, frame


def _with_stored(result: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """The figures with what only the run itself could know."""
    known = ("role", "protocol", "baseline", "validation", "phases", "folds", "trust")
    notes, undefined = stored.get("notes"), stored.get("undefined")
    said = [n for n in notes if n not in result["notes"]] if isinstance(notes, list) else []
    reasons = undefined if isinstance(undefined, dict) else {}
    return result | {
        **{key: stored[key] for key in known if key in stored},
        "notes": [*result["notes"], *said],
        "undefined": reasons | result["undefined"],
    }


def read_predictions(source: Path) -> tuple[pd.DataFrame, list[str]]:
    """The scored rows and the classes of a run folder or of a table of predictions."""
    if source.is_dir():
        path = source / "predictions.parquet"
        if not path.is_file():
            raise InputError(
                f"{source} is no finished run: it holds no predictions.parquet",
                fix="Give a finished run, or a predictions.csv.",
                field="source",
            )
        frame = _read_table(path)
        if "role" not in frame:
            raise UnknownNameError("column", "role", list(map(str, frame.columns)))
        frame = frame[frame["role"] == _stored(source)["role"]].reset_index(drop=True)
    else:
        frame = _read_table(source)
    return frame, _classes(frame)


def _stored(run: Path) -> dict[str, Any]:
    """A run's metrics.json; InputError where it lacks role, protocol or baseline."""
    path, keys = run / "metrics.json", ("role", "protocol", "baseline")
    stored = read_json(path)
    whole = isinstance(stored, dict) and stored.keys() >= set(keys)
    if not whole or not isinstance(stored["role"], str):
        raise InputError(
            f"{path} is damaged: it lacks one of {', '.join(keys)}",
            fix="Train the run again.",
            field="source",
        )
    return stored


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(
            f"Nothing at {path}", fix="Give a run folder or a predictions.csv.", field="source"
        )
    fix = "Give a .csv or .parquet with the columns label and predicted."
    if path.suffix.lower() == ".parquet":
        table = read_parquet(path, "predictions", fix=fix, field="source")
        frame = table.replace_schema_metadata(None).to_pandas()  # that of pandas may be damaged
    else:
        frame = _read_csv(path, fix)
    for column in _TEXT:
        if column in frame:
            frame[column] = pd.Series([indexes.text_of(v) for v in frame[column]], dtype=object)
    _refuse_gaps(frame, path)
    frame = _whole_numbers(frame)
    for column in frame.columns:
        if str(column).startswith("prob_"):
            frame[column] = pd.to_numeric(frame[column], errors="coerce")
    return frame


def _whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Classes that are whole numbers, written alike: 1.0, as of a column of floats, is class 1."""
    answers = ["label", "predicted"]
    if not frame[answers].map(lambda v: bool(_WHOLE.fullmatch(v))).to_numpy().all():
        return frame
    short = frame.assign(**{c: frame[c].str.partition(".")[0] for c in answers})
    return short.rename(columns={c: c.partition(".")[0] for c in short.columns
                                 if _WHOLE.fullmatch(str(c).removeprefix("prob_"))})  # fmt: skip


def _read_csv(path: Path, fix: str) -> pd.DataFrame:
    text = dict.fromkeys(_TEXT, str)
    try:
        with path.open("rb") as binary:
            if any(b"\0" in piece for piece in iter(lambda: binary.read(2**20), b"")):
                raise ValueError("it holds NUL characters, so it is no text")
        with path.open(encoding="utf-8-sig") as handle:
            header = handle.readline()
        separator = max(",;\t", key=header.count)
        # A class may be called NA; only nothing is nothing. Where ; parts the values, as
        # spreadsheets write it in half of Europe, numbers have a decimal comma.
        frame = pd.read_csv(path, dtype=text, sep=separator, encoding="utf-8-sig",
                            decimal="," if separator == ";" else ".",
                            keep_default_na=False, na_values=[""])  # fmt: skip
    except (ValueError, OSError) as problem:
        raise InputError(
            f"{path} can't be read as a table: {str(problem).splitlines()[0][:200]}",
            fix=fix,
            field="source",
        ) from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes surplus values for row names
        raise InputError(
            f"{path} has rows with more values than columns",
            fix="Quote values that contain commas.",
            field="source",
        )
    return frame


def _refuse_gaps(frame: pd.DataFrame, path: Path) -> None:
    """InputError unless every row has a label and a prediction, and there are rows."""
    if frame.empty:
        raise InputError(f"{path} holds no rows", fix="Give predictions.", field="source")
    for column in ("label", "predicted"):
        if column not in frame:
            raise UnknownNameError("column", column, list(map(str, frame.columns)))
        empty = frame.index[frame[column].isna()]
        if len(empty):
            raise InputError(
                f"{path.name}: column {column!r} is empty in line {some([i + 2 for i in empty])}",
                fix="Fill it in, or drop these rows.",
                field=column,
            )


def _classes(frame: pd.DataFrame) -> list[str]:
    named = [c.removeprefix("prob_") for c in frame.columns if c.startswith("prob_")]
    return named or sorted({*frame["label"], *frame["predicted"]})


def _external(source: Path, on: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    reader = open_reader(source)
    index, unchecked = external_index(source, reader, on)
    frame = read_index(reader, index)
    result = {"role": "external", "protocol": reader.contract.origin.protocol,
              **measure(frame, reader.contract.classes)}  # fmt: skip
    majority = reader.contract.validation.get("majority")
    result["baseline"] = {
        "majority": None if majority is None else float((frame["label"] == majority).mean()),
        "colour_knn": None,
    }
    result["undefined"]["baseline.colour_knn"] = "it would need the training images' colours"
    result["notes"] += [unchecked] if unchecked else []
    result["data"] = {"name": index.name, "path": str(on), "n": len(frame)}
    return result, frame


def external_index(source: Path, reader: Reader, on: Path) -> tuple[CellIndex, str]:
    """An index the model hasn't seen, and what about that could not be checked, or "".

    InputError for labels that the model doesn't know, LeakError for images that are its own.
    """
    index = indexes.load(on)
    classes = reader.contract.classes
    foreign = sorted(set(index.frame["label"]) - set(classes))
    if foreign:
        raise InputError(
            f"{on} has labels the model doesn't know: {some(foreign)}; it knows "
            f"{', '.join(classes)}",
            fix="Rename or leave out these images in a csv and index that.",
            field="label",
        )
    return index, _refuse_known(source, index, reader.contract.origin.data_sha256)


def open_reader(source: Path) -> Reader:
    """A bundle as it is, or a run through the graph it would export (that needs torch)."""
    if (source / "model.onnx").is_file():
        return Reader.load(source)
    from leukoscope.recipes.deploy import reader_of

    return reader_of(source)


def _refuse_known(source: Path, index: CellIndex, own_sha256: str) -> str:
    """LeakError where images of the external set were in the model's own index.

    Returns a sentence where that couldn't be looked up image by image, else "".
    """
    path = source / "environment.json"
    stated = read_json(path) if path.is_file() else {}
    try:
        own = Path(stated["index"]["path"])
    except (KeyError, TypeError):
        own = Path()
    if not own.is_file():
        if index.sha256 == own_sha256:
            raise LeakError(
                "These are the very images the model was made from",
                fix="An external test needs other images.",
                field="on",
            )
        return "Overlap with the training images could not be checked: their index isn't here."
    known = indexes.load(own).frame
    shared = index.frame.loc[index.frame["sha256"].isin(known["sha256"]), "image"].tolist()
    if shared:
        raise LeakError(
            f"{len(shared)} images are in the run's own data too: {some(shared)}",
            fix="An external test needs other images; leave these out.",
            field="on",
        )
    patients = sorted({*index.frame["patient"].dropna()} & {*known["patient"].dropna()})
    if patients:
        return f"{len(patients)} patients have names that the run's own data have too."
    return ""


def read_index(reader: Reader, index: CellIndex) -> pd.DataFrame:
    """Predictions of every readable image: image, patient, slide, label, predicted, prob_…."""
    rows = {index.path(image): place for place, image in enumerate(index.frame["image"])}
    frame = index.frame[["image", "patient", "slide", "label"]].copy()
    probs = np.full((len(frame), len(reader.contract.classes)), np.nan)
    unreadable = []
    for path, answer in track(reader.read(rows), "Reading cells", total=len(rows)):
        if isinstance(answer, Answers):
            probs[rows[path]] = answer.probs[0]
        else:
            unreadable.append(path.name)
    if unreadable:
        raise InputError(
            f"{len(unreadable)} images of the index can't be read: {some(unreadable)}",
            fix="Index the folder again, which lists what can't be read.",
            field="on",
        )
    frame["predicted"] = np.array(reader.contract.classes)[probs.argmax(axis=1)]
    for column, name in enumerate(reader.contract.classes):
        frame[f"prob_{name}"] = probs[:, column]
    return frame


@dataclass(frozen=True)
class Aligned:
    """Predictions of several sources, cut to the rows that all have, in the same order.

    ids: (n,) the images or views. units: (n,) what an interval resamples, see `units_of`.
    left_out: how many rows of each source the others lack.
    """

    frames: dict[str, pd.DataFrame]
    classes: list[str]
    ids: list[str]
    units: list[str]
    left_out: dict[str, int]


def align(sources: Sequence[Path], names: Sequence[str] | None = None) -> Aligned:
    """The shared rows of runs or prediction files.

    names: what to call them, default as much of the path as tells them apart.
    Raises InputError where an image has several rows, or none is in all of them.
    """
    read = {
        name: read_predictions(source)
        for name, source in zip(names or _names(sources), sources, strict=True)
    }
    tables: dict[str, pd.DataFrame] = {}
    for name, (frame, _) in read.items():
        ids = row_ids(frame) if "image" in frame else []
        if not ids or len(set(ids)) < len(ids):
            has = "predicts images more than once" if ids else "has no column 'image'"
            raise InputError(
                f"{name} {has}, so that predictions can't be paired",
                fix="Give one row an image.",
                field="image",
            )
        tables[name] = frame.set_axis(ids, axis=0)
    shared = sorted(set.intersection(*(set(table.index) for table in tables.values())))
    if not shared:
        raise InputError(
            f"{', '.join(read)} have no image in common",
            fix="Compare predictions of the same test part (train with the same --split).",
            field="image",
        )
    frames = {name: table.loc[shared] for name, table in tables.items()}
    # A patient that one file names is known for all of them.
    named = pd.DataFrame({name: patients_of(frame) for name, frame in frames.items()})
    first = next(iter(frames.values()))
    return Aligned(
        frames,
        sorted({c for _, own in read.values() for c in own}),
        shared,
        units_of(first.assign(patient=named.bfill(axis=1).iloc[:, 0].to_numpy())),
        {name: len(table) - len(shared) for name, table in tables.items()},
    )


def compare(sources: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Any]:
    """comparison.json of DESIGN.md: every pair of runs or prediction files on shared images.

    names: see `align`. Raises InputError for fewer than two, no image in common, or labels that
    contradict each other.
    """
    found = align(sources, names)
    models = {name: scored(frame, found.classes) for name, frame in found.frames.items()}
    pairs = significance.compare(models, found.ids, found.units)
    return {"n": len(found.ids), "left_out": found.left_out, **pairs}


def _names(sources: Sequence[Path]) -> list[str]:
    """Short names of the sources, told apart by as much of the path as that takes."""
    for depth in range(1, 1 + max(len(s.resolve().parts) for s in sources)):
        names = ["/".join(s.resolve().parts[-depth:]) for s in sources]
        if len(set(names)) == len(names):
            return names
    raise InputError(
        f"The same predictions were given twice: {sources[0]}",
        fix="Give different runs or files.",
        field="sources",
    )
