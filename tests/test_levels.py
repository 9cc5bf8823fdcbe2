"""Figures by patient and slide: mean probability, vote, and the share of each class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from commands import Made
from leukoscope.evaluate import intervals
from leukoscope.files import to_json
from leukoscope.recipes import levels
from leukoscope.report import sections_levels, sections_results
from leukoscope.report.inputs import Run
from leukoscope.report.page import Plot, Section, Table

CLASSES = ["a", "b", "c"]


def table(rows: list[tuple[str | None, str, list[float]]]) -> pd.DataFrame:
    """Rows of patient, label and probabilities; predicted is the most probable class."""
    probs = np.array([row[2] for row in rows])
    frame = pd.DataFrame(
        {
            "image": [f"i{at}" for at in range(len(rows))],
            "patient": [row[0] for row in rows],
            "label": [row[1] for row in rows],
            "predicted": np.array(CLASSES)[probs.argmax(axis=1)],
        }
    )
    return frame.join(pd.DataFrame(probs, columns=[f"prob_{c}" for c in CLASSES]))


def differential(patients: int = 24, cells: int = 30, seed: int = 0) -> pd.DataFrame:
    """Cells of all classes from each patient, one in six given another class; two slides each."""
    generator = np.random.default_rng(seed)
    n = patients * cells
    labels = generator.integers(0, 3, n)
    said = np.where(generator.random(n) < 1 / 6, generator.integers(0, 3, n), labels)
    patient = np.repeat(np.arange(patients), cells)
    return pd.DataFrame(
        {
            "image": [f"i{at}" for at in range(n)],
            "patient": [f"P{p:02d}" for p in patient],
            "slide": [str(at % 2) for at in range(n)],
            "label": np.array(CLASSES)[labels],
            "predicted": np.array(CLASSES)[said],
        }
    )


VOTES = table(
    [
        ("p", "a", [0.5, 0.4, 0.1]),
        ("p", "a", [0.5, 0.4, 0.1]),
        ("p", "a", [0.0, 1.0, 0.0]),  # the mean says b (.6), the vote a (2 of 3)
        ("q", "b", [0.1, 0.8, 0.1]),
        ("q", "b", [0.0, 0.1, 0.9]),  # a tie of votes, b and c; the mean is .45 and .5
        ("r", "c", [0.0, 0.1, 0.9]),
        (None, "c", [0.9, 0.1, 0.0]),
    ]
)


def test_mean_probability_and_vote_by_hand() -> None:
    mean, _ = levels.by_mean(VOTES, CLASSES)
    vote, _ = levels.by_vote(VOTES, CLASSES)
    assert mean is not None
    assert vote is not None
    assert mean["n"] == vote["n"] == 3
    assert mean["confusion_matrix"] == [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert vote["confusion_matrix"] == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert vote["accuracy"] == pytest.approx(2 / 3)
    assert tuple(vote["ci"]["accuracy"]) == intervals.wilson(2, 3)
    assert vote["log_loss"] is None
    assert vote["undefined"]["log_loss"] == "a vote gives no probabilities"
    assert "1 patients have a tie, decided by the higher mean probability." in vote["notes"]
    assert "1 images without a patient left out." in vote["notes"]


def test_a_vote_needs_no_probabilities() -> None:
    bare = VOTES[["image", "patient", "label", "predicted"]]
    assert levels.by_mean(bare, CLASSES) == (None, "no probabilities were given")
    vote, _ = levels.by_vote(bare, CLASSES)
    assert vote is not None
    assert vote["confusion_matrix"][1] == [0, 1, 0]  # the tie now goes to the first class
    assert "decided by the order of the classes" in " ".join(vote["notes"])


def test_where_patients_have_many_classes_their_shares_count() -> None:
    frame = differential()
    found = levels.measure(frame, CLASSES)
    for name in ("patient_level", "patient_vote", "slide_level", "slide_vote"):
        assert found[name] is None
        assert "more than one class" in found["undefined"][name]
    shares = found["patient_shares"]
    counts = {
        column: pd.crosstab(frame["patient"], frame[column], normalize="index")
        for column in ("label", "predicted")
    }
    gaps = counts["predicted"] - counts["label"]
    assert shares["n"] == 24
    assert shares["images"] == 720
    assert shares["median_images"] == 30
    assert shares["mean_absolute_error"] == pytest.approx(gaps.abs().to_numpy().mean())
    low, high = shares["ci"]["mean_absolute_error"]
    assert low < shares["mean_absolute_error"] < high
    for name in CLASSES:
        row = shares["per_class"][name]
        assert row["true"] == pytest.approx(counts["label"][name].mean())
        assert row["predicted"] == pytest.approx(counts["predicted"][name].mean())
        assert row["difference"] == pytest.approx(gaps[name].mean())
        low, high = shares["ci"][f"per_class.{name}.difference"]
        assert low < row["difference"] < high
    json.loads(to_json(found))


def test_shares_that_are_right_have_no_error_and_few_patients_no_interval() -> None:
    frame = differential(patients=4)
    right, _ = levels.shares(frame.assign(predicted=frame["label"]), CLASSES)
    assert right is not None
    assert right["mean_absolute_error"] == 0
    assert right["ci"] == {}
    assert "No intervals: only 4 independent patients." in right["notes"]


def test_a_patient_counts_once_however_many_images_it_gave() -> None:
    frame = table(
        [("p", "a", [1, 0, 0])] * 9 + [("p", "b", [1, 0, 0])] + [("q", "b", [0, 1, 0])] * 500
    )
    found, _ = levels.shares(frame, CLASSES)
    assert found is not None
    assert found["per_class"]["a"]["difference"] == pytest.approx(0.1 / 2)
    assert found["mean_absolute_error"] == pytest.approx((0.1 + 0.1) / 6)


def test_table_of_shares_has_the_error_of_counting() -> None:
    frame = differential()
    found = levels.share_table(frame, CLASSES)
    assert len(found) == 24 * 3
    row = found[(found["group"] == "P03") & (found["class"] == "b")].iloc[0]
    own = frame[frame["patient"] == "P03"]
    assert row["true"] == pytest.approx((own["label"] == "b").mean())
    said = int((own["predicted"] == "b").sum())
    assert (row["low"], row["high"]) == pytest.approx(intervals.wilson(said, 30))
    assert levels.share_table(frame.drop(columns="patient"), CLASSES).empty


def test_slides_are_told_apart_by_patient_and_resampled_with_them() -> None:
    frame = differential().assign(label="a")
    found = levels.measure(frame, CLASSES)
    slide = found["slide_level"] or found["slide_vote"]
    assert slide["n"] == 48  # slides 0 and 1 of each of 24 patients
    assert slide["level"] == "slide"
    assert slide["interval"] == slide["interval"] | {"unit": "patient", "groups": 24}
    assert found["slide_shares"]["n"] == 48
    table = levels.share_table(frame, CLASSES, "slide")
    assert table["group"].iloc[0] == "P00, 0"


def test_slides_that_are_the_patients_are_not_judged_twice() -> None:
    frame = differential().assign(label="a")
    same = levels.measure(frame.assign(slide=frame["patient"]), CLASSES)
    assert same["slide_level"] is None
    assert "every patient has one slide" in same["undefined"]["slide_vote"]
    none = levels.measure(frame.drop(columns=["slide", "patient"]), CLASSES)
    assert none["undefined"]["slide_shares"] == "no slide is known"
    assert none["undefined"]["patient_shares"] == "no patient is known"
    alone = levels.measure(frame.drop(columns="patient"), CLASSES)
    assert alone["slide_vote"]["n"] == 2
    assert alone["slide_vote"]["interval"]["unit"] == "image"


def test_a_runs_predictions_name_patient_and_slide(made: Made) -> None:
    frame = pd.read_parquet(made.run / "predictions.parquet")
    assert list(frame)[:5] == ["image", "patient", "slide", "label", "predicted"]
    index = pd.read_parquet(made.cells).set_index("image")
    for column in ("patient", "slide"):
        known = index.loc[frame["image"], column].to_numpy(object)
        assert frame[column].isna().tolist() == pd.isna(known).tolist()
        assert frame[column].dropna().tolist() == [v for v in known if v is not None]
    stored = json.loads((made.run / "metrics.json").read_text())
    assert stored["patient_shares"]["n"] == index.loc[
        frame.loc[frame["role"] == "test", "image"], "patient"
    ].nunique()  # fmt: skip


# --- in the report --------------------------------------------------------------------------------


def section_of(frame: pd.DataFrame, classes: list[str] = CLASSES) -> Section:
    run = Run(Path("run"), levels.measure(frame, classes), predictions=frame)
    found = sections_levels.section(run)
    assert found is not None
    return found


def test_the_report_says_which_class_is_counted_too_high() -> None:
    frame = differential(patients=30)
    low = frame["label"].eq("b") & (np.arange(len(frame)) % 3 == 0)
    section = section_of(frame.assign(predicted=frame["predicted"].mask(low, "c")))
    plots = [block for block in section.blocks if isinstance(block, Plot)]
    says = plots[0].caption
    assert "A patient's predicted share of a class is off by" in says
    assert "Counted too high: c. Counted too low: b." in says
    assert "lies outside the 95% interval of the predicted one" in says
    assert [plot.drawings[0].name for plot in plots] == ["shares_patient", "shares_slide"]
    assert len(plots[0].drawings[0].data) == 30 * 3
    (table, *_) = (block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == CLASSES


def test_the_report_is_silent_without_patients_and_careful_with_few() -> None:
    frame = differential(patients=3)
    bare = Run(Path("run"), levels.measure(frame.drop(columns=["patient", "slide"]), CLASSES))
    assert sections_levels.section(bare) is None
    text = str(section_of(frame).blocks)
    assert "No intervals: only 3 independent patients." in text
    assert "Counted too" not in text


def test_vote_and_slide_stand_beside_the_mean() -> None:
    frame = differential(patients=12).assign(label="a")
    run = Run(Path("run"), levels.measure(frame, CLASSES), predictions=frame)
    tables = [b for b in sections_results.classes(run).blocks if isinstance(b, Table)]
    rows = {row[0]: row[1] for table in tables for row in table.rows}
    assert rows["By patient, vote"] == "12 patients"
    assert rows["By slide, vote"] == "24 slides"
