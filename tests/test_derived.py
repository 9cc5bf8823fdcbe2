"""Masks, crops and previews as files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from leukoscope import api
from leukoscope.data import synthetic
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.imaging.read import read_image


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smear")
    synthetic.make(folder, images=12, size=120, patients=2, leaks=False)
    return folder


@pytest.mark.parametrize("method", ["nucleus", "otsu", "hsv"])
def test_segment_writes_masks_of_the_inputs_size_and_stem(
    smear: Path, tmp_path: Path, method: str
) -> None:
    found = api.segment([smear / "images"], tmp_path / "masks", method=method)
    assert found == {"masks": 12, "unreadable": []}
    for path in (smear / "images").rglob("*.jpg"):
        mask = cv2.imread(str(tmp_path / "masks" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == read_image(path).shape[:2]
        assert set(np.unique(mask)) <= {0, 255}


def test_segment_refuses_what_would_be_overwritten_and_names_bad_files(
    smear: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    one = next((smear / "images").rglob("*.jpg"))
    (folder / "a.jpg").write_bytes(one.read_bytes())
    (folder / "b.jpg").write_bytes(b"no image")
    found = api.segment([folder], tmp_path / "masks")
    assert found["masks"] == 1
    assert "b.jpg" in found["unreadable"][0]["image"]
    with pytest.raises(InputError, match=r"None of 1 files can be read.*b\.jpg"):
        api.segment([folder / "b.jpg"], tmp_path / "masks")
    (folder / "a.png").write_bytes(one.read_bytes())
    with pytest.raises(InputError, match="one stem"):
        api.segment([folder], tmp_path / "masks")
    with pytest.raises(UnknownNameError, match="Did you mean 'nucleus'"):
        api.segment([folder], tmp_path / "masks", method="nucleos")


def test_no_output_can_overwrite_the_images_that_are_read(smear: Path) -> None:
    one = next((smear / "images").rglob("*.jpg"))
    for command in (api.segment, api.crop):
        with pytest.raises(InputError, match="holds images that are read"):
            command([one.parent], one.parent)
    with pytest.raises(InputError, match="holds images that are read"):
        api.preview([one], "lightweight-cnn", one.parent)


def test_crop_finds_the_cells_that_were_drawn(smear: Path, tmp_path: Path) -> None:
    found = api.crop([smear / "fields"], tmp_path)
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert list(cells.columns) == ["image", "field", "x", "y", "width", "height"]
    assert found["cells"] == len(cells) > 0
    assert all((tmp_path / image).is_file() for image in cells["image"])
    first = read_image(tmp_path / cells["image"][0])
    assert first.shape[0] == first.shape[1] >= cells[["width", "height"]].iloc[0].max()
    truth = pd.read_csv(smear / "fields" / "fields.csv")
    centres = truth[["x", "y"]].to_numpy() + truth[["width", "height"]].to_numpy() / 2
    hits = 0
    for field, (x, y) in zip(truth["field"].map(lambda f: Path(f).name), centres, strict=True):
        own = cells[cells["field"] == field]
        inside = (own["x"] <= x) & (x < own["x"] + own["width"])
        inside &= (own["y"] <= y) & (y < own["y"] + own["height"])
        hits += bool(inside.any())
    assert hits >= 0.9 * len(truth)


def test_preview_draws_every_step_and_view(smear: Path, tmp_path: Path) -> None:
    image = next((smear / "images").rglob("*.jpg"))
    (sheet,) = api.preview([image], "lightweight-cnn", tmp_path, settings=["views.count=4"])
    picture = read_image(sheet)
    assert picture.shape[1] > 6 * 224  # six tiles: original, two steps, three views
    assert picture.std() > 10
