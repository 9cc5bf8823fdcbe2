"""The synthetic smear: its files, its planted truth, and cells that look like what they are."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from skimage.filters import threshold_multiotsu
from skimage.measure import label as components
from skimage.measure import regionprops
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leukoscope.data.synthetic import CLASSES, make
from leukoscope.data.synthetic_cells import ANATOMIES, Grid, draw, outline, rods, smooth_noise
from leukoscope.data.synthetic_scene import random_slide, single_cell
from leukoscope.errors import InputError, UnreadableError
from leukoscope.files import sha256_of
from leukoscope.imaging.read import read_image

IMAGES, PATIENTS, SIZE = 140, 4, 128


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smear")
    assert make(out, images=IMAGES, size=SIZE, patients=PATIENTS, seed=3) == out / "cells.csv"
    return out


@pytest.fixture(scope="module")
def cells(smear: Path) -> pd.DataFrame:
    return pd.read_csv(smear / "cells.csv")


@pytest.fixture(scope="module")
def truth(smear: Path) -> dict:
    return json.loads((smear / "planted.json").read_text())


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def test_table_and_files_agree(smear: Path, cells: pd.DataFrame) -> None:
    assert list(cells.columns) == ["image", "label", "patient", "slide", "mask"]
    assert len(cells) == IMAGES
    assert cells["image"].is_unique
    assert set(cells["label"]) == set(CLASSES)
    assert cells["patient"].nunique() == PATIENTS
    on_disk = {name for name in contents(smear) if name.startswith("images/")}
    assert on_disk == set(cells["image"])
    for row in cells.itertuples():
        assert Path(row.image).parent.name == row.label
        mask = cv2.imread(str(smear / row.mask), cv2.IMREAD_GRAYSCALE)
        assert mask.shape == (SIZE, SIZE)
        assert set(np.unique(mask)) == {0, 255}


def test_every_patient_has_every_class_and_own_slides(cells: pd.DataFrame) -> None:
    assert (cells.groupby("patient")["label"].nunique() == len(CLASSES)).all()
    assert (cells.groupby("slide")["patient"].nunique() == 1).all()
    assert (cells.groupby("patient")["slide"].nunique() == 2).all()


def test_readme_says_synthetic_and_seed(smear: Path) -> None:
    text = (smear / "README.txt").read_text()
    assert "synthetic" in text
    assert "seed=3" in text


def test_same_bytes_whatever_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a", images=40, size=64, patients=2, seed=5)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    make(tmp_path / "b", images=40, size=64, patients=2, seed=5)
    make(tmp_path / "c", images=40, size=64, patients=2, seed=6)
    first, second, third = (contents(tmp_path / name) for name in "abc")
    assert first == second
    assert not set(first.values()) & {
        digest for name, digest in third.items() if name.startswith("images/")
    }


def test_exact_duplicates_are_those_planted_and_no_others(
    smear: Path, cells: pd.DataFrame, truth: dict
) -> None:
    groups = defaultdict(list)
    for image in cells["image"]:
        groups[sha256_of(smear / image)].append(image)
    found = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    assert found == truth["exact_duplicates"]
    assert len(found) >= 3


def test_near_duplicates_show_the_same_cell(smear: Path, truth: dict) -> None:
    assert truth["near_duplicates"]
    assert set(truth["altered"]) == {
        name for group in truth["near_duplicates"] for name in group if name in truth["altered"]
    }
    for group in truth["near_duplicates"]:
        originals = [name for name in group if name not in truth["altered"]]
        assert len(originals) == 1
        source = read_image(smear / originals[0])
        for name in set(group) - set(originals):
            assert sha256_of(smear / name) != sha256_of(smear / originals[0])
            assert likeness(source, read_image(smear / name), truth["altered"][name]) > 0.95


def likeness(source: np.ndarray, copy: np.ndarray, how: str) -> float:
    """Correlation after the planted alteration has been undone."""
    if how == "rotated":
        copy = np.rot90(copy, -1)
    elif how == "mirrored":
        copy = copy[:, ::-1]
    elif how == "cropped":
        side = round(0.92 * SIZE)
        copy = cv2.resize(copy, (side, side), interpolation=cv2.INTER_AREA)
    copy = np.ascontiguousarray(copy)
    return float(cv2.matchTemplate(source, copy, cv2.TM_CCOEFF_NORMED).max())


def test_label_conflicts_and_patients(cells: pd.DataFrame, truth: dict) -> None:
    rows = cells.set_index("image")
    assert len(truth["label_conflicts"]) == 1
    everything = truth["exact_duplicates"] + truth["near_duplicates"]
    conflicts = [g for g in everything if rows.loc[g, "label"].nunique() > 1]
    across = [g for g in everything if rows.loc[g, "patient"].nunique() > 1]
    assert conflicts == truth["label_conflicts"]
    assert sorted(across) == truth["duplicates_across_patients"]
    assert 0 < len(across) < len(everything)
    for patient, counts in truth["patients"].items():
        assert counts == cells[cells["patient"] == patient]["label"].value_counts().to_dict()


def test_only_the_corrupt_file_is_unreadable(smear: Path, cells: pd.DataFrame, truth: dict) -> None:
    unreadable = []
    for image in cells["image"]:
        try:
            assert read_image(smear / image).shape == (SIZE, SIZE, 3)
        except UnreadableError:
            unreadable.append(image)
    assert unreadable == truth["corrupt"]
    assert len(unreadable) == 1


def test_without_leaks_nothing_is_planted(tmp_path: Path) -> None:
    make(tmp_path, images=30, size=48, patients=2, leaks=False)
    truth = json.loads((tmp_path / "planted.json").read_text())
    for fault in ("exact_duplicates", "near_duplicates", "label_conflicts", "corrupt", "altered"):
        assert not truth[fault]
    files = {k: v for k, v in contents(tmp_path).items() if k.startswith("images/")}
    assert len(set(files.values())) == len(files) == 30


def test_an_earlier_smear_is_replaced_whole(tmp_path: Path) -> None:
    make(tmp_path, images=60, size=40, patients=2)
    make(tmp_path, images=25, size=40, patients=2)
    assert len([name for name in contents(tmp_path) if name.startswith("images/")]) == 25


def test_foreign_images_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="another output folder"):
        make(tmp_path, images=25, size=40, patients=2)
    assert contents(tmp_path).keys() == {"images/mine.jpg"}


@pytest.mark.parametrize(
    "wrong",
    [{"images": 19}, {"images": 0, "leaks": False}, {"size": 8}, {"patients": 0}, {"seed": -1}],
    ids=str,
)
def test_arguments_out_of_range(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError, match="allowed"):
        make(tmp_path / "x", **wrong)
    assert not (tmp_path / "x").exists()


def test_fields_have_a_box_for_every_white_cell(smear: Path) -> None:
    boxes = pd.read_csv(smear / "fields" / "fields.csv")
    assert boxes["field"].nunique() == 4
    for field, rows in boxes.groupby("field"):
        image = read_image(smear / "fields" / str(field))
        assert image.shape == (480, 640, 3)
        mask = cv2.imread(str(smear / "masks/fields" / f"{Path(str(field)).stem}.png"), 0)
        assert len(rows) >= 3
        for row in rows.itertuples():
            assert row.label in CLASSES
            assert row.x >= 0
            assert row.y >= 0
            assert row.x + row.width <= 640
            assert row.y + row.height <= 480
            inside = mask[row.y : row.y + row.height, row.x : row.x + row.width]
            assert 0.1 < (inside > 0).mean() < 0.9
            mask[row.y : row.y + row.height, row.x : row.x + row.width] = 0
        assert not mask.any(), "a nucleus lies outside every box"


def test_masks_cover_what_is_dark(smear: Path, cells: pd.DataFrame, truth: dict) -> None:
    dice = []
    for row in cells[~cells["image"].isin(truth["corrupt"])].itertuples():
        if row.label == "basophil":  # its granules are as dark as its nucleus
            continue
        image = read_image(smear / row.image)
        mask = cv2.imread(str(smear / row.mask), cv2.IMREAD_GRAYSCALE) > 0
        density = -np.log((image[..., :2].astype(float).sum(axis=2) + 1) / 512)
        found = density > threshold_multiotsu(density, 3)[1]
        dice.append(2 * (found & mask).sum() / (found.sum() + mask.sum()))
    assert np.median(dice) > 0.9


def test_shape_tells_the_classes_and_colour_does_not(
    smear: Path, cells: pd.DataFrame, truth: dict
) -> None:
    """Under a split by patient, 5-NN on colour statistics falls far behind nucleus shape alone."""
    planted = set(truth["corrupt"]) | {
        name for group in truth["exact_duplicates"] + truth["near_duplicates"] for name in group[1:]
    }
    rows = cells[~cells["image"].isin(planted)]
    colour, shape = [], []
    for row in rows.itertuples():
        image = read_image(smear / row.image).reshape(-1, 3).astype(float)
        spread = image - image.mean(axis=0)
        deviation = spread.std(axis=0)
        colour.append([*image.mean(axis=0), *deviation, *(spread**3).mean(axis=0) / deviation**3])
        mask = cv2.imread(str(smear / row.mask), cv2.IMREAD_GRAYSCALE) > 0
        region = regionprops(mask.astype(int))[0]
        thickness = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5).max()
        shape.append([region.area, region.solidity, region.perimeter, thickness])
    labels, patients = rows["label"].to_numpy(str), rows["patient"].to_numpy(str)

    def accuracy(model: object, features: list) -> float:
        folds = GroupKFold(PATIENTS)
        got = cross_val_predict(model, np.array(features), labels, groups=patients, cv=folds)
        return float((got == labels).mean())

    by_colour = accuracy(make_pipeline(StandardScaler(), KNeighborsClassifier(5)), colour)
    by_shape = accuracy(RandomForestClassifier(60, random_state=0), shape)
    majority = rows["label"].value_counts(normalize=True).max()
    assert by_colour < majority + 0.15
    assert by_shape > by_colour + 0.25
    assert by_shape < 0.97, "hard cells exist"


@pytest.mark.parametrize("name", sorted(ANATOMIES))
def test_anatomy_of_every_class(name: str) -> None:
    """The nucleus lies within its cell and leaves some cytoplasm, in whatever draw."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        anatomy = ANATOMIES[name](rng)
        half = int(np.ceil(1.3 * anatomy.radius * 5)) + 1
        cell = draw(anatomy, Grid.around(half, (0.3, -0.2), 5.0), rng)
        assert cell.amounts.dtype == cell.opacity.dtype == cell.nucleus.dtype == np.float32
        assert np.isfinite(cell.amounts).all()
        assert cell.amounts.min() >= 0
        assert (cell.nucleus <= cell.opacity + 1e-6).all()
        assert 0.1 < cell.nucleus.sum() / cell.opacity.sum() < 0.95
        edge = np.ones_like(cell.opacity, bool)
        edge[1:-1, 1:-1] = False
        assert cell.opacity[edge].max() == 0, "the cell is cut off by its patch"


