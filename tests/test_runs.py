"""Whole runs on a small synthetic smear: both protocols, report, bundle, predictions."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from leukoscope import api
from leukoscope.bundle.inference import Reader
from leukoscope.data import index as indexes
from leukoscope.data import split as splits
from leukoscope.data import synthetic
from leukoscope.errors import InputError, LeakError
from leukoscope.evaluate import metrics
from leukoscope.evaluate.calibration import prediction_sets
from leukoscope.imaging.read import read_image

TINY = (
    "preprocessing=[{step='resize', size=32}]",
    "views.count=3",
    "training.epochs=2",
    "training.steps_per_epoch=8",
)
SCALARS = (
    "n", "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1", "macro_precision",
    "macro_recall", "macro_specificity", "mean_ovr_accuracy", "cohen_kappa", "mcc", "roc_auc_ovr",
    "log_loss", "brier", "ece",
)  # fmt: skip


@pytest.fixture(scope="module")
def reproduction(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arm cnn under both protocols."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(out / "cache"))
        found = api.reproduce("lightweight-cnn", cells, out, arms=["cnn"], settings=TINY)
    return found | {"out": out}


@pytest.fixture(scope="module")
def run(reproduction: dict[str, Any]) -> Path:
    return reproduction["out"] / "cnn-clean"


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.export(run, tmp_path_factory.mktemp("bundle"))


def test_a_run_folder_holds_what_the_contract_says(run: Path, cells: Path) -> None:
    for name in (
        "recipe.toml", "environment.json", "split.parquet", "audit.json", "history.csv",
        "checkpoints", "model", "predictions.parquet", "metrics.json", "figures", "report.html",
    ):  # fmt: skip
        assert (run / name).exists(), name
    split = pd.read_parquet(run / "split.parquet")
    assert list(split.columns[:3]) == ["image", "fold", "role"]
    assert set(split["role"]) == {"train", "validation", "test"}
    predictions = pd.read_parquet(run / "predictions.parquet")
    classes = sorted(indexes.load(cells).frame["label"].unique())
    wanted = ["image", "patient", "label", "predicted", *(f"prob_{c}" for c in classes), "role"]
    assert set(wanted) <= set(predictions.columns)
    assert (run / "model" / "model.safetensors").is_file()
    assert not list(run.rglob(".part-*"))
    assert not list(run.rglob("*.pkl")) + list(run.rglob("*.pt"))


def test_metrics_are_those_of_the_stored_predictions(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())
    predictions = pd.read_parquet(run / "predictions.parquet")
    part = predictions[predictions["role"] == "test"]
    probs = part[[f"prob_{c}" for c in found["classes"]]].to_numpy()
    again = metrics.compute(part["label"].tolist(), part["predicted"].tolist(), probs,
                            found["classes"])  # fmt: skip
    for name in SCALARS:
        assert found[name] == pytest.approx(again[name], nan_ok=True), name
    assert found["confusion_matrix"] == again["confusion_matrix"]
    assert found["level"] == "image"
    assert set(found["baseline"]) == {"majority", "colour_knn"}
    low, high = found["ci"]["accuracy"]
    assert low <= found["accuracy"] <= high
    again = api.evaluate(run)
    assert again["accuracy"] == found["accuracy"] and again["trust"] == found["trust"]


def test_metrics_say_what_sets_and_novelty_are_worth(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())["trust"]
    contract = json.loads((run / "model" / "contract.json").read_text())
    predictions = pd.read_parquet(run / "predictions.parquet")
    part = predictions[predictions["role"] == "test"]
    probs = part[[f"prob_{c}" for c in contract["classes"]]].to_numpy()
    sets = prediction_sets(probs, contract["prediction_sets"]["thresholds"])
    held = [
        s[contract["classes"].index(label)] for s, label in zip(sets, part["label"], strict=True)
    ]
    assert found["prediction_sets"]["coverage"] == pytest.approx(np.mean(held))
    assert found["prediction_sets"]["nominal"] == contract["prediction_sets"]["coverage"]
    assert 0 <= found["accepted_as_known"] <= 1
    assert "are meant to hold the true class" in (run / "report.html").read_text("utf-8")


def test_the_clean_protocol_keeps_patients_and_duplicates_apart(run: Path, cells: Path) -> None:
    index = indexes.load(cells)
    split = splits.read(run / "split.parquet")
    splits.check(index, split)
    merged = split.merge(index.frame, on="image")
    assert (merged.groupby("patient")["role"].nunique() == 1).all()
    audit = json.loads((run / "audit.json").read_text())
    assert audit["verdict"] == "clean"


def test_the_published_protocol_leaks_and_says_so(reproduction: dict[str, Any]) -> None:
    run = reproduction["out"] / "cnn-published"
    split = pd.read_parquet(run / "split.parquet")
    assert len(split) == 3 * split["image"].nunique()
    assert (split.groupby("image")["role"].nunique() > 1).any()
    share = (split["role"] == "train").mean()
    assert share == pytest.approx(0.8, abs=0.01)
    audit = json.loads((run / "audit.json").read_text())
    assert audit["verdict"] == "leak"
    assert "views" in audit["summary"][0]
    card = (api.export(run, run.parent / "bundle-published") / "README.md").read_text()
    assert "its figures are inflated, its probabilities are not calibrated" in card


def test_reproduce_puts_both_protocols_side_by_side(reproduction: dict[str, Any]) -> None:
    row = next(r for r in reproduction["table"] if r["metric"] == "macro_f1")
    assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
    gap = row["published_protocol"]["value"] - row["clean"]["value"]
    assert row["difference"]["value"] == pytest.approx(gap)
    clean = reproduction["out"] / "cnn-clean"
    beside = json.loads((clean / "beside.json").read_text())
    assert beside["protocol"] == "published"
    assert "published protocol" in (clean / "report.html").read_text().lower()
    before = (clean / "metrics.json").stat().st_mtime_ns
    api.reproduce("lightweight-cnn", Path(_index_of(clean)), reproduction["out"], arms=["cnn"],
                  settings=TINY)  # fmt: skip
    assert (clean / "metrics.json").stat().st_mtime_ns == before, "a finished run isn't run again"


def test_half_a_run_never_goes_on_with_other_data(run: Path, cells: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    index = indexes.load(cells)
    splits.write(splits.split(index, seed=5), tmp_path / "other.parquet")
    options = {"arm": "cnn", "settings": TINY, "resume": True}
    with pytest.raises(InputError, match="started with other split"):
        api.train("lightweight-cnn", cells, copy, split=tmp_path / "other.parquet", **options)
    frame = index.frame.assign(label=index.frame["label"].replace("monocyte", "myeloblast"))
    indexes.save(dataclasses.replace(index, frame=frame), tmp_path / "relabelled.parquet")
    with pytest.raises(InputError, match="started with other images"):
        api.train("lightweight-cnn", tmp_path / "relabelled.parquet", copy, **options)
    with pytest.raises(InputError, match=r"No arm of lightweight-cnn could run.*other images"):
        reproduced = tmp_path / "reproduced"
        shutil.copytree(run, reproduced / "cnn-clean")
        api.reproduce("lightweight-cnn", tmp_path / "relabelled.parquet", reproduced,
                      arms=["cnn"], protocols=["clean"], settings=TINY)  # fmt: skip


def test_one_fold_of_a_k_fold_split_trains(cells: Path, tmp_path: Path) -> None:
    folds = api.split(cells, tmp_path / "folds.parquet", folds=3)
    options = {"arm": "cnn", "settings": TINY, "split": tmp_path / "folds.parquet"}
    for wrong in (None, 3):
        with pytest.raises(InputError, match="fold"):
            api.train("lightweight-cnn", cells, tmp_path / "run", fold=wrong, **options)
    found = api.train("lightweight-cnn", cells, tmp_path / "run", fold=1, **options)
    wanted = folds[(folds["fold"] == 1) & (folds["role"] == "test")]
    assert found["metrics"]["n"] == len(wanted)


def test_a_clean_run_needs_a_test_part(cells: Path, tmp_path: Path) -> None:
    index = indexes.load(cells)
    splits.write(splits.split(index, ratios=(0.8, 0.2, 0)), tmp_path / "split.parquet")
    with pytest.raises(InputError, match="no test part"):
        api.train("lightweight-cnn", cells, tmp_path / "run", arm="cnn", settings=TINY,
                  split=tmp_path / "split.parquet")  # fmt: skip


def test_a_bundle_is_not_judged_on_its_own_images(bundle: Path, run: Path) -> None:
    with pytest.raises(LeakError, match="the very images"):
        api.evaluate(bundle, on=Path(_index_of(run)))


def _index_of(run: Path) -> str:
    return json.loads((run / "environment.json").read_text())["index"]["path"]


def test_arms_that_cannot_run_are_listed_with_the_reason(cells: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    with pytest.raises(InputError, match="No arm of lightweight-cnn could run: No weights for"):
        api.reproduce("lightweight-cnn", cells, tmp_path / "out", arms=["efficientnet-b0"],
                      weights=str(weights), settings=TINY)  # fmt: skip


@pytest.mark.parametrize("arm", ["mobilenetv2", "efficientnet-b0"])
def test_the_frozen_arms_run_and_give_a_bundle(cells: Path, tmp_path: Path, arm: str) -> None:
    """With untrained backbones, since no weights come with the repository."""
    found = api.train(
        "lightweight-cnn", cells, tmp_path / "run", arm=arm, weights="none",
        settings=(*TINY[:2], "training.epochs=1", "training.steps_per_epoch=4"),
    )  # fmt: skip
    assert 0 <= found["metrics"]["accuracy"] <= 1
    bundle = api.export(tmp_path / "run", tmp_path / "bundle")
    index = indexes.load(cells)
    counts = api.predict(bundle, [index.root / "images"], tmp_path / "out.csv")
    assert counts["unreadable"] == 1  # the planted corrupt file
    assert counts["images"] == len(index.frame) + 1


def test_the_clean_protocol_refuses_a_leaking_split(cells: Path, tmp_path: Path) -> None:
    index = indexes.load(cells)
    made = splits.split(index, seed=0)
    patient = index.frame.set_index("image")["patient"][made["image"]].to_numpy()
    leaking = made.copy()
    victim = leaking.index[(leaking["role"] == "train").to_numpy()][0]
    leaking.loc[victim, "role"] = "test"
    splits.write(leaking, tmp_path / "leaking.parquet")
    with pytest.raises(LeakError) as caught:
        api.train("lightweight-cnn", cells, tmp_path / "run", arm="cnn",
                  split=tmp_path / "leaking.parquet", settings=TINY)  # fmt: skip
    assert caught.value.exit_code == 3
    assert str(patient[victim]) in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing is written, nothing trained"


def test_a_bundle_answers_as_its_run_did(run: Path, bundle: Path) -> None:
    contract = json.loads((bundle / "contract.json").read_text())
    for key in ("input", "preprocessing", "classes", "temperature", "prediction_sets", "novelty"):
        assert contract[key] is not None, key
    card = (bundle / "README.md").read_text()
    assert "synthetic" in card.lower()
    assert "Intended use" in card
    predictions = pd.read_parquet(run / "predictions.parquet")
    index = indexes.load(Path(_index_of(run)))
    test = predictions[predictions["role"] == "test"].head(8)
    out = bundle.parent / f"{bundle.name}.parquet"
    api.predict(bundle, [index.path(image) for image in test["image"]], out)
    said = pd.read_parquet(out)
    columns = [f"prob_{c}" for c in contract["classes"]]
    order = {str(index.path(image)): i for i, image in enumerate(test["image"])}
    said = said.iloc[said["image"].map(order).argsort()]
    np.testing.assert_allclose(said[columns].to_numpy(), test[columns].to_numpy(), atol=1e-4)
    assert list(said.columns[:3]) == ["image", "predicted", "confidence"]


def test_heat_maps_are_exact_grad_cam(bundle: Path, run: Path, tmp_path: Path) -> None:
    """Against captum on the torch network itself."""
    import torch
    from captum.attr import LayerGradCam

    from leukoscope.explain.gradcam import heat_map
    from leukoscope.recipes.deploy import load_model

    index = indexes.load(Path(_index_of(run)))
    path = index.path(index.frame["image"].iloc[0])
    reader = Reader.load(bundle)
    prepared = reader.prepare(read_image(path))[None]
    feature_map, gradient = reader.run(prepared, ("feature_map", "class_gradient"))
    classifier = load_model(run)[0].classifiers[0]
    torch_cam = LayerGradCam(classifier, classifier.backbone)
    for k in range(len(reader.contract.classes)):
        expected = torch_cam.attribute(torch.from_numpy(prepared), target=k, relu_attributions=True)
        expected = expected.detach().numpy()[0, 0]
        expected = expected / expected.max() if expected.max() > 0 else expected
        np.testing.assert_allclose(heat_map(feature_map[0], gradient[0, k]), expected, atol=1e-4)
    made = api.explain(bundle, [path], tmp_path / "explain")
    assert (tmp_path / "explain" / made[0]["file"]).is_file()


def test_predict_never_loads_torch(bundle: Path, cells: Path, tmp_path: Path) -> None:
    index = indexes.load(cells)
    script = (
        "import sys; from leukoscope import api;"
        f"api.predict({str(bundle)!r}, [{str(index.path(index.frame['image'].iloc[0]))!r}],"
        f" {str(tmp_path / 'out.csv')!r});"
        "assert not {'torch', 'timm', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert len(pd.read_csv(tmp_path / "out.csv")) == 1


def test_an_external_index_is_judged_and_known_images_are_refused(
    run: Path, tmp_path: Path
) -> None:
    csv = synthetic.make(tmp_path / "other", images=40, size=48, patients=3, seed=9, leaks=False)
    api.index(csv, tmp_path / "other.parquet")
    found = api.evaluate(run, on=tmp_path / "other.parquet", out=tmp_path / "metrics.json")
    assert found["n"] == 40
    assert found["role"] == "external"
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == 40
    with pytest.raises(LeakError, match="in the run's own data"):
        api.evaluate(run, on=Path(_index_of(run)))


def test_foreign_predictions_are_judged_and_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 60)
    frames = []
    for right in (0.9, 0.6):
        predicted = np.where(rng.random(60) < right, labels, rng.choice(["a", "b", "c"], 60))
        images = [f"{i}.png" for i in range(60)]
        table = {"image": images, "label": labels, "predicted": predicted}
        frames.append(pd.DataFrame(table | {"patient": np.arange(60) // 6}))
        frames[-1].to_csv(tmp_path / f"{right}.csv", index=False)
    found = api.evaluate(tmp_path / "0.9.csv")
    assert found["accuracy"] == (frames[0]["label"] == frames[0]["predicted"]).mean()
    assert found["log_loss"] is None
    assert "log_loss" in found["undefined"]
    assert found["interval"]["unit"] == "patient"
    compared = api.compare([tmp_path / "0.9.csv", tmp_path / "0.6.csv"])
    (pair,) = compared["pairs"]
    assert {"b", "c", "chi2", "chi2_corrected", "p", "exact_p"} <= set(pair["mcnemar"])
    assert pair["permutation_p"] <= 1
    assert {"value", "low", "high"} == set(pair["difference"]["accuracy"])
    assert {"t", "p", "degenerate"} <= set(next(iter(pair["paired_t"].values())))

    # Patients that one file names count for both; rows that one file lacks are left out of all.
    frames[1].drop(columns="patient").head(40).to_csv(tmp_path / "part.csv", index=False)
    frames[1].head(40).to_csv(tmp_path / "whole.csv", index=False)
    one, other = (
        api.compare([tmp_path / "0.9.csv", tmp_path / name]) for name in ("part.csv", "whole.csv")
    )
    assert one["n"] == other["n"] == 40
    assert one["left_out"]["0.9.csv"] == 20
    for key in ("permutation_p", "difference"):
        assert one["pairs"][0][key] == other["pairs"][0][key]


def test_a_tampered_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    graph = copy / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(InputError, match="SHA-256"):
        Reader.load(copy)
