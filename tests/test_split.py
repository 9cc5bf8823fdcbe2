"""Splits keep groups together, hit their shares, and refuse what can't be."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukoscope.data import split
from leukoscope.data.duplicates import Duplicates
from leukoscope.errors import InputError, LeakError, UnknownNameError
from made_cells import cells_of, smear, table

NAMES = ["train", "validation", "test"]


def alone(n: int) -> Duplicates:
    return Duplicates([], [], np.arange(n))


def counts(labels: list[str], frame: pd.DataFrame) -> pd.DataFrame:
    label = dict(zip((f"{k:05d}.png" for k in range(len(labels))), labels, strict=True))
    return pd.crosstab(frame["image"].map(label), frame["role"]).reindex(
        columns=NAMES, fill_value=0
    )


@given(
    sizes=st.lists(st.integers(8, 40), min_size=2, max_size=4),
    ratios=st.sampled_from([(0.7, 0.15, 0.15), (80, 20, 0), (0.5, 0, 0.5), (60, 20, 20)]),
    seed=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_without_groups_classes_are_rounded_by_largest_remainder(
    sizes: list[int], ratios: tuple[float, float, float], seed: int
) -> None:
    labels = [f"class {c}" for c, size in enumerate(sizes) for _ in range(size)]
    cells = table(labels)
    frame = split.split(cells, ratios=ratios, seed=seed, found=alone(len(labels)))
    assert sorted(frame["image"]) == sorted(cells.frame["image"])
    found = counts(labels, frame)
    for c, size in enumerate(sizes):
        exact = [Fraction(r).limit_denominator(1000) / round(sum(ratios)) * size for r in ratios]
        got = found.loc[f"class {c}"].tolist()
        assert sum(got) == size
        assert all(abs(g - e) < 1 for g, e in zip(got, exact, strict=True))
        remainders = [e - int(e) for e in exact]
        raised = [r for r, g, e in zip(remainders, got, exact, strict=True) if g > int(e)]
        kept = [r for r, g, e in zip(remainders, got, exact, strict=True) if g == int(e)]
        assert not raised or not kept or min(raised) >= max(kept) - Fraction(1, 10**6)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[str], list[str | None], np.ndarray]:
    """Labels, patients (some unknown) and duplicate clusters that may cross patients."""
    n = draw(st.integers(60, 120))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    labels = [f"class {c}" for c in rng.integers(0, 3, n)]
    patients = [None if p > 24 else f"p{p}" for p in rng.integers(0, 30, n)]
    clusters = np.arange(n)
    for one, other in rng.integers(0, n, (3, 2)):
        clusters[clusters == clusters[one]] = clusters[other]
    return labels, patients, clusters


@given(case=grouped(), folds=st.sampled_from([None, 2, 3]), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_groups_stay_together_and_order_doesn_t_matter(
    case: tuple[list[str], list[str | None], np.ndarray], folds: int | None, seed: int
) -> None:
    labels, patients, clusters = case
    cells = table(labels, patients)
    found = Duplicates([], [], clusters)
    frame = split.split(cells, folds=folds, seed=seed, found=found)
    assert split.crossing(cells, frame, found) == split.Crossing([], [])
    split.check(cells, frame, found=found)
    assert (frame.groupby("image")["fold"].nunique() == (folds or 1)).all()
    if folds:
        assert (frame[frame["role"] == "test"]["image"].value_counts() == 1).all()
        assert (frame["role"] == "test").sum() == len(labels)

    order = np.random.default_rng(seed).permutation(len(labels))
    cells.frame.loc[:] = cells.frame.iloc[order].to_numpy()
    again = split.split(cells, folds=folds, seed=seed, found=Duplicates([], [], clusters[order]))
    pd.testing.assert_frame_equal(frame, again)
    assert frame.attrs == again.attrs


def test_shares_are_near_where_patients_bind() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{k}" for k in range(60) for _ in range(rng.integers(5, 15))]
    labels = [f"class {int(p[1:]) % 3}" for p in patients]
    frame = split.split(table(labels, patients), found=alone(len(labels)))
    shares = counts(labels, frame).pipe(lambda c: c.div(c.sum(axis=1), axis=0))
    assert np.abs(shares.to_numpy() - [0.7, 0.15, 0.15]).max() < 0.03


def test_folds_have_the_promised_sizes() -> None:
    labels = ["a"] * 100 + ["b"] * 50
    frame = split.split(table(labels), folds=5, found=alone(150))
    for _, part in frame.groupby("fold"):
        assert part["role"].value_counts().to_dict() == {
            "train": 96,
            "test": 30,
            "validation": 24,
        }


def test_another_seed_gives_another_split() -> None:
    cells = table(["a", "b"] * 30)
    one, other = (split.split(cells, seed=seed, found=alone(60)) for seed in (0, 1))
    assert not one["role"].equals(other["role"])


def test_duplicates_are_found_and_kept_together() -> None:
    rng = np.random.default_rng(3)
    images = [smear(rng, 90) for _ in range(30)]
    cells = cells_of([*images, *(np.rot90(image).copy() for image in images[:10])])
    frame = split.split(cells, ratios=(0.5, 0.25, 0.25))
    split.check(cells, frame)
    role = dict(zip(frame["image"], frame["role"], strict=True))
    assert all(role[f"{k:05d}.png"] == role[f"{30 + k:05d}.png"] for k in range(10))

    frame.loc[frame["image"] == "00003.png", "role"] = "test"
    frame.loc[frame["image"] == "00033.png", "role"] = "train"
    with pytest.raises(LeakError, match=r"00003\.png = 00033\.png") as caught:
        split.check(cells, frame)
    assert caught.value.exit_code == 3


def test_a_patient_on_both_sides_is_a_leak_that_names_it() -> None:
    cells = table(["a", "b"] * 20, [f"p{k // 4}" for k in range(40)])
    frame = split.split(cells, found=alone(40))
    moved = cells.frame["image"][0]
    role = frame.loc[frame["image"] == moved, "role"].item()
    frame.loc[frame["image"] == moved, "role"] = "train" if role != "train" else "test"
    with pytest.raises(LeakError, match=rf"1 patients \(p0: .*{moved} in "):
        split.check(cells, frame, found=alone(40))


def test_the_same_patient_in_two_folds_is_no_leak() -> None:
    cells = table(["a", "b"] * 20, [f"p{k // 4}" for k in range(40)])
    split.check(cells, split.split(cells, folds=5, found=alone(40)), found=alone(40))


def test_index_and_split_must_name_the_same_images() -> None:
    cells = table(["a", "b"] * 20)
    frame = split.split(cells, found=alone(40))
    with pytest.raises(InputError, match=r"1 images of the index .*00007\.png"):
        split.check(cells, frame[frame["image"] != "00007.png"], found=alone(40))
    fewer = frame[frame["image"] != "00007.png"]
    split.check(cells, fewer, excluded={"00007.png"}, found=alone(40))
    with pytest.raises(InputError, match=r"not in the index: other\.png"):
        split.check(cells, frame.replace("00007.png", "other.png"), found=alone(40))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("70/15/15", (0.7, 0.15, 0.15)),
        ("0.6/0.2/0.2", (0.6, 0.2, 0.2)),
        ("80/20/0", (0.8, 0.2, 0)),
        ("80/20", (0.8, 0, 0.2)),
    ],
)
def test_ratios_are_parsed(text: str, expected: tuple[float, float, float]) -> None:
    assert split.ratios(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["", "70", "70/20/20", "-10/60/50", "a/b/c", "100/0/0", "0/50/50", "nan/1/0", "40/30/20/10"],
)
def test_bad_ratios_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="ratios") as caught:
        split.ratios(text)
    assert "70/15/15" in caught.value.fix


@pytest.mark.parametrize(
    ("labels", "patients", "request_", "message", "fix"),
    [
        (["a"] * 9, None, {}, "one class, 'a'", "layout"),
        (["a"] * 9 + ["b"] * 2, None, {}, "'b' has 2", "80/20/0"),
        (["a"] * 9 + ["b"], None, {}, "'b' has 1", "leave them out"),
        (["a"] * 9 + ["b"] * 4, None, {"folds": 5}, "'b' has 4", "--folds 4"),
        (["a", "b"] * 9, ["p", "q"] * 9, {}, "'a' has 1, 'b' has 1", "leave them out"),
        (["a", "b"] * 9, None, {"folds": 1}, "folds is 1", "--folds 5"),
        (["a", "b"] * 9, None, {"folds": -3}, "folds is -3", "--folds 5"),
        (["a", "b"] * 9, None, {"ratios": (0.7, 0.2, 0.2)}, "ratios", "70/15/15"),
    ],
)
def test_impossible_requests_are_refused(
    labels: list[str], patients: list[str | None], request_: dict, message: str, fix: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        split.split(table(labels, patients), found=alone(len(labels)), **request_)
    assert fix in caught.value.fix


def test_two_roles_need_two_groups_only() -> None:
    labels = ["a"] * 9 + ["b"] * 2
    frame = split.split(table(labels), ratios=(0.5, 0, 0.5), found=alone(11))
    assert set(frame["role"]) == {"train", "test"}


def test_a_split_is_written_and_read_back(tmp_path: Path) -> None:
    frame = split.split(table(["a", "b"] * 20), seed=7, found=alone(40))
    split.write(frame, tmp_path / "split.parquet")
    again = split.read(tmp_path / "split.parquet")
    pd.testing.assert_frame_equal(frame, again)
    assert again.attrs == frame.attrs
    assert again.attrs["seed"] == 7
    assert len(again.attrs["index"]) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["split.parquet"]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"image": ["a"], "fold": [0], "role": ["tran"]}, UnknownNameError, "train"),
        ({"image": ["a"], "role": ["train"]}, InputError, "lacks the columns fold"),
        ({"image": ["a"], "fold": [0.5], "role": ["train"]}, InputError, "whole number"),
        ({"image": [], "fold": [], "role": []}, InputError, "no image"),
        ({"image": ["a", "a"], "fold": [0, 0], "role": ["train", "test"]}, InputError, "twice"),
    ],
)
def test_what_is_no_split_is_refused(
    tmp_path: Path, columns: dict, error: type[InputError], message: str
) -> None:
    path = tmp_path / "split.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(error) as caught:
        split.read(path)
    assert message in str(caught.value)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read as a split"):
        split.read(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("image,role")
    with pytest.raises(InputError, match="can't be read as a split"):
        split.read(tmp_path / "text.parquet")


def test_the_index_hash_follows_content_and_not_order() -> None:
    cells = table(["a", "b"] * 5)
    before = split.index_hash(cells)
    cells.frame.loc[:] = cells.frame.iloc[::-1].to_numpy()
    assert split.index_hash(cells) == before
    cells.frame.loc[0, "label"] = "c"
    assert split.index_hash(cells) != before


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "sizes",
    [
        {"a": [2, 2, 3], "b": [5, 4, 3, 6]},
        {"a": [1] * 9, "b": [40, 1, 1], "c": [230, 2, 3, 4]},
    ],
)
@pytest.mark.parametrize("ratios", [(0.7, 0.15, 0.15), (0.98, 0.01, 0.01)])
def test_no_class_is_left_out_of_a_role_where_it_has_patients_enough(
    sizes: dict[str, list[int]], ratios: tuple[float, ...], seed: int
) -> None:
    """Few patients of very different sizes."""
    rows = [
        (label, f"{label}{number}")
        for label, patients in sizes.items()
        for number, size in enumerate(patients)
        for _ in range(size)
    ]
    labels, patients = zip(*rows, strict=True)
    cells = table(list(labels), list(patients))
    made = split.split(cells, ratios=ratios, seed=seed, found=alone(len(rows)))
    joined = made.merge(cells.frame, on="image")
    assert (pd.crosstab(joined["label"], joined["role"]) > 0).all(axis=None)
    assert (joined.groupby("patient")["role"].nunique() == 1).all()
