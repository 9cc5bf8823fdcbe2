"""`reproduce`: published tables beside what was measured, ablations, tests, going on after a stop.

Runs here are made-up folders: what is tested is what becomes of their figures.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import leukoscope.recipes
from leukoscope import api
from leukoscope.data import audit, synthetic
from leukoscope.data import index as indexes
from leukoscope.errors import InputError
from leukoscope.evaluate import intervals, significance
from leukoscope.files import explain_os_errors
from leukoscope.recipes import ablation, judgement, levels, published, reproduction
from leukoscope.recipes.published import NOT_HERE, NOT_RUN, Measured
from leukoscope.recipes.schema import names, resolve
from leukoscope.report import run as report

CLASSES = ["CBFB_MYH11", "Control", "NPM1"]
PATIENTS = 24


def answers(
    skill: float,
    *,
    seed: int = 0,
    images: int = 240,
    classes: Sequence[str] = CLASSES,
    patients: bool = True,
) -> pd.DataFrame:
    """Made-up predictions: cells of a patient have the patient's class, as in AML."""
    rng = np.random.default_rng([seed, int(1000 * skill)])
    owner = np.arange(images) % PATIENTS
    kind = owner % len(classes)
    logits = rng.normal(0, 1, (images, len(classes))) + skill * np.eye(len(classes))[kind]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array(classes, dtype=object)
    frame = pd.DataFrame(
        {
            "image": [f"cell_{i:04d}.tif" for i in range(images)],
            "patient": [f"P{i:02d}" for i in owner] if patients else None,
            "label": names[kind],
            "predicted": names[probs.argmax(axis=1)],
        }
    )
    for column, name in enumerate(classes):
        frame[f"prob_{name}"] = probs[:, column]
    return frame.assign(role="test", view=0)


