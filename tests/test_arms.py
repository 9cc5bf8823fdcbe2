"""Every arm of a recipe end to end on a few real images, as small as it still means something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leukoscope import api
from leukoscope.recipes import schema

CLASSES = ("basophil", "lymphocyte", "platelet")
IMAGES = 10  # of each class
SIDE = 64


# Arms that differ from the recipe's first in method alone run on a smaller network, or on one that
# isn't trained first; the first arm, and every arm that is a network of its own, runs as it is.
_TINY = ["model.backbone=convnext_tiny"]
_ONE = ["features.networks=[{backbone='mobilenetv2_100', layer='gap'}]"]
_AS_IT_IS = ["features.finetune=false"]
SMALLER = {
    "convnext-aml": dict.fromkeys(("plain", "mixup", "swa", "mixup-swa"), _TINY),
    "hybrid-stacking": dict.fromkeys(
        ("baseline", "plus-segmentation", "plus-augmentation", "plus-oversampling"), _ONE
    ),
    "logmh-transfer": dict.fromkeys(("random-forest", "svm", "knn", "sgd"), _AS_IT_IS),
}


def cells_of(pbc: Path, folder: Path) -> Path:
    """An index of a few real cells of three classes; the patients are made up, two cells each."""
    rows = [
        {"image": str(path), "label": name, "patient": f"{name} {place // 2}"}
        for name in CLASSES
        for place, path in enumerate(sorted((pbc / name).iterdir())[:IMAGES])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "cells.csv", index=False)
    api.index(folder / "cells.csv", folder / "cells.parquet", layout="csv")
    return folder / "cells.parquet"


def tiny(recipe: str, arm: str) -> list[str]:
    """Settings that keep the arm's method and make it small: size, steps, epochs, trees."""
    plan = schema.resolve(recipe, arm=arm)
    steps = [s | ({"size": SIDE} if s["step"] == "resize" else {}) for s in plan.preprocessing]
    training = plan.training
    phases = [p.model_dump() | {"epochs": 1} for p in training.phases]
    settings = [
        f"preprocessing={_toml(steps)}", "training.batch_size=4", "training.steps_per_epoch=2",
        "training.validate_every=0", "training.epochs=1", "classical.forest_trees=5",
        "classical.folds=2", "split.clean=60/20/20",
    ]  # fmt: skip
    settings += SMALLER.get(recipe, {}).get(arm, [])
    if plan.split.published_unit == "image":
        settings.append("split.published=60/20/20")
    if plan.views.count > 2:
        settings.append("views.count=2")
    if phases:
        settings.append(f"training.phases={_toml(phases)}")
    if training.averaging.start:
        settings.append("training.averaging={start=1}")
    if plan.split.folds > 1:
        settings.append("split.folds=2" if arm == "alexnet" else "split.folds=1")
    return settings


def _toml(entries: list[dict[str, object]]) -> str:
    return "[" + ", ".join(_table(entry) for entry in entries) + "]"


def _table(entry: dict[str, object]) -> str:
    return "{" + ", ".join(f"{key}={json.dumps(value)}" for key, value in entry.items()) + "}"


def run_arm(recipe: str, arm: str, cells: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both protocols: metrics, a report, a bundle that answers as the run did."""
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(out / "cache"))  # gigabytes; goes with the test
    found = api.reproduce(
        recipe, cells, out, arms=[arm], weights="none", settings=tiny(recipe, arm)
    )
    assert found["not_run"] == []
    assert (out / "report.html").is_file()
    for protocol in schema.PROTOCOLS:
        run = out / f"{arm}-{protocol}"
        metrics = json.loads((run / "metrics.json").read_text())
        assert 0 <= metrics["accuracy"] <= 1
        assert (run / "report.html").stat().st_size > 10_000
        check_bundle(run, out / f"bundle-{protocol}", cells)


def check_bundle(run: Path, bundle: Path, cells: Path) -> None:
    """The exported graph gives the run's own probabilities."""
    api.export(run, bundle)
    card = (bundle / "README.md").read_text()
    assert ("published protocol" in card) == run.name.endswith("-published")
    predictions = pd.read_parquet(run / "predictions.parquet")
    role = json.loads((run / "metrics.json").read_text())["role"]
    scored = predictions[(predictions["role"] == role) & (predictions["view"] == 0)]
    if "fold" in scored:  # the bundle holds the network of one fold
        stated = json.loads((run / "environment.json").read_text())
        scored = scored[scored["fold"] == stated["model_of_fold"]]
    scored = scored.drop_duplicates("image").head(4)
    from leukoscope.data.index import load

    index = load(cells)
    counts = api.predict(
        bundle, [index.path(i) for i in scored["image"]], bundle.parent / f"{bundle.name}.parquet"
    )
    assert counts["unreadable"] == 0
    said = pd.read_parquet(bundle.parent / f"{bundle.name}.parquet")
    order = {str(index.path(image)): place for place, image in enumerate(scored["image"])}
    said = said.iloc[said["image"].map(order).argsort()]
    columns = [f"prob_{name}" for name in CLASSES]
    np.testing.assert_allclose(said[columns].to_numpy(), scored[columns].to_numpy(), atol=2e-3)


@pytest.fixture(scope="module")
def cells(pbc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cells_of(pbc, tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize(
    ("recipe", "arm"), [(r, arm) for r in schema.names() for arm in schema.arms(schema.raw(r))]
)
def test_arm(
    recipe: str, arm: str, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_arm(recipe, arm, cells, tmp_path, monkeypatch)
