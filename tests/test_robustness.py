"""Corruptions, one contract for all that are registered; accuracy of a run under them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from commands import Made, done, refused, untouched
from leukoscope.cli import show
from leukoscope.data import synthetic
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.imaging import corruption
from leukoscope.imaging.corruption import SCALES, SEVERITIES, corrupt, corruptions
from leukoscope.imaging.read import read_image
from leukoscope.recipes import robustness
from leukoscope.report import sections_robustness
from leukoscope.report.inputs import Run
from leukoscope.report.page import Plot, Section

NAMES = list(corruptions)


def cell(size: int = 96) -> np.ndarray:
    """A nucleus in its cytoplasm on unstained glass with a red cell beside: synthetic."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = np.full((size, size, 3), (235, 230, 225), np.float64)
    image[np.hypot(x - 0.35, y + 0.1) < 0.14] = (200, 130, 140)
    image[np.hypot(x, y) < 0.32] = (190, 170, 205)
    image[np.hypot(x + 0.03, y) < 0.2] = (95, 50, 140)
    grain = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("name", NAMES)
def test_contract_of_every_corruption(name: str) -> None:
    """Shape and type kept, the input too; nothing at 0, more at each step, the same twice."""
    image = cell(256)
    kept = image.copy()
    made = [corrupt(image, name, s, np.random.default_rng(5)) for s in range(SEVERITIES + 1)]
    assert np.array_equal(image, kept)
    assert np.array_equal(made[0], image)
    assert made[0] is not image
    for each in made:
        assert (each.shape, each.dtype) == (image.shape, np.uint8)
    far = [distance(each, image) for each in made]
    assert all(a < b for a, b in itertools.pairwise(far)), far
    again = corrupt(image, name, 3, np.random.default_rng(5))
    assert np.array_equal(again, made[3])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (28, 28), (700, 500)])
@pytest.mark.parametrize("fill", [0, 255, None])
def test_any_image_is_taken(name: str, shape: tuple[int, int], fill: int | None) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = noise if fill is None else np.full_like(noise, fill)
    made = corrupt(image, name, SEVERITIES, np.random.default_rng(0))
    assert (made.shape, made.dtype) == (image.shape, np.uint8)


def test_every_scale_is_stated_in_the_table() -> None:
    assert list(SCALES) == [
        line.split("|")[1].strip()
        for line in (corruption.__doc__ or "").splitlines()
        if line.startswith("| ") and not line.startswith(("| corruption", "| ---"))
    ]
    for name, scale in SCALES.items():
        values = " | ".join(f"{value:g}" for value in scale.values)
        assert f"| {values} |" in (corruption.__doc__ or ""), name
        assert scale.unit


def test_what_each_does_by_hand() -> None:
    image = cell()
    flat = np.full((64, 64, 3), 120, np.uint8)
    rng = np.random.default_rng
    assert corrupt(flat, "noise", 3, rng(0)).std() == pytest.approx(16, abs=0.5)
    assert set(np.unique(corrupt(flat, "darker", 4, rng(0)))) == {60}
    assert set(np.unique(corrupt(flat, "brighter", 5, rng(0)))) == {180}
    low = corrupt(image, "contrast", 4, rng(0))
    assert low.std() == pytest.approx(0.4 * image.std(), rel=0.05)
    spot = np.zeros((100, 200, 3), np.uint8)
    spot[50, 100] = 255
    # Severity 4 is 2 % of the shorter side: sigma 2 px, its peak 255 / (2 pi sigma^2).
    assert corrupt(spot, "blur", 4, rng(0)).max() == pytest.approx(255 / (8 * np.pi), abs=1)
    halved = corrupt(image, "resolution", 4, rng(0))
    assert distance(halved[::4, ::4], image[::4, ::4]) < 12


def test_stain_gain_leaves_the_glass_alone_and_changes_the_nucleus() -> None:
    image = cell()
    nucleus, glass = (slice(40, 55), slice(38, 55)), (slice(0, 12), slice(0, 12))
    seen = set()
    for seed in range(8):
        made = corrupt(image, "haematoxylin", 5, np.random.default_rng(seed))
        change = float(made[nucleus].mean() - image[nucleus].mean())
        assert abs(change) > 12
        assert distance(made[glass], image[glass]) < 6
        seen.add(change > 0)
    assert seen == {True, False}  # weaker for some, stronger for others
    red = (slice(35, 42), slice(78, 84))
    made = corrupt(image, "eosin", 5, np.random.default_rng(0))
    gap = np.abs(made[red].astype(float) - image[red]).mean(axis=(0, 1))
    assert gap[1] > 3 * gap[0]  # eosin absorbs green


def test_bad_requests_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'blur'"):
        corrupt(cell(), "blurr", 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="severity 6"):
        corrupt(cell(), "blur", 6, np.random.default_rng(0))
    with pytest.raises(ValueError, match="2 severities"):
        corruption.corruption("x", (1.0, 2.0), "unit")


