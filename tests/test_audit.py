"""Every kind of planted fault stands in the audit, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from leukoscope import files
from leukoscope.data import split
from leukoscope.data.audit import audit, shortcut_predictions
from leukoscope.data.duplicates import Duplicates
from leukoscope.data.index import CellIndex
from leukoscope.data.signature import COLOUR_FEATURES
from leukoscope.errors import InputError
from made_cells import cells_of, smear, table

KEYS = {
    "unreadable",
    "exact_duplicates",
    "near_duplicates",
    "label_conflicts",
    "patients_across_roles",
    "duplicates_across_roles",
    "shortcut",
    "verdict",
    "summary",
    "n",
    "classes",
    "patients",
}


def alone(n: int) -> Duplicates:
    return Duplicates([], [], np.arange(n))


def name(k: int) -> str:
    return f"{k:05d}.png"


@pytest.fixture(scope="module")
def planted() -> CellIndex:
    """Thirty pictures of six patients, an exact and two near copies, one with another label."""
    rng = np.random.default_rng(11)
    images = [smear(rng, 90) for _ in range(30)]
    images += [images[0], images[1][::-1].copy(), np.rot90(images[2]).copy()]
    labels = [*(["a", "b"] * 15), "a", "b", "b"]
    patients = [f"p{k % 6}" for k in range(30)] + ["p0", "p1", "p2"]
    cells = cells_of(images, labels, patients)
    return replace(cells, unreadable=[{"image": "z.png", "why": "cut short"}])


def roles(cells: CellIndex, test: set[str]) -> pd.DataFrame:
    image = cells.frame["image"]
    role = np.where(image.isin(test), "test", "train").astype(object)
    return pd.DataFrame({"image": image, "fold": 0, "role": role})


def test_every_planted_fault_is_named(planted: CellIndex) -> None:
    frame = roles(planted, {name(30), name(31), name(7)})
    result = audit(planted, frame)
    assert set(result) == KEYS
    assert result["verdict"] == "leak"
    assert result["exact_duplicates"] == [[name(0), name(30)]]
    assert result["near_duplicates"] == [[name(1), name(31)], [name(2), name(32)]]
    assert result["label_conflicts"] == [[name(2), name(32)]]
    assert result["duplicates_across_roles"] == [[name(0), name(30)], [name(1), name(31)]]
    assert result["patients_across_roles"] == ["p0", "p1"]
    assert result["unreadable"] == [{"image": "z.png", "why": "cut short"}]
    assert (result["n"], result["patients"]) == (33, 6)
    assert result["classes"] == {"a": 16, "b": 17}
    assert result["summary"][0].startswith("Leak: 2 patients (p0, p1) and 2 groups of duplicate")
    json.loads(files.to_json(result))


def test_a_clean_split_is_called_clean(planted: CellIndex) -> None:
    patients = planted.frame["patient"].isin(["p4", "p5"])
    result = audit(planted, roles(planted, set(planted.frame["image"][patients])))
    assert result["verdict"] == "clean"
    assert result["patients_across_roles"] == result["duplicates_across_roles"] == []
    assert result["summary"][0].startswith("Clean: no patient and no picture")


def test_without_a_split_only_the_images_are_judged(planted: CellIndex) -> None:
    result = audit(planted)
    assert result["verdict"] == "clean"
    assert "no split was given" in result["summary"][0]
    assert result["shortcut"]["low"] <= result["shortcut"]["accuracy"]


def test_no_patients_is_said() -> None:
    result = audit(table(["a", "b"] * 10), found=alone(20))
    assert result["patients"] == 0
    assert any("No patient is known" in sentence for sentence in result["summary"])


def coloured(n: int, patients: list[str] | None = None) -> CellIndex:
    """Two classes that differ by colour alone, another with the second one's colour."""
    cells = table(["a", "b", "c"] * (n // 3), patients)
    rng = np.random.default_rng(0)
    shift = [0.0 if label == "a" else 40.0 for label in cells.frame["label"]]
    cells.frame["colour"] = [list(rng.normal(s, 1, 9)) for s in shift]
    return cells


def test_the_shortcut_sees_colour_and_has_wilson_s_interval() -> None:
    cells = coloured(150)
    frame = split.split(cells, ratios=(0.6, 0, 0.4), found=alone(150))
    shortcut = audit(cells, frame, found=alone(150))["shortcut"]
    assert 0.5 < shortcut["accuracy"] < 0.85
    low, high = proportion_confint(round(shortcut["accuracy"] * 60), 60, method="wilson")
    assert (shortcut["low"], shortcut["high"]) == pytest.approx((low, high), abs=1e-6)
    assert shortcut["majority"] == pytest.approx(1 / 3)
    assert shortcut["features"] == list(COLOUR_FEATURES)
    assert set(shortcut) == {"accuracy", "low", "high", "majority", "features"}


def test_the_shortcut_agrees_with_scikit_learn_trained_on_the_training_part_alone() -> None:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    cells = coloured(90)
    frame = split.split(cells, found=alone(90))
    joined = cells.frame.merge(frame, on="image")
    train, test = (joined[joined["role"] == role] for role in ("train", "test"))
    scaler = StandardScaler().fit(np.stack(train["colour"].to_list()))
    model = KNeighborsClassifier(5).fit(
        scaler.transform(np.stack(train["colour"].to_list())), train["label"].to_numpy(dtype=str)
    )
    expected = model.predict(scaler.transform(np.stack(test["colour"].to_list())))
    got = shortcut_predictions(cells, frame).set_index("image")
    assert list(got.loc[test["image"], "colour_knn"]) == list(expected)
    assert set(got.index) == set(test["image"])


def test_folds_are_scored_on_every_image_once() -> None:
    cells = coloured(90)
    frame = split.split(cells, folds=3, found=alone(90))
    got = shortcut_predictions(cells, frame)
    assert sorted(got["image"]) == sorted(cells.frame["image"])


def test_intervals_by_patient_are_wider_than_wilson_s() -> None:
    patients = [f"p{k // 15}" for k in range(150)]
    cells = coloured(150, patients)
    for k, row in enumerate(cells.frame["colour"]):  # half of the patients have another stain
        if (k // 15) % 2:
            cells.frame.at[k, "colour"] = [80 - v for v in row]
    shortcut = audit(cells, found=alone(150))["shortcut"]
    low, high = proportion_confint(round(shortcut["accuracy"] * 150), 150, method="wilson")
    assert shortcut["low"] < shortcut["accuracy"] < shortcut["high"]
    assert (shortcut["low"], shortcut["high"]) != pytest.approx((low, high))


def test_the_audit_doesn_t_depend_on_the_order_of_rows(planted: CellIndex) -> None:
    before = audit(planted)
    order = np.random.default_rng(2).permutation(len(planted.frame))
    shuffled = replace(planted, frame=planted.frame.iloc[order].reset_index(drop=True))
    assert files.to_json(audit(shuffled)) == files.to_json(before)


@pytest.mark.parametrize(
    ("labels", "patients", "reason"),
    [
        (["a"] * 10, None, "one class"),
        (["a", "b"] * 2, None, "only 4 images"),
        (["a", "b"] * 5, ["p", "q"] * 5, "too few patients"),
    ],
)
def test_what_can_t_be_measured_is_null_with_a_reason(
    labels: list[str], patients: list[str] | None, reason: str
) -> None:
    result = audit(table(labels, patients), found=alone(len(labels)))
    shortcut = result["shortcut"]
    assert shortcut["accuracy"] is shortcut["low"] is shortcut["majority"] is None
    assert reason in shortcut["reason"]
    assert shortcut["reason"] in result["summary"][-1]


def test_a_class_of_one_picture_doesn_t_hide_the_shortcut() -> None:
    result = audit(table(["a", "b"] * 10 + ["rare"]), found=alone(21))
    assert result["shortcut"]["accuracy"] is not None


def test_a_split_without_test_images_gives_a_reason() -> None:
    cells = table(["a", "b"] * 10)
    shortcut = audit(cells, roles(cells, set()), found=alone(20))["shortcut"]
    assert shortcut["reason"] == "the split has no train or no test images"


def test_images_that_the_index_lacks_are_refused_and_missing_ones_told() -> None:
    cells = table(["a", "b"] * 10)
    frame = roles(cells, {name(3), name(4)})
    with pytest.raises(InputError, match="not in the index"):
        audit(cells, frame.replace(name(3), "other.png"), found=alone(20))
    told = audit(cells, frame[frame["image"] != name(9)], found=alone(20))["summary"]
    assert any("1 image of the index" in sentence and name(9) in sentence for sentence in told)
