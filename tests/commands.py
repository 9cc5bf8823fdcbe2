"""Driving the command line in this process, and one small run and bundle for all tests of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukoscope.cli import main
from leukoscope.data import synthetic

TINY = (
    "--arm", "cnn", "--set", "views.count=2", "--set", "training.epochs=1",
    "--set", "training.steps_per_epoch=2", "--set", "training.batch_size=4",
    "--set", 'preprocessing=[{step="resize",size=32}]',
)  # fmt: skip


GARBAGE = {
    "empty": b"",
    "noise": b"\xff\0garbage" * 40,
    "text": b"image,label\n",
    "par1": b"PAR1" * 3,
}


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Answer:
    """Run `leukoscope ARGUMENTS` in this process, as its console script would."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["leukoscope", *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as ended,
        ):
            main.run()
    finally:
        sys.argv = before
    code = ended.value.code
    assert isinstance(code, int)
    return Answer(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> str:
    """The command's stdout; it must end with 0 and say nothing else."""
    answer = call(*arguments)
    assert (answer.code, answer.err) == (0, ""), answer
    return answer.out


def refused(*arguments: object, code: int = 2) -> str:
    """The one sentence a command ends in."""
    answer = call(*arguments)
    assert answer.code == code, answer
    assert answer.err.count("\n") == 1, answer.err
    assert answer.err.endswith((".\n", "?\n", "help\n")) or ": " in answer.err, answer.err
    assert "bug in Leukoscope" not in answer.err
    assert "Traceback" not in answer.err
    return answer.err


def state(folder: Path) -> dict[bytes, str]:
    """Every file below a folder by name, with its hash or where it links to."""
    found = {}
    for at, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = os.path.join(at, name)  # noqa: PTH118 - bytes
            if os.path.islink(path):  # noqa: PTH114
                found[path] = os.fsdecode(os.readlink(path))  # noqa: PTH115
            elif os.path.isfile(path):  # noqa: PTH113
                found[path] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """What lies below the folders must be the same afterwards, with nothing added."""
    before = [state(folder) for folder in folders]
    yield
    assert [state(folder) for folder in folders] == before


def no_parts(folder: Path) -> None:
    """No temporary file was left below the folder."""
    assert not [name for name in state(folder) if b".part-" in name]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 50)) -> Path:
    """Noise, as an image of the format its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@dataclass(frozen=True)
class Made:
    """A synthetic smear, and all that the commands make of it. Tests copy what they damage."""

    folder: Path

    @property
    def smear(self) -> Path:
        return self.folder / "smear"

    @property
    def cells(self) -> Path:
        return self.folder / "cells.parquet"

    @property
    def split(self) -> Path:
        return self.folder / "split.parquet"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


def make(folder: Path) -> Made:
    """60 synthetic cells of 64 px from 6 patients: indexed, split, trained on and exported."""
    made = Made(folder)
    synthetic.make(made.smear, images=60, size=64, patients=6)
    done("index", made.smear / "cells.csv", "-o", made.cells)
    done("split", made.cells, "-o", made.split, "--ratios", "50/25/25")
    done("train", "lightweight-cnn", made.cells, "-o", made.run, "--split", made.split, *TINY)
    done("export", made.run, "-o", made.bundle)
    return made