def test_monotone_on_real_cells(pbc: Path) -> None:
    images = [read_image(sorted((pbc / name).iterdir())[0]) for name in ("neutrophil", "platelet")]
    for name in NAMES:
        for image in images:
            made = [corrupt(image, name, s, np.random.default_rng(2)) for s in range(6)]
            far = [distance(each, image) for each in made]
            assert all(a < b for a, b in itertools.pairwise(far)), (name, far)


# --- a model under them ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(made.run, tmp_path_factory.mktemp("robust") / "run"))


@pytest.fixture(scope="module")
def table(run: Path) -> pd.DataFrame:
    return robustness.robustness(run, limit=12)


def test_table_of_a_run(run: Path, table: pd.DataFrame) -> None:
    assert list(table) == ["corruption", "severity", "value", "unit", "n", "accuracy", "low",
                           "high", "ece", "confidence", "novel"]  # fmt: skip
    assert table[["corruption", "severity"]].to_numpy().tolist() == [
        ["none", 0], *([name, s] for name in SCALES for s in range(1, 6)),
    ]  # fmt: skip
    assert set(table["n"]) == {12}
    for column in ("accuracy", "ece", "confidence", "novel"):
        assert table[column].between(0, 1).all(), column
    known = table.dropna(subset=["low"])
    assert ((known["low"] <= known["accuracy"]) & (known["accuracy"] <= known["high"])).all()
    pd.testing.assert_frame_equal(robustness.robustness(run, limit=12), table)


def test_undisturbed_figures_are_those_of_the_run(run: Path) -> None:
    """Through the exported graph the run's own answers come out again."""
    frame = pd.read_parquet(run / "predictions.parquet")
    scored = frame[frame["role"] == "test"]
    everything = robustness.robustness(run, images=scored["image"].tolist()[:6])
    own = scored.head(6)
    assert everything["n"][0] == 6
    assert everything["accuracy"][0] == (own["label"] == own["predicted"]).mean()
    confidence = own[[c for c in own if c.startswith("prob_")]].max(axis=1).mean()
    assert everything["confidence"][0] == pytest.approx(confidence, abs=1e-4)
    with pytest.raises(UnknownNameError, match=r"Unknown image 'no\.png'"):
        robustness.robustness(run, images=["no.png"])


def test_without_a_novelty_flag_its_share_is_not_known() -> None:
    """As under the published protocol, which fits none: empty, never 0."""
    labels, probs = np.array([0, 1, 1, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [1, 0]])
    units = ["p", "p", "q", "r"]
    found = robustness._scores(labels, probs, np.full(4, np.nan), ["a", "b"], units)
    assert found["novel"] is None
    assert found["accuracy"] == 0.75
    assert found["confidence"] == pytest.approx(0.825)
    flagged = robustness._scores(labels, probs, np.array([0.5, 1, 1.1, 2]), ["a", "b"], units)
    assert flagged["novel"] == 0.5


