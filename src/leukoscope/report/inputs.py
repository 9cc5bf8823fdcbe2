"""What a run folder holds, read leniently: what is absent is None and its section says so."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukoscope import files
from leukoscope.data.table import read_parquet
from leukoscope.errors import InputError
from leukoscope.evaluate.predictions import Predictions
from leukoscope.recipes.judgement import scored
from leukoscope.recipes.published import Measured
from leukoscope.report.numbers import Interval

_REWRITE = "Write the file anew, or remove it to get the report without it."


@dataclass(frozen=True)
class Run:
    """One run folder. Only `metrics` is always there; all else may be None or empty."""

    folder: Path
    metrics: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] | None = None
    split: pd.DataFrame | None = None
    history: pd.DataFrame | None = None
    predictions: pd.DataFrame | None = None
    beside: dict[str, Any] | None = None
    robustness: pd.DataFrame | None = None
    explanations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the confusion matrix."""
        return [str(name) for name in self.metrics.get("classes", [])]

    @property
    def protocol(self) -> str:
        """`clean`, `published`, or "" where it isn't recorded."""
        return str(self.environment.get("protocol") or self.recipe.get("protocol") or "")

    @property
    def arm(self) -> str:
        """The recipe's arm, or ""."""
        return str(self.environment.get("arm") or self.recipe.get("arm") or "")

    @property
    def index(self) -> dict[str, Any]:
        """What environment.json says about the indexed data set."""
        found = self.environment.get("index")
        return found if isinstance(found, dict) else {}

    @property
    def role(self) -> str:
        """The part that the metrics are about: `test`, `validation` or `external`; "" of foreign
        predictions, whose part nobody knows."""
        return str(self.metrics.get("role") or ("test" if self.trained else ""))

    @property
    def trained(self) -> bool:
        """Whether Leukoscope trained this model here; otherwise there are predictions alone."""
        return bool(self.recipe) or "leukoscope" in self.environment

    @property
    def confusions(self) -> np.ndarray:
        """(k, k) int, rows true; (0, 0) where metrics.json holds none that fits the classes."""
        k, matrix = len(self.classes), np.array(self.metrics.get("confusion_matrix") or [])
        return matrix if matrix.shape == (k, k) else np.zeros((0, 0), dtype=int)

    @property
    def synthetic(self) -> bool:
        """Whether the images were generated."""
        return bool(self.index.get("synthetic"))

    @property
    def published(self) -> list[dict[str, Any]]:
        """The paper's tables that state figures for this arm: {title, classes, figures}; figures
        by dotted path, shares as fractions."""
        tables = self.recipe.get("published")
        found = []
        for table in tables if isinstance(tables, list) else ():
            figures = table.get("figures") if isinstance(table, Mapping) else None
            own = figures.get(self.arm) if isinstance(figures, Mapping) else None
            if isinstance(own, Mapping):
                classes = table.get("classes")
                known = {"title": str(table.get("title") or "The paper"), "figures": _flat(own)}
                found.append(known | {"classes": classes if isinstance(classes, int) else 0})
        return found

    @property
    def measured(self) -> Measured:
        """What the run measured, to be looked up by the dotted paths of `published`."""
        return Measured(self.metrics, self.history, self.environment)

    @property
    def root(self) -> Path | None:
        """The folder of the images, or None where it isn't recorded or no longer there."""
        root = self.index.get("root")
        return Path(root) if isinstance(root, str) and root and Path(root).is_dir() else None

    @cached_property
    def tested(self) -> pd.DataFrame | None:
        """The predictions that the metrics are about, where roles are known."""
        frame = self.predictions
        if frame is None or "role" not in frame or not (frame["role"] == self.role).any():
            return frame
        return frame[frame["role"] == self.role].reset_index(drop=True)

    @cached_property
    def cells(self) -> pd.DataFrame | None:
        """The images' labels and patients, from the index or else from the predictions."""
        path = self.index.get("path")
        if isinstance(path, str) and Path(path).is_file():
            frame = _read(Path(path), ["image", "label", "patient"])
        elif self.predictions is not None and "image" in self.predictions:
            frame = self.predictions.drop_duplicates("image")
        else:
            return None
        if not {"image", "label"} <= set(frame):
            return None
        return pd.DataFrame(
            {"image": frame["image"].astype(str), "label": frame["label"].astype(str)}
        ).assign(patient=frame.get("patient"))

    def limits(self, metric: str) -> Interval:
        """The 95 % interval of a metric, or None."""
        found = (self.metrics.get("ci") or {}).get(metric)
        return found if isinstance(found, list | tuple) else None

    @cached_property
    def scored(self) -> Predictions | None:
        """`tested` checked, with probabilities where it has them; None without predictions.

        Raises InputError where a label isn't among the classes or a row's probabilities aren't.
        """
        frame = self.tested
        return None if frame is None or not self.classes else scored(frame, self.classes)

    def probabilities(self) -> np.ndarray | None:
        """(n, k) probabilities of `tested` in the order of `classes`; None where not given."""
        columns = [f"prob_{name}" for name in self.classes]
        frame = self.tested
        if frame is None or not columns or not set(columns) <= set(frame):
            return None
        return frame[columns].to_numpy(np.float64)


def load(folder: Path) -> Run:
    """Read a run folder.

    Raises InputError where the folder or its metrics.json is missing, or a file in it is broken.
    """
    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise InputError(
            f"{folder} holds no metrics.json",
            fix="Give a run folder, or evaluate first: leukoscope evaluate RUN -o metrics.json.",
            field="run",
        )
    predictions = _frame(folder / "predictions.parquet", {"label", "predicted"})
    if predictions is not None:
        texts = [c for c in ("image", "label", "predicted") if c in predictions]
        predictions = predictions.astype(dict.fromkeys(texts, str))
    return Run(
        folder=folder,
        metrics=_object(folder / "metrics.json", dict) or {},
        recipe=_toml(folder / "recipe.toml"),
        environment=_object(folder / "environment.json", dict) or {},
        audit=_object(folder / "audit.json", dict),
        split=_frame(folder / "split.parquet", {"image", "role"}),
        history=_frame(folder / "history.csv", {"epoch"}),
        predictions=predictions,
        beside=_object(folder / "beside.json", dict),
        robustness=_frame(folder / "robustness.csv", set()),
        explanations=_object(folder / "explain" / "explain.json", list) or [],
    )


def _object(path: Path, kind: type) -> Any:
    if not path.is_file():
        return None
    value = files.read_json(path)
    if not isinstance(value, kind):
        raise InputError(
            f"{path} holds a {type(value).__name__}, expected a {kind.__name__}",
            fix=_REWRITE,
            field=path.name,
        )
    return value


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise InputError(f"{path} is not TOML: {problem}", fix=_REWRITE, field=path.name) from None


def _read(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A csv or parquet file; of a parquet file only those of the `columns` that it has."""
    if path.suffix != ".csv":
        table = read_parquet(path, "a table", fix=_REWRITE, field=path.name, columns=columns)
        return table.to_pandas(ignore_metadata=True)
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as problem:
        why = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(f"Can't read {path}: {why}", fix=_REWRITE, field=path.name) from None


def _frame(path: Path, needed: set[str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    frame = _read(path)
    if absent := sorted(needed - set(frame)):
        raise InputError(
            f"{path} has no column {', '.join(absent)}; it has {', '.join(map(str, frame))}",
            fix=_REWRITE,
            field=path.name,
        )
    return frame if len(frame) else None


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat
