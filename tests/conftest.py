"""Shared fixtures: where the real images are, and what every test may assume."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from commands import Made, make
from leukoscope import api
from leukoscope.data import synthetic

# Before torch is loaded, for several test processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LEUKOSCOPE_DATA", REPOSITORY.parent / "shared" / "data"))
WEIGHTS = DATA.parent / "weights" / "mobilenetv2_100_in1k.safetensors"


def _real(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"REAL IMAGES ABSENT: {DATA / folder} (set LEUKOSCOPE_DATA)")
    return DATA / folder


@pytest.fixture(scope="session")
def pbc() -> Path:
    """8 classes x 300 single cells of PBC, JPEG of about 360 px."""
    return _real("pbc-mini")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """364 fields of view of BCCD, 640x480, with boxes and nucleus masks."""
    return _real("bccd")


@pytest.fixture(scope="session")
def foreign() -> Path:
    """Images that hold no human white cell: thalassaemia red cells, pig blood."""
    return _real("novelty")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """ImageNet weights of MobileNetV2 with their contract beside them."""
    if not WEIGHTS.is_file():
        pytest.skip(f"WEIGHTS ABSENT: {WEIGHTS} (set LEUKOSCOPE_DATA)")
    return WEIGHTS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One small synthetic smear with its index, split, run and bundle; copy it to damage it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return make(tmp_path_factory.getbasetemp() / "made")


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 120 synthetic cells of 48 px from 16 patients, leaks planted."""
    folder = tmp_path_factory.mktemp("smear")
    csv = synthetic.make(folder, images=120, size=48, patients=16)
    api.index(csv, folder / "cells.parquet")
    return folder / "cells.parquet"
