"""The readers that take files from strangers, each as one function of a file's bytes.

`judge` is the property that fuzzing, the kept corpus and hypothesis share: a file is read, or it is
refused with one sentence. Every other exception is a finding.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import seeds
import tomli_w

from leukoscope.bundle import contract as contracts
from leukoscope.bundle.inference import Reader
from leukoscope.data import split as splits
from leukoscope.data.duplicates import Duplicates, find
from leukoscope.data.index import CellIndex, load
from leukoscope.data.layouts import parse
from leukoscope.data.signature import colour_moments, phash, thumbnail
from leukoscope.errors import InputError, LeakError
from leukoscope.files import plain
from leukoscope.imaging.read import read_image
from leukoscope.recipes import schema
from leukoscope.recipes.judgement import read_predictions
from leukoscope.recipes.levels import measure, scored

CORPUS = Path(__file__).parent / "corpus"
MAX_PIXELS = 1_000_000
"""Decoded at most while fuzzing, so that an input's time says something about its damage."""
MOST_MEASURED = 1 / 64  # intervals take a second
LONGEST = 2000  # characters of a sentence


def judge(reader: str, data: bytes) -> str:
    """How the reader ends: "" where the file was read, else the sentence that it was refused with.

    AssertionError where that is no sentence; whatever else the reader raises is raised.
    """
    try:
        with tempfile.TemporaryDirectory(dir=_scratch()) as folder:
            READERS[reader](Path(folder), data)
    except (InputError, LeakError) as problem:
        said = str(problem)
        assert said.strip(), type(problem)
        assert len(said) <= LONGEST, f"{len(said)} characters: {said[:200]}"
        assert "\n" not in said.strip(), said
        assert "Traceback" not in said, said
        said.encode()  # what can't be encoded can't be shown
        return said
    return ""


def _scratch() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _image(folder: Path, data: bytes) -> None:
    path = folder / "cell.bin"
    path.write_bytes(data)
    pixels = read_image(path, max_pixels=MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    assert len(phash(pixels)) == 16
    assert np.isfinite(colour_moments(pixels)).all()
    assert thumbnail(pixels).dtype == np.uint8


def _index(folder: Path, data: bytes) -> None:
    """cells.parquet, or the csv that lists images."""
    if not _is_parquet(data):
        path = folder / "cells.csv"
        path.write_bytes(data)
        for row in parse("csv", path, folder / "images"):
            assert row.label
        return
    path = folder / "cells.parquet"
    path.write_bytes(data)
    cells = load(path)
    assert len(cells.frame)
    assert cells.root.is_absolute()
    assert len(cells.sha256) == len(splits.index_hash(cells)) == 64
    assert len(find(cells).clusters) == len(cells.frame)


def _recipe(folder: Path, data: bytes) -> None:
    from leukoscope.imaging.augmentation import check as check_augmentation  # imports torch

    path = folder / "own.toml"
    path.write_bytes(data)
    arm = schema.arms(schema.raw(str(path)))[-1]
    plan = schema.resolve(str(path), arm=arm)
    check_augmentation(plan.augmentation)
    again = folder / "again.toml"  # what a run writes down is the same recipe
    again.write_text(tomli_w.dumps(plain(plan.resolved())), encoding="utf-8")
    assert schema.resolve(str(again)).sha256 == plan.sha256


def _contract(folder: Path, data: bytes) -> None:
    (folder / contracts.CONTRACT).write_bytes(data)
    contract = contracts.read(folder)
    (folder / contracts.GRAPH).write_bytes(seeds.graph())
    contracts.verify_graph(folder, contract)
    if max(contract.input.size) > 64:
        return
    reader = Reader(contract, seeds.graph())
    said = reader.answer(np.ones((1, 3, *contract.input.size), np.float32))
    assert np.isfinite(said.probs).all()


def _split(folder: Path, data: bytes) -> None:
    path = folder / "split.parquet"
    path.write_bytes(data)
    frame = splits.read(path)
    assert len(frame)
    cells, found = _cells()
    splits.check(cells, frame, excluded=splits.left_out(cells, frame), found=found)
    splits.write(frame, path)
    assert splits.read(path).equals(frame)


@functools.cache
def _cells() -> tuple[CellIndex, Duplicates]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.parquet"
        path.write_bytes(seeds.index()[0])
        cells = load(path)
    return cells, find(cells)


def _predictions(folder: Path, data: bytes) -> None:
    path = folder / f"said.{'parquet' if _is_parquet(data) else 'csv'}"
    path.write_bytes(data)
    frame, classes = read_predictions(path)
    scored(frame, classes)
    if hash(data) % round(1 / MOST_MEASURED) == 0 and len(frame) < 50 and len(classes) < 50:
        measure(frame, classes)


def _is_parquet(data: bytes) -> bool:
    return data.startswith(b"PAR1")


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "index": _index,
    "image": _image,
    "recipe": _recipe,
    "contract": _contract,
    "split": _split,
    "predictions": _predictions,
}