def test_morphology_separates_the_classes() -> None:
    """Blasts fill their cell, lymphocytes are small and round, segmented nuclei are not convex."""
    slide = replace(random_slide(np.random.default_rng(0)), zoom=1.0)
    area, solidity = {}, {}
    for name in CLASSES:
        regions = []
        for seed in range(15):
            mask = single_cell(name, slide, 160, np.random.default_rng([seed, 1])).mask
            regions.append(max(regionprops(components(mask)), key=lambda region: region.area))
        area[name] = np.median([region.area for region in regions])
        solidity[name] = np.median([region.solidity for region in regions])
    assert area["myeloblast"] > 1.4 * area["lymphocyte"]
    assert area["monocyte"] > 1.4 * area["neutrophil"]
    assert solidity["lymphocyte"] > 0.93
    assert solidity["myeloblast"] > 0.93
    assert solidity["neutrophil"] < 0.87
    assert solidity["neutrophil"] < solidity["monocyte"] < solidity["lymphocyte"]


def test_distances_are_those_of_a_circle() -> None:
    grid = Grid.around(20, (0.0, 0.0), 4.0)
    exact = np.hypot(grid.x, grid.y) - 3
    assert np.allclose(outline(grid, 3.0, np.zeros(5), np.zeros(5)), exact, atol=1e-4)
    assert np.allclose(rods(grid.x, grid.y, np.array([[0, 0, 0, 0, 3, 3]]), 0.5), exact, atol=1e-4)
    assert np.isclose(grid.soft(exact).sum(), np.pi * (3 * 4) ** 2, rtol=0.01)


@pytest.mark.parametrize("grain", [0.5, 2.0, 9.0])
def test_noise_has_unit_variance_and_its_grain(grain: float) -> None:
    noise = smooth_noise(np.random.default_rng(1), (300, 200), grain)
    assert noise.shape == (300, 200)
    assert abs(noise.mean()) < 0.2
    assert 0.7 < noise.std() < 1.5


@pytest.mark.parametrize("size", [32, 57, 700])
def test_any_size(tmp_path: Path, size: int) -> None:
    table = pd.read_csv(make(tmp_path, images=4, size=size, patients=1, leaks=False))
    assert read_image(tmp_path / table["image"][0]).shape == (size, size, 3)
    shutil.rmtree(tmp_path)
