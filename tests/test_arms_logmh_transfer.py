"""Every arm of logmh-transfer end to end on real images, under both protocols."""

from __future__ import annotations

from pathlib import Path

import pytest

from arms import arms_of, cells_of, run_arm

RECIPE = "logmh-transfer"


@pytest.fixture(scope="module")
def cells(pbc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cells_of(pbc, tmp_path_factory.mktemp("cells"))


@arms_of(RECIPE)
def test_arm(arm: str, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_arm(RECIPE, arm, cells, tmp_path, monkeypatch)