def test_classes_stay_in_proportion() -> None:
    frame = pd.DataFrame({"label": ["a"] * 60 + ["b"] * 30 + ["c"] * 10})
    frame["image"] = [f"i{at}" for at in range(100)]
    for limit, counts in ((10, [6, 3, 1]), (50, [30, 15, 5]), (500, [60, 30, 10])):
        chosen = robustness._chosen(frame, None, limit, seed=1)
        assert chosen["label"].value_counts().tolist() == counts
        assert len(set(chosen["image"])) == len(chosen)
    again = [robustness._chosen(frame, None, 20, seed=s)["image"].tolist() for s in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_evaluate_writes_it_into_the_run_and_its_report(run: Path) -> None:
    said = json.loads(done("evaluate", run, "--robustness", "--limit", "4", "--json"))
    assert len(said["robustness"]) == 51
    assert said["robustness"][0]["value"] is None
    stored = pd.read_csv(run / "robustness.csv")
    assert stored["accuracy"].tolist() == [row["accuracy"] for row in said["robustness"]]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Robustness to image quality" in page
    assert (run / "figures" / "robustness.svg").is_file()


def test_the_terminal_shows_value_and_accuracy(
    table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    show.robustness(table.to_dict("records"))
    said = capsys.readouterr().out
    assert "Accuracy on 12 images: " in said
    assert "  jpeg (quality): 70: " in said
    ten = table[(table["corruption"] == "jpeg") & (table["value"] == 10)]["accuracy"].iloc[0]
    assert f"10: {100 * ten:.1f}%" in said


def test_a_bundle_needs_an_index_and_a_place_to_write(made: Made, tmp_path: Path) -> None:
    table = pd.DataFrame({"label": ["a"], "predicted": ["a"]})
    table.to_csv(tmp_path / "p.csv", index=False)
    assert "a model that could read" in refused("evaluate", tmp_path / "p.csv", "--robustness")
    smear = synthetic.make(tmp_path / "other", images=24, size=64, patients=4, seed=9)
    done("index", smear, "-o", tmp_path / "other.parquet")
    on = ("--on", tmp_path / "other.parquet", "--robustness", "--limit", "3")
    assert "-o metrics.json" in refused("evaluate", made.bundle, *on)
    with untouched(made.bundle):
        done("evaluate", made.bundle, *on, "-o", tmp_path / "out" / "metrics.json")
    assert pd.read_csv(tmp_path / "out" / "robustness.csv")["n"].unique().tolist() == [3]
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["robustness"][0]["corruption"] == "none"
    assert "own data" in refused("evaluate", made.run, "--on", made.cells, "--robustness", "-o",
                                 tmp_path / "m.json", code=3)  # fmt: skip


def test_an_index_that_changed_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    stated = json.loads((copy / "environment.json").read_text())
    smear = synthetic.make(tmp_path / "other", images=24, size=64, patients=4, seed=9)
    done("index", smear, "-o", tmp_path / "other.parquet")
    stated["index"]["path"] = str(tmp_path / "other.parquet")
    (copy / "environment.json").write_text(json.dumps(stated))
    assert "other images or labels by now" in refused("evaluate", copy, "--robustness")
    (copy / "environment.json").write_text("{}")
    assert "doesn't name the run's index" in refused("evaluate", copy, "--robustness")


# --- what the report says -------------------------------------------------------------------------


def steps(falls: dict[str, list[float]], novel: dict[str, list[float]]) -> pd.DataFrame:
    rows = [{"corruption": "none", "severity": 0, "accuracy": 0.9, "novel": 0.05}]
    for kind, own in falls.items():
        rows += [
            {"corruption": kind, "severity": s + 1, "accuracy": 0.9 - fall, "novel": flagged}
            for s, (fall, flagged) in enumerate(zip(own, novel[kind], strict=True))
        ]
    frame = pd.DataFrame(rows)
    scales = [SCALES.get(kind) for kind in frame["corruption"]]
    frame["value"] = [
        np.nan if scale is None else scale.values[s - 1]
        for scale, s in zip(scales, frame["severity"], strict=True)
    ]
    frame["unit"] = ["" if scale is None else scale.unit for scale in scales]
    return frame.assign(n=300, low=frame["accuracy"] - 0.03, high=frame["accuracy"] + 0.03,
                        ece=0.02, confidence=0.88)  # fmt: skip


def section_of(frame: pd.DataFrame) -> Section:
    found = sections_robustness.section(Run(Path("run"), {}, robustness=frame))
    assert found is not None
    return found


def caption(section: Section) -> str:
    (plot,) = (block for block in section.blocks if isinstance(block, Plot))
    return plot.caption


def test_the_report_says_where_accuracy_breaks_and_whether_the_flag_notices() -> None:
    falls = {
        "blur": [0.0, 0.04, 0.2],
        "noise": [0.0, 0.06, 0.1],
        "jpeg": [0.0, 0.01, 0.02],
    }
    novel = {"blur": [0.05, 0.1, 0.5], "noise": [0.05, 0.05, 0.05], "jpeg": [0.05] * 3}
    says = caption(section_of(steps(falls, novel)))
    assert "Undisturbed, accuracy is 90.0% [87.0, 93.0] on 300 images." in says
    assert "first under noise at 8 (sd, grey levels of 255), to 84.0%" in says
    assert "and never under JPEG." in says
    assert "At 1 of 3 such steps the novelty flag keeps up; it lags most under noise" in says
    assert "accuracy falls by 10.0 points and 5.0% are flagged" in says


def test_a_model_that_nothing_harms_and_one_without_a_flag() -> None:
    falls, novel = {"hue": [0.01, 0.02]}, {"hue": [0.05, 0.06]}
    assert "No disturbance costs more than 5.0 points." in caption(section_of(steps(falls, novel)))
    bare = steps({"hue": [0.1, 0.2]}, novel).assign(novel=np.nan)
    assert "has no novelty flag to notice it" in caption(section_of(bare))
    noticed = steps({"hue": [0.1, 0.2]}, {"hue": [0.2, 0.9]})
    assert "who reads the flags is warned" in caption(section_of(noticed))


def test_a_robustness_csv_of_another_tool() -> None:
    rows = [("fog", s, 0.8 - 0.1 * s) for s in range(3)]
    frame = pd.DataFrame(rows, columns=["corruption", "severity", "accuracy"])
    assert "first under fog at strength 1, to 70.0%" in caption(section_of(frame))
    assert "leukoscope evaluate run --robustness" in str(section_of(frame[["corruption"]]).blocks)
