"""What takes part in a run: outliers, samples of classes, folds, balance, boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from leukoscope import api
from leukoscope.data import index as indexes
from leukoscope.data import split as splits
from leukoscope.data.index import CellIndex
from leukoscope.errors import InputError
from leukoscope.recipes import records
from leukoscope.recipes.experiment import Experiment, at_most, prepare
from leukoscope.recipes.learning import network_samples, training_part, untrained
from leukoscope.recipes.schema import PROTOCOLS, Recipe, resolve
from leukoscope.train.samples import FeatureSamples, PixelSamples

SMALL = (
    "preprocessing=[{step='resize', size=32}]", "training.epochs=1", "training.steps_per_epoch=2",
    "training.batch_size=4", "views.count=1", "split.published_unit='image'",
    "split.published='70/15/15'",
)  # fmt: skip


@pytest.fixture(scope="module")
def index(cells: Path) -> CellIndex:
    return indexes.load(cells)


def plan_with(*settings: str) -> Recipe:
    return resolve("lightweight-cnn", arm="cnn", settings=[*SMALL, *settings])


def experiment(index: CellIndex, plan: Recipe, protocol: str = "clean") -> Experiment:
    return prepare(plan, protocol, index, weights="none", given=None, fold=None, device="cpu")  # type: ignore[arg-type]


@pytest.fixture
def with_ink(index: CellIndex, tmp_path: Path) -> CellIndex:
    """The same index, in which every sixth image shows nothing but background."""
    import cv2

    frame = index.frame.copy()
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((48, 48, 3), 235, np.uint8))
    made = indexes.examine(blank)["sha256"]
    rows = frame.index[::6]
    for number, row in enumerate(rows):
        copy = tmp_path / f"blank{number}.png"
        copy.write_bytes(blank.read_bytes())
        frame.loc[row, "image"] = str(copy)
        frame.loc[row, "sha256"] = made
    return replace(index, frame=frame)


def test_outliers_leave_training_but_not_the_clean_test_part(with_ink: CellIndex) -> None:
    plan = plan_with("exclude=['empty', 'debris']")
    blank = {i for i in with_ink.frame["image"] if "blank" in i}
    for protocol in PROTOCOLS:
        job = experiment(with_ink, plan, protocol)
        out = {entry["image"] for entry in job.findings["excluded"]}
        in_test = set(job.roles.loc[job.roles["role"] == "test", "image"])
        assert blank - out <= (in_test if protocol == "clean" else set())
        assert not out & set(job.table["image"])
        assert all(entry["flags"] for entry in job.findings["excluded"])
        if protocol == "clean":
            assert in_test == set(job.table.loc[job.table["role"] == "test", "image"])
    assert experiment(with_ink, plan_with()).findings["excluded"] == []


def test_at_most_so_many_images_of_a_class(index: CellIndex) -> None:
    few = at_most(index, 7, seed=0)
    counts = index.frame["label"].value_counts()
    assert few.frame["label"].value_counts().to_dict() == counts.clip(upper=7).to_dict()
    assert few.frame["image"].tolist() == at_most(index, 7, seed=0).frame["image"].tolist()
    assert few.frame["image"].tolist() != at_most(index, 7, seed=1).frame["image"].tolist()
    assert at_most(index, 0, seed=0) is index
    assert at_most(index, 10_000, seed=0) is index


@pytest.mark.parametrize("balance", ["oversample", "top_up"])
def test_balance_touches_training_images_alone(index: CellIndex, balance: str) -> None:
    job = experiment(index, plan_with(f"balance='{balance}'"))
    part = training_part(job)
    assert set(part.rows) == set(job.rows("train"))
    counts = np.bincount(part.labels)
    assert (counts == counts.max()).all()
    views = part.views(np.arange(len(part.rows)), np.zeros(len(part.rows), np.int64))
    copies = part.copies
    assert copies is not None
    assert ((views > 0) == ((copies > 0) & (balance == "top_up"))).all()


def test_boxes_follow_the_view(index: CellIndex) -> None:
    """Of a flipped view the box is the mirror image; without a nucleus it is the whole image."""
    plan = plan_with("views.online=true", "augmentation=[{operation='horizontal_flip', p=1.0}]")
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"backbone": "cnn"})})
    job = experiment(index, plan)
    classifier = untrained(job)[0]
    classifier.backbone.with_boxes = None  # asks for the nuclei, as a detector's does
    samples = network_samples(job, 0, classifier)
    rows = job.rows("train")[:12]
    own, flipped = (samples.boxes(rows, np.full(12, k)) for k in (0, 1))
    x, y, width, height = own.unbind(1)
    mirrored = torch.stack([1 - x - width, y, width, height], dim=1)
    assert (width < 1).float().mean() > 0.5, "most of them are found"
    torch.testing.assert_close(flipped, mirrored, atol=2 / 32, rtol=0)


def test_a_detector_sees_pixels_even_where_the_head_alone_learns(index: CellIndex) -> None:
    """Its branches can't be asked about pooled features."""
    plan = plan_with("training.trained='head'")
    job = experiment(index, plan)
    plain, detector = untrained(job)[0], untrained(job)[0]
    detector.backbone.with_boxes = None
    assert isinstance(network_samples(job, 0, plain), FeatureSamples)
    assert isinstance(network_samples(job, 0, detector), PixelSamples)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cross_validation_scores_every_image_once(
    cells: Path, tmp_path: Path, protocol: str, index: CellIndex
) -> None:
    settings = [*SMALL, "split.folds=3"]
    run = tmp_path / "run"
    found = api.train("lightweight-cnn", cells, run, arm="cnn", protocol=protocol,
                      settings=settings)  # fmt: skip
    metrics = found["metrics"]
    assert metrics["n"] == len(index.frame)
    spread = metrics["folds"]["accuracy"]
    assert spread["mean"] == pytest.approx(np.mean(spread["values"]))
    assert spread["sd"] == pytest.approx(np.std(spread["values"], ddof=1))
    assert len(spread["values"]) == 3
    predictions = pd.read_parquet(run / "predictions.parquet")
    scored = predictions[predictions["role"] == metrics["role"]]
    assert sorted(scored["image"]) == sorted(index.frame["image"])
    split = splits.read(run / "split.parquet")
    assert set(split["fold"]) == {0, 1, 2}
    if protocol == "clean":
        splits.check(index, split)
    labels = index.frame.set_index("image")["label"]
    held = split[split["role"] == metrics["role"]]
    shares = pd.crosstab(held["fold"], labels[held["image"]].to_numpy())
    if protocol == "published":
        assert (shares.max() - shares.min() <= 1).all(), "stratified"
    history = pd.read_csv(run / "history.csv")
    assert set(history["fold"]) == {0, 1, 2}
    assert (run / "model" / "contract.json").is_file()
    assert (run / "report.html").is_file()
    # A finished one is kept, and half a one goes on.
    before = (run / "folds" / "1" / "environment.json").stat().st_mtime_ns
    (run / "folds" / "2" / "environment.json").unlink()
    api.train("lightweight-cnn", cells, run, arm="cnn", protocol=protocol, settings=settings,
              resume=True)  # fmt: skip
    assert (run / "folds" / "1" / "environment.json").stat().st_mtime_ns == before
    again = json.loads((run / "metrics.json").read_text())
    assert again["confusion_matrix"] == metrics["confusion_matrix"]
    with pytest.raises(InputError, match="holds a run already"):
        api.train("lightweight-cnn", cells, run, arm="cnn", protocol=protocol, settings=settings)


def test_one_fold_of_a_cross_validation(cells: Path, tmp_path: Path) -> None:
    found = api.train("lightweight-cnn", cells, tmp_path / "run", arm="cnn", fold=1,
                      settings=[*SMALL, "split.folds=3"])  # fmt: skip
    assert "folds" not in found["metrics"]
    with pytest.raises(InputError, match="no fold 7"):
        api.train("lightweight-cnn", cells, tmp_path / "other", arm="cnn", fold=7,
                  settings=[*SMALL, "split.folds=3"])  # fmt: skip


def test_folds_of_views_are_refused(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="published_unit"):
        api.train("lightweight-cnn", cells, tmp_path / "run", settings=["split.folds=3"])


def test_training_seconds_are_those_of_all_epochs(tmp_path: Path) -> None:
    assert records.training_seconds(tmp_path) is None, "nothing was trained"
    (tmp_path / "history.csv").write_text("epoch,seconds\n1,1.5\n2,2.25\n")
    assert records.training_seconds(tmp_path) == 3.8