def make_run(folder: Path, frame: pd.DataFrame, protocol: str = "clean", **more: Any) -> Path:
    """A finished run's folder of these predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = [c.removeprefix("prob_") for c in frame if c.startswith("prob_")]
    metrics = {"role": "test", "protocol": protocol, **judgement.measure(frame, classes)}
    metrics |= {"baseline": {"majority": 0.4, "colour_knn": 0.5}, **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text(json.dumps({"seconds": 61.5, "protocol": protocol}))
    (folder / "recipe.toml").write_text(f'protocol = "{protocol}"\n')
    history = pd.DataFrame({"phase": 1, "epoch": [1, 2], "validation_accuracy": [0.6, 0.7]})
    history.to_csv(folder / "history.csv", index=False)
    frame.to_parquet(folder / "predictions.parquet")
    return folder


SKILLS = {"convnext": 3.2, "resnet50": 2.4, "vit": 1.6}
TABLE = {
    "title": "Test figures",
    "classes": 3,
    "figures": {
        "convnext": {
            "accuracy": 0.95,
            "per_class.NPM1.precision": 0.95,
            "per_class.MLL_AF9.precision": 0.9,
            "history.2.validation_accuracy": 0.94,
            "history.9.validation_accuracy": 0.95,
            "environment.seconds": 20595.6,
            "validation.accuracy": 0.944,
            "phases.1.accuracy": 0.8,
            "patient_level.accuracy": 0.99,
        },
        "resnet50": {"accuracy": 0.91},
        "densenet121": {"accuracy": 0.92},
    },
    "tests": [
        {"test": "paired_t", "a": "convnext", "b": "resnet50", "metric": "f1", "statistic": 3.3024,
         "p": 0.0299, "note": ""},
        {"test": "paired_t", "a": "resnet50", "b": "convnext", "metric": "accuracy",
         "statistic": None, "p": 0.0, "note": "t = infinity: a degenerate test"},
        {"test": "mcnemar", "a": "vit", "b": "convnext", "metric": "", "statistic": 14.06,
         "p": 0.000176, "note": ""},
        {"test": "mcnemar", "a": "convnext", "b": "densenet121", "metric": "", "statistic": None,
         "p": None, "note": ""},
    ],
}  # fmt: skip
OTHER = {"title": "Two classes", "classes": 2, "figures": {"convnext": {"accuracy": 0.99}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> reproduction.Runs:
    """Three arms under both protocols; the published one flatters."""
    folder = tmp_path_factory.mktemp("runs")
    phase = judgement.measure(answers(1.0), CLASSES)
    found = {}
    for arm, skill in SKILLS.items():
        for protocol, more in (("clean", 0.0), ("published", 1.0)):
            found[arm, protocol] = make_run(
                folder / f"{arm}-{protocol}", answers(skill + more), protocol,
                validation={"n": 40, "accuracy": 0.9, "log_loss": 0.3}, phases={"1": phase},
            )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def filled(runs: reproduction.Runs) -> dict[str, Any]:
    not_run = [{"arm": "densenet121", "protocol": "clean", "why": "No weights for densenet121"}]
    return reproduction.Tables([TABLE, OTHER]).fill(runs, not_run)


def row_of(table: dict[str, Any], arm: str, metric: str) -> dict[str, Any]:
    (row,) = [r for r in table["rows"] if r["arm"] == arm and r["metric"] == metric]
    return row


# --- tables ---------------------------------------------------------------------------------------


def test_a_published_table_has_every_figure_beside_both_protocols(
    filled: dict[str, Any], runs: reproduction.Runs
) -> None:
    (table,) = filled["tables"]
    assert filled["tables_left_out"] == ["Two classes"]
    assert len(table["rows"]) == 11
    row = row_of(table, "convnext", "accuracy")
    assert row["published_figure"] == 0.95
    for protocol, column in published.COLUMNS.items():
        metrics = json.loads((runs["convnext", protocol] / "metrics.json").read_text())
        assert row[column]["value"] == metrics["accuracy"]
        assert [row[column]["low"], row[column]["high"]] == metrics["ci"]["accuracy"]
    gap = row["difference"]
    assert gap["value"] == row["published_protocol"]["value"] - row["clean"]["value"]
    assert gap["low"] < gap["value"] < gap["high"]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("history.2.validation_accuracy", 0.7),
        ("environment.seconds", 61.5),
        ("validation.accuracy", 0.9),
    ],
)
def test_figures_beside_metrics_json(filled: dict[str, Any], metric: str, value: float) -> None:
    row = row_of(filled["tables"][0], "convnext", metric)
    assert row["clean"] == {"value": value, "low": None, "high": None}
    assert row["difference"]["value"] == 0


def test_phases_and_patients_have_intervals(filled: dict[str, Any]) -> None:
    for metric in ("phases.1.accuracy", "patient_level.accuracy"):
        found = row_of(filled["tables"][0], "convnext", metric)["clean"]
        assert found["low"] <= found["value"] <= found["high"]


def test_figures_of_a_class_have_intervals_and_a_difference(filled: dict[str, Any]) -> None:
    row = row_of(filled["tables"][0], "convnext", "per_class.NPM1.precision")
    for column in ("clean", "published_protocol", "difference"):
        found = row[column]
        assert found["low"] <= found["value"] <= found["high"], column


def test_what_is_not_there_says_why_and_is_never_zero(filled: dict[str, Any]) -> None:
    (table,) = filled["tables"]
    for arm, metric, clean, theirs in (
        ("convnext", "per_class.MLL_AF9.precision", NOT_HERE, NOT_HERE),
        ("convnext", "history.9.validation_accuracy", "training ended after epoch 2", None),
        ("densenet121", "accuracy", f"{NOT_RUN}: No weights for densenet121", NOT_RUN),
    ):
        row = row_of(table, arm, metric)
        assert row["published_figure"] > 0
        assert row["clean"]["value"] is None
        assert row["clean"]["why"] == clean
        assert row["published_protocol"]["why"] == (theirs or clean)
        assert row["difference"]["value"] is None


def test_validation_is_what_a_run_without_a_test_part_is_judged_by() -> None:
    measured = Measured({"role": "validation", "accuracy": 0.9, "ci": {"accuracy": [0.8, 1.0]}})
    assert measured.lookup("validation.accuracy") == {"value": 0.9, "low": 0.8, "high": 1.0}


def test_every_recipes_tables_can_be_filled(runs: reproduction.Runs) -> None:
    """Whatever the recipes state is laid out, on data of other classes too."""
    own = {("some-arm", p): runs["vit", p] for p in ("clean", "published")}
    for name in names():
        found = reproduction.Tables.of(resolve(name)).fill(own)
        assert found["tables"], name
        for row in (row for table in found["tables"] for row in table["rows"]):
            assert row["published_figure"] is not None
            assert row["clean"]["why"] == NOT_RUN
        assert found["ablation"] is None or found["ablation"]["effects"], name


def test_class_names_may_hold_dots() -> None:
    by_class = {"a.b": {"recall": 0.5}, "a": {"recall": None}}
    why = "no image has this label"
    measured = Measured({"per_class": by_class, "undefined": {"per_class.a.recall": why}})
    assert measured.lookup("per_class.a.b.recall")["value"] == 0.5
    assert measured.lookup("per_class.a.recall")["why"] == why
    assert measured.lookup("per_class.b.recall")["why"] == NOT_HERE


def test_folds_and_repeated_epochs() -> None:
    history = pd.DataFrame({"fold": [0, 1], "epoch": [1, 1], "validation_accuracy": [0.5, 0.6]})
    folds = {"accuracy": {"mean": 0.8, "sd": 0.02, "values": [0.78, 0.82]}}
    why = {"patient_level": "no patient is known"}
    measured = Measured({"folds": folds, "patient_level": None, "undefined": why}, history)
    assert measured.lookup("folds.accuracy.mean")["value"] == 0.8
    assert "several" in measured.lookup("history.1.validation_accuracy")["why"]
    assert measured.lookup("patient_level.accuracy")["why"] == "no patient is known"
    assert measured.lookup("folds.accuracy.values")["value"] is None


def test_where_no_table_is_about_such_data_all_are_shown_with_a_remark() -> None:
    tables, remark = published.applying([TABLE, OTHER], 8)
    assert [t["title"] for t in tables] == ["Test figures", "Two classes"]
    assert "2 or 3 classes" in remark
    assert "another data set" in remark
    general = {"title": "Any", "figures": {}}
    assert published.applying([TABLE, general], 8) == ([general], "")
    assert published.applying([], 8) == ([], "")


def test_overall_rows_are_as_the_command_line_prints_them(filled: dict[str, Any]) -> None:
    rows = {(r["arm"], r["metric"]): r for r in filled["table"]}
    assert set(rows) == {
        (arm, metric) for arm in SKILLS for metric in ("accuracy", "macro_f1",
                                                       "patient_level.accuracy")
    }  # fmt: skip
    assert rows["resnet50", "accuracy"]["published_figure"] == 0.91
    assert rows["vit", "accuracy"]["published_figure"] is None
    assert set(rows["vit", "macro_f1"]["difference"]) == {"value", "low", "high"}


# --- tests ----------------------------------------------------------------------------------------


def test_every_pair_is_tested_within_each_protocol(
    filled: dict[str, Any], runs: reproduction.Runs
) -> None:
    for key, protocol in (("comparison", "clean"), ("comparison_published", "published")):
        pairs = filled[key]["pairs"]
        assert [(p["a"], p["b"]) for p in pairs] == [
            ("convnext", "resnet50"), ("convnext", "vit"), ("resnet50", "vit"),
        ]  # fmt: skip
        # The same as `compare` says of all three at once, Holm included.
        sources = [runs[arm, protocol] for arm in SKILLS]
        for ours, theirs in zip(pairs, judgement.compare(sources)["pairs"], strict=True):
            for name in ("mcnemar", "permutation_p", "paired_t", "holm"):
                assert ours[name] == theirs[name]


def test_the_papers_own_tests_are_repeated(filled: dict[str, Any]) -> None:
    f1, accuracy, mcnemar, missing = filled["tables"][0]["tests"]
    pairs = {(p["a"], p["b"]): p for p in filled["comparison"]["pairs"]}
    assert f1["clean"] == pairs["convnext", "resnet50"]["paired_t"]["f1"]
    assert f1["statistic"] == 3.3024
    assert f1["published_protocol"]["t"] != f1["clean"]["t"]
    # One value for all classes: no spread, so no test, whatever the paper made of it.
    assert accuracy["clean"]["t"] is None
    assert accuracy["clean"]["p"] is None
    assert "without spread" in accuracy["clean"]["degenerate"]
    # Stated as ViT against ConvNeXt, tested the other way round.
    tested = pairs["convnext", "vit"]["mcnemar"]
    assert (mcnemar["clean"]["b"], mcnemar["clean"]["c"]) == (tested["c"], tested["b"])
    assert mcnemar["clean"]["chi2"] == tested["chi2"]
    assert missing["clean"] == {"why": "densenet121 not run: No weights for densenet121"}


def test_a_pair_turned_round_is_the_pair_tested_that_way(runs: reproduction.Runs) -> None:
    paths = [runs["vit", "clean"], runs["convnext", "clean"]]
    (straight,) = judgement.compare(paths, ["vit", "convnext"])["pairs"]
    (other,) = judgement.compare(paths[::-1], ["convnext", "vit"])["pairs"]
    turned = published._turned(other)
    assert turned["mcnemar"] == straight["mcnemar"]
    for metric, gap in straight["difference"].items():
        assert turned["difference"][metric] == pytest.approx(gap, nan_ok=True, abs=1e-12)
        assert metric not in turned["paired_t"] or turned["paired_t"][metric]["t"] == (
            pytest.approx(straight["paired_t"][metric]["t"])
        )


def test_views_of_the_published_protocol_are_paired_view_by_view(tmp_path: Path) -> None:
    sources = []
    for name, skill in (("a", 2.0), ("b", 1.0)):
        frame = answers(skill, patients=False)
        views = pd.concat([frame, frame.assign(view=1)], ignore_index=True)
        sources.append(make_run(tmp_path / name, views, "published"))
    found = judgement.compare(sources)
    assert found["n"] == 480
    (pair,) = found["pairs"]
    single = judgement.compare([
        make_run(tmp_path / f"{name}1", answers(skill, patients=False))
        for name, skill in (("a", 2.0), ("b", 1.0))
    ])["pairs"][0]  # fmt: skip
    # Views of an image are no images of their own: twice the discordant rows, the same evidence.
    assert pair["mcnemar"]["b"] == 2 * single["mcnemar"]["b"]
    assert pair["permutation_p"] == single["permutation_p"]


def test_arms_without_a_shared_image_are_listed(tmp_path: Path) -> None:
    frame = answers(2.0)
    runs = {
        ("a", "clean"): make_run(tmp_path / "a", frame),
        ("b", "clean"): make_run(tmp_path / "b", frame.assign(image="x" + frame["image"])),
    }
    found = reproduction.Tables().fill(runs)
    assert found["comparison"]["pairs"] == []
    assert "no image in common" in found["comparison"]["not_tested"][0]["why"]
    assert found["comparison_published"] is None


# --- ablations ------------------------------------------------------------------------------------


FACTORIAL = {
    "kind": "factorial",
    "metric": "accuracy",
    "arms": {"plain": [], "mixup": ["mixup"], "swa": ["swa"], "both": ["mixup", "swa"]},
}
FIGURES = {"plain": 0.988, "mixup": 0.9813, "swa": 0.992, "both": 0.9747}
GRID = {"plain": 1.0, "mixup": 1.6, "swa": 1.8, "both": 3.0}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> reproduction.Runs:
    folder = tmp_path_factory.mktemp("grid")
    return {
        (arm, "clean"): make_run(folder / arm, answers(skill, images=240))
        for arm, skill in GRID.items()
    }


def test_a_factorial_ablation_gives_main_effects_and_interaction(
    grid: reproduction.Runs,
) -> None:
    table = {"title": "Ablation", "figures": {a: {"accuracy": v} for a, v in FIGURES.items()}}
    found = reproduction.Tables([table], FACTORIAL).fill(grid)["ablation"]
    value = {row["arm"]: row["clean"]["value"] for row in found["rows"]}
    effects = {effect["effect"]: effect for effect in found["effects"]}
    assert list(effects) == ["mixup", "swa", "mixup × swa"]
    for v, column in ((FIGURES, "published_figure"), (value, "clean")):
        wanted = {
            "mixup": (v["mixup"] - v["plain"] + v["both"] - v["swa"]) / 2,
            "swa": (v["swa"] - v["plain"] + v["both"] - v["mixup"]) / 2,
            "mixup × swa": (v["both"] - v["swa"]) - (v["mixup"] - v["plain"]),
        }
        for name, effect in wanted.items():
            measured = effects[name][column]
            measured = measured if column == "published_figure" else measured["value"]
            assert measured == pytest.approx(effect)
    for effect in effects.values():
        gain = effect["clean"]
        assert gain["low"] < gain["value"] < gain["high"]
        assert effect["published_protocol"]["value"] is None
        assert NOT_RUN in effect["published_protocol"]["why"]


def test_a_factorial_interval_is_that_of_a_bootstrap_by_hand(grid: reproduction.Runs) -> None:
    frames = {arm: judgement.read_predictions(run)[0] for (arm, _), run in grid.items()}
    right = {arm: (f["label"] == f["predicted"]).to_numpy(float) for arm, f in frames.items()}
    score = right["both"] - right["swa"] - right["mixup"] + right["plain"]
    owner = np.arange(len(score)) % PATIENTS
    sums = np.bincount(owner, weights=score)
    rng = np.random.default_rng(1)
    drawn = sums[rng.integers(0, PATIENTS, (20_000, PATIENTS))].sum(axis=1) / len(score)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = reproduction.Tables((), FACTORIAL).fill(grid)["ablation"]["effects"][2]["clean"]
    # Expanded percentiles are a little wider than plain ones for 24 patients.
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)
    assert found["high"] - found["low"] > high - low


def test_three_factors_and_an_incomplete_design() -> None:
    arms = {format(i, "03b"): [f for f, bit in zip("abc", format(i, "03b"), strict=True)
                               if bit == "1"] for i in range(8)}  # fmt: skip
    effects = {"".join(sorted(f)): (plus, minus) for f, plus, minus in ablation.factorial(arms)}
    assert len(effects) == 7
    assert effects["a"] == (["100", "101", "110", "111"], ["000", "001", "010", "011"])
    assert effects["ab"][0] == ["000", "001", "110", "111"]
    assert effects["abc"][0] == ["001", "010", "100", "111"]
    assert ablation.factorial({"plain": [], "a": ["a"], "ab": ["a", "b"]}) == []


STEPS = {
    "kind": "cumulative",
    "metric": "mean_ovr_accuracy",
    "arms": {
        "baseline": [],
        "segmentation": ["segmentation"],
        "augmentation": ["segmentation", "augmentation"],
        "pca": ["segmentation", "augmentation", "pca"],
    },
}


def test_a_cumulative_ablation_gives_each_steps_gain(tmp_path: Path) -> None:
    skills = {"baseline": 1.0, "segmentation": 1.4, "augmentation": 2.4}
    runs = {(arm, "clean"): make_run(tmp_path / arm, answers(s)) for arm, s in skills.items()}
    main = {"title": "Main", "figures": {"pca": {"mean_ovr_accuracy": 0.99}}}
    figures = zip(STEPS["arms"], (0.5774, 0.6105, 0.639, 0.9835), strict=True)
    own = {"title": "Ablation", "figures": {a: {"mean_ovr_accuracy": v} for a, v in figures}}
    found = reproduction.Tables([main, own], STEPS).fill(runs)["ablation"]
    assert found["rows"][-1]["published_figure"] == 0.9835, "the study's own figure"
    one, two, three = found["effects"]
    assert [step["effect"] for step in (one, two, three)] == [
        "+ segmentation", "+ augmentation", "+ pca",
    ]  # fmt: skip
    assert two["published_figure"] == pytest.approx(0.0285)
    value = {row["arm"]: row["clean"]["value"] for row in found["rows"]}
    assert two["clean"]["value"] == pytest.approx(value["augmentation"] - value["segmentation"])
    assert two["clean"]["low"] < two["clean"]["value"] < two["clean"]["high"]
    right = [judgement.read_predictions(runs[arm, "clean"])[0] for arm in list(skills)[1:]]
    a, b = ((f["label"] == f["predicted"]).to_numpy() for f in right)
    assert two["clean"]["mcnemar"] == significance.mcnemar(b, a)
    assert three["clean"]["why"] == f"pca: {NOT_RUN}"


def test_an_ablation_of_a_figure_that_is_no_metric_of_the_scored_images(
    grid: reproduction.Runs,
) -> None:
    study = FACTORIAL | {"metric": "history.2.validation_accuracy"}
    found = reproduction.Tables((), study).fill(grid)["ablation"]
    assert found["effects"][0]["clean"] == {"value": 0.0, "low": None, "high": None}


# --- by patient, by fold --------------------------------------------------------------------------


def test_patient_level_figures_are_those_of_the_mean_probabilities() -> None:
    frame = answers(0.8)
    found, why = levels.by_mean(frame, CLASSES)
    assert found is not None
    assert why == ""
    means = frame.groupby("patient")[[f"prob_{c}" for c in CLASSES]].mean()
    said = np.array(CLASSES)[means.to_numpy().argmax(axis=1)]
    right = int((said == frame.groupby("patient")["label"].first()).sum())
    assert found["level"] == "patient"
    assert found["n"] == PATIENTS
    assert found["accuracy"] == right / PATIENTS
    assert tuple(found["ci"]["accuracy"]) == intervals.wilson(right, PATIENTS)
    assert found["ci"]["macro_f1"] is not None
    assert judgement.measure(frame, CLASSES)["patient_level"] == found


def test_patient_level_says_why_there_is_none() -> None:
    frame = answers(2.0)
    assert levels.by_mean(frame.assign(patient=None), CLASSES) == (
        None, "no patient is known",
    )  # fmt: skip
    mixed = frame.assign(patient=["P1" if i < 9 else p for i, p in enumerate(frame["patient"])])
    found, why = levels.by_mean(mixed, CLASSES)
    assert found is None
    assert why.startswith("1 of 25 patients have images of more than one class")
    bare = frame[["image", "patient", "label", "predicted"]]
    assert levels.by_mean(bare, CLASSES) == (None, "no probabilities were given")
    measured = judgement.measure(bare, CLASSES)
    assert measured["undefined"]["patient_level"] == "no probabilities were given"


def test_few_patients_and_images_without_one() -> None:
    frame = answers(2.0)
    few = frame[frame["patient"].isin([f"P{i:02d}" for i in range(5)])]
    part = few.assign(patient=[None if i < 3 else p for i, p in enumerate(few["patient"])])
    found, _ = levels.by_mean(part, CLASSES)
    assert found is not None
    assert found["n"] == 5
    assert set(found["ci"]) == {"accuracy", "micro_f1"}
    assert "3 images without a patient left out." in found["notes"]


def test_the_colour_baseline_is_of_the_scored_role_and_of_all_folds(tmp_path: Path) -> None:
    csv = synthetic.make(tmp_path, images=60, size=32, patients=10)
    cells = indexes.load(_index(csv, tmp_path / "cells.parquet"))
    folds = pd.concat([
        pd.DataFrame({"image": cells.frame["image"], "fold": fold,
                      "role": np.where(np.arange(len(cells.frame)) % 2 == fold, "validation",
                                       "train")})
        for fold in (0, 1)
    ])  # fmt: skip
    assert judgement.baseline(cells, folds, "test") == {"majority": None, "colour_knn": None}
    found = judgement.baseline(cells, folds, "validation")
    said = audit.shortcut_predictions(cells, folds, role="validation")
    assert sorted(said["image"]) == sorted(cells.frame["image"])
    assert found["colour_knn"] == (said["label"] == said["colour_knn"]).mean()


def _index(csv: Path, out: Path) -> Path:
    api.index(csv, out)
    return out


# --- going on after a stop ------------------------------------------------------------------------


RECIPE_ARMS = ("mobilenetv2", "efficientnet-b0", "cnn")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, bool]]]:
    """A runner that writes made-up runs and fails where it is told to; the log of its work."""

    def install(fails: Callable[[str, str], None] = lambda *_: None) -> list[tuple[str, bool]]:
        trained: list[tuple[str, bool]] = []

        def train(_recipe: str, _cells: Path, run: Path, **options: Any) -> Path:
            if options["resume"] and (run / "metrics.json").is_file():
                return run
            trained.append((run.name, options["resume"]))
            run.mkdir(exist_ok=True)
            (run / "recipe.toml").write_text("")
            fails(options["arm"], options["protocol"])
            skill = 1 + RECIPE_ARMS.index(options["arm"]) / 2
            return make_run(run, answers(skill), options["protocol"])

        stub = types.SimpleNamespace(train=train)
        monkeypatch.setitem(sys.modules, "leukoscope.recipes.runner", stub)
        monkeypatch.setattr(leukoscope.recipes, "runner", stub, raising=False)
        # Single reports take seconds and are tested elsewhere.
        monkeypatch.setattr(report, "write", lambda run: (run / "report.html").write_text("run"))
        return trained

    return install


class Killed(BaseException):
    """What no `except` of ours may catch."""


def test_a_killed_reproduce_goes_on_where_it_stopped(
    runner: Callable[..., list[tuple[str, bool]]], tmp_path: Path
) -> None:
    def kill(arm: str, protocol: str) -> None:
        if (arm, protocol) == ("efficientnet-b0", "published"):
            raise Killed

    trained = runner(kill)
    with pytest.raises(Killed):
        api.reproduce("lightweight-cnn", Path("cells.parquet"), tmp_path)
    assert len(trained) == 4
    # The arms so far are in the tables and the report, the others are "not run".
    stored = json.loads((tmp_path / "reproduction.json").read_text())
    assert {row["arm"] for row in stored["table"]} == {"mobilenetv2"}
    assert "mobilenetv2" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "mobilenetv2-clean" / "report.html").is_file()

    trained = runner()
    found = api.reproduce("lightweight-cnn", Path("cells.parquet"), tmp_path)
    assert trained == [("efficientnet-b0-published", True), ("cnn-clean", False),
                       ("cnn-published", False)]  # fmt: skip
    stored = json.loads((tmp_path / "reproduction.json").read_text())
    assert len(stored["runs"]) == 6
    assert {row["arm"] for row in stored["table"]} == set(RECIPE_ARMS)
    assert {pair["b"] for pair in stored["comparison"]["pairs"]} == {"efficientnet-b0", "cnn"}
    assert len(stored["comparison_published"]["pairs"]) == 3
    assert found["report"] == str(tmp_path / "report.html")


def test_tables_are_written_where_later_arms_fail(
    runner: Callable[..., list[tuple[str, bool]]], tmp_path: Path
) -> None:
    def refuse(arm: str, protocol: str) -> None:
        if arm == "mobilenetv2":
            raise InputError("No weights for mobilenetv2_100", fix="Give them.", field="weights")
        if (arm, protocol) == ("cnn", "published"):
            raise RuntimeError("out of memory")

    runner(refuse)
    with pytest.raises(RuntimeError):
        api.reproduce("lightweight-cnn", Path("cells.parquet"), tmp_path)
    stored = json.loads((tmp_path / "reproduction.json").read_text())
    assert {row["arm"] for row in stored["table"]} == {"efficientnet-b0"}
    assert stored["not_run"][0]["why"] == "No weights for mobilenetv2_100. Give them."
    row = next(r for t in stored["tables"] for r in t["rows"] if r["arm"] == "mobilenetv2")
    assert row["published_figure"] is not None
    assert row["clean"]["why"] == f"{NOT_RUN}: No weights for mobilenetv2_100. Give them."
    page = (tmp_path / "report.html").read_text()
    assert "not run" in page
    assert "No weights for mobilenetv2_100" in page


def test_a_full_disk_stops_all_arms(
    runner: Callable[..., list[tuple[str, bool]]], tmp_path: Path
) -> None:
    def full(arm: str, protocol: str) -> None:
        if (arm, protocol) == ("efficientnet-b0", "clean"):
            with explain_os_errors(tmp_path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trained = runner(full)
    with pytest.raises(InputError, match="the disk is full"):
        api.reproduce("lightweight-cnn", Path("cells.parquet"), tmp_path)
    assert len(trained) == 3


def test_where_no_arm_can_run(
    runner: Callable[..., list[tuple[str, bool]]], tmp_path: Path
) -> None:
    def refuse(*_: str) -> None:
        raise InputError("No weights", fix="", field="weights")

    runner(refuse)
    with pytest.raises(InputError, match="No arm of lightweight-cnn could run: No weights"):
        api.reproduce("lightweight-cnn", Path("cells.parquet"), tmp_path)
