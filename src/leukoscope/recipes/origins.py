"""The images that a run was made from: their labels and masks, its training and its scored part."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukoscope.data import index as indexes
from leukoscope.data.index import CellIndex
from leukoscope.data.table import read_parquet
from leukoscope.errors import InputError
from leukoscope.files import read_json


@dataclass(frozen=True)
class Origins:
    """What a run was made from, as far as it still lies there.

    training: the images its model was trained on. scored: image, label, predicted and confidence
    of those that its metrics are about and that its model never saw: of a cross-validation, those
    of the fold whose model the run holds.
    """

    index: CellIndex
    training: list[str]
    scored: pd.DataFrame

    @cached_property
    def _rows(self) -> dict[Path, int]:
        return {path: n for n, path in enumerate(self.paths(self.index.frame["image"]))}

    def row(self, path: Path) -> dict[str, Any] | None:
        """The index's row of a file, or None where the index doesn't have it."""
        place = self._rows.get(_plain(path), self._rows.get(path.resolve()))
        if place is None:
            return None
        return {str(key): value for key, value in self.index.frame.iloc[place].items()}

    def paths(self, images: Iterable[str]) -> list[Path]:
        """Where images of the index lie, as absolute paths without `..`."""
        return [_plain(self.index.path(image)) for image in images]


def of_run(run: Path) -> Origins | None:
    """The origins of a run folder; None of a bundle, or where the index is no more there."""
    stated = run / "environment.json"
    if not stated.is_file():
        return None
    environment = read_json(stated)
    try:
        path = Path(environment["index"]["path"])
    except (KeyError, TypeError):
        return None
    if not path.is_file():
        return None
    index = indexes.load(path)
    fold = environment.get("model_of_fold")
    roles, said = (_table(run / f"{n}.parquet", fold, index) for n in ("split", "predictions"))
    role = read_json(run / "metrics.json").get("role")
    probs = said[[c for c in said if str(c).startswith("prob_")]].to_numpy(np.float64)
    scored = said.assign(confidence=probs.max(axis=1, initial=0))[said["role"] == role]
    scored = scored.drop_duplicates("image").reset_index(drop=True)
    return Origins(
        index=index,
        training=sorted(set(roles.loc[roles["role"] == "train", "image"])),
        scored=scored[["image", "label", "predicted", "confidence"]],
    )


def _plain(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve asks the disk for every part


def _table(path: Path, fold: int | None, index: CellIndex) -> pd.DataFrame:
    fix = "Train the run again."
    frame = read_parquet(path, "a table of a run", fix=fix, field="source").to_pandas()
    if absent := sorted({"image", "role"} - set(frame)):
        raise InputError(f"{path} has no column {', '.join(absent)}", fix=fix, field="source")
    if fold is not None and "fold" in frame:
        frame = frame[frame["fold"] == fold]
    return frame[frame["image"].isin(index.frame["image"])]
