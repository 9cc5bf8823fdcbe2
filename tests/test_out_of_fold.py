"""Training images answered by heads that were not trained on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leukoscope import api
from leukoscope.recipes import out_of_fold

TINY = (
    "preprocessing=[{step='resize', size=32}]",
    "views.count=2",
    "training.epochs=2",
    "training.steps_per_epoch=8",
)


@pytest.fixture(scope="module")
def run(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frozen") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(out.parent / "cache"))
        patch.setattr(out_of_fold, "fit", _watched(out.parent))
        api.train("lightweight-cnn", cells, out, arm="mobilenetv2", weights="none", settings=TINY)
    return out


def _watched(folder: Path):
    """`fit`, which also notes the rows that each head was trained on."""

    def fit(classifier, name, samples, training, *rest, **more):
        with (folder / "trained.jsonl").open("a") as handle:
            handle.write(json.dumps(sorted({*training.rows.tolist()})) + "\n")
        return original(classifier, name, samples, training, *rest, **more)

    original = out_of_fold.fit
    return fit


def test_training_images_are_answered_out_of_fold(run: Path) -> None:
    said, split = (
        pd.read_parquet(run / "predictions.parquet"),
        pd.read_parquet(run / "split.parquet"),
    )
    own = said[said["role"] == "train"]
    assert not own["image"].duplicated().any()
    assert set(own["image"]) == set(split.loc[split["role"] == "train", "image"])
    probs = own[[c for c in own if c.startswith("prob_")]].to_numpy()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    sets = json.loads((run / "model" / "contract.json").read_text())["prediction_sets"]
    assert sets["out_of_fold"] == len(own)
    assert sets["calibrated_on"] == len(own) + int((split["role"] == "validation").sum())
    assert max(sets["thresholds"]) < 1  # with validation alone the rare classes are in every set


def test_each_head_lacks_a_share_of_the_patients(run: Path) -> None:
    lines = (run.parent / "trained.jsonl").read_text().splitlines()
    trained = [set(json.loads(line)) for line in lines]
    assert len(trained) == out_of_fold.FOLDS
    every = set().union(*trained)
    # every row is left out of exactly one head
    assert all(sum(row not in rows for rows in trained) == 1 for row in every)


def test_groups_stay_together_and_folds_are_stratified() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 3])
    groups = np.concatenate([rng.integers(0, 12, 60), 20 + rng.integers(0, 10, 30), [40, 41, 42]])
    folds = out_of_fold._folds(labels, groups, seed=3)
    assert sorted(np.concatenate(folds)) == list(range(93))
    for held in folds:
        rest = np.setdiff1d(np.arange(93), held)
        assert not set(groups[held]) & set(groups[rest])
    assert out_of_fold._folds(np.array([0, 1]), np.array([0, 1]), seed=0) == []
    few = out_of_fold._folds(labels, groups % 2, seed=0)
    assert [set(groups[held] % 2) for held in few] in ([{0}, {1}], [{1}, {0}])
    assert out_of_fold._folds(labels, np.zeros(93), seed=0) == []


def test_the_published_protocol_and_learning_networks_have_none(
    cells: Path, tmp_path: Path
) -> None:
    api.train("lightweight-cnn", cells, tmp_path / "run", arm="mobilenetv2", weights="none",
              protocol="published", settings=TINY)  # fmt: skip
    said = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert "train" not in set(said["role"])
