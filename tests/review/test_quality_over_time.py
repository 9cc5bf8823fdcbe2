"""Volumes, agreement and drift, with uncertainty that knows cases from cells."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy
from scipy import stats
from store import PASSWORD, Lab

from leukoscope.review import cases, changes, quality, signing
from leukoscope.review.quality import Part
from leukoscope.review.schema import Reading

MONDAY = datetime.date(2026, 11, 16)
VALIDATION = {"n": 400, "mean_confidence": 0.9, "sd_confidence": 0.1, "mean_novelty": 0.7,
              "sd_novelty": 0.15}  # fmt: skip


def part(number: int, day: datetime.date = MONDAY, **more: float) -> Part:
    """A case of 100 cells just like validation's."""
    usual = Part(day, f"case {number}", 100, 90.0, 100, 70.0, 5, 10, 100, 95)
    return replace(usual, **more)


def some(
    count: int, seed: int = 0, *, confidence: float = 90, novelty: float = 70, novel: float = 5
) -> list[Part]:
    """Cases that differ a little from each other."""
    rng = np.random.default_rng(seed)
    return [
        part(
            n,
            confidence=confidence + rng.normal(0, 2),
            novelty=novelty + rng.normal(0, 2),
            novel=min(100, int(rng.poisson(novel))),
        )
        for n in range(count)
    ]


def one(found: list[Part], validation: dict[str, float] | None = None) -> quality.Period:
    (period,) = quality.periods(found, VALIDATION if validation is None else validation, "week")
    return period


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 20, 100, 10_000])
def test_quantiles_of_students_t(freedom: int) -> None:
    assert quality.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.995, freedom), rel=0.01)


def test_a_ratio_of_cases_of_one_cell_is_a_plain_mean_with_its_t_interval() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 30)
    found = quality.ratio((value, 1) for value in values)
    low, high = stats.t.interval(0.99, 29, values.mean(), stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)


def test_intervals_cover_what_varies_by_case() -> None:
    """Cases differ among themselves: intervals by cell would cover far too seldom."""
    rng = np.random.default_rng(2)
    covered, narrow = [], []
    for _ in range(600):
        centres = rng.normal(0.8, 0.05, 15)
        sizes = rng.integers(50, 300, 15)
        sums = [size * centre + rng.normal(0, 0.1 * np.sqrt(size))
                for size, centre in zip(sizes, centres, strict=True)]  # fmt: skip
        found = quality.ratio(zip(sums, sizes, strict=True))
        covered.append(found.low <= 0.8 <= found.high)
        by_cell = quality.Z * np.hypot(0.05, 0.1) / np.sqrt(sizes.sum())
        narrow.append(abs(found.value - 0.8) <= by_cell)
    assert np.mean(covered) > 0.97
    assert np.mean(narrow) < 0.7


def test_a_quiet_week() -> None:
    found = one(some(12))
    assert (found.start, found.cases, found.cells, found.flagged) == (MONDAY, 12, 1200, 120)
    assert found.alarms == ()
    assert found.agreement.value == pytest.approx(0.95)
    assert abs(found.confidence_shift.value or 1) < quality.SHIFT
    assert abs(found.novelty_shift.value or 1) < quality.SHIFT
    assert found.novel.value == pytest.approx(0.05, abs=0.02)


def test_quiet_weeks_seldom_raise_an_alarm() -> None:
    alarms = sum(bool(one(some(12, seed)).alarms) for seed in range(300))
    assert alarms <= 9


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"confidence": 80}, r"Mean confidence lies \d\.\d\d standard deviations below .* −"),
        ({"novelty": 90}, r"Mean novelty lies 1\.\d\d standard deviations above"),
        ({"novel": 20}, r"2\d % of the cells are novel .* 5 % are to be expected"),
        ({"novel": 1000}, r"100 % of the cells are novel"),
    ],
)
def test_drift_raises_an_alarm(more: dict[str, float], words: str) -> None:
    (alarm,) = one(some(12, **more)).alarms
    assert re.match(words, alarm)
    assert one(some(9, **more)).alarms == (), "too few cases"


def test_a_shift_without_certainty_or_without_size_raises_none() -> None:
    rng = np.random.default_rng(3)
    wild = [part(n, confidence=float(90 + rng.normal(-3, 20))) for n in range(12)]
    assert one(wild).alarms == ()
    small = [part(n, confidence=88 + 0.01 * n) for n in range(50)]
    found = one(small)
    assert found.confidence_shift.high is not None
    assert found.confidence_shift.high < 0  # certain, and too small to matter
    assert found.alarms == ()


def test_what_is_undefined_has_its_reason() -> None:
    found = one([part(1, rated=0, novelty=0.0, novel=0, compared=0, agreed=0)])
    assert found.agreement.value is None
    assert found.agreement.reason
    assert found.novel.value is None
    assert found.confidence.value == pytest.approx(0.9)
    assert found.confidence.low is None
    assert "one case" in found.confidence.reason
    bare = one(some(12), {})
    assert bare.confidence_shift.value is None
    assert "validation" in bare.confidence_shift.reason
    assert bare.alarms == ()


def test_all_agreed_is_not_certainty() -> None:
    found = one([part(n, agreed=100) for n in range(12)])
    assert found.agreement.value == 1
    assert found.agreement.low == pytest.approx(12 / (12 + stats.norm.ppf(0.995) ** 2))


def test_weeks_begin_on_monday_and_empty_ones_stand_between() -> None:
    days = [MONDAY, MONDAY + datetime.timedelta(days=6), MONDAY + datetime.timedelta(days=14)]
    found = quality.periods([part(n, day) for n, day in enumerate(days)], VALIDATION, "week")
    assert [(p.start, p.cases) for p in found] == [
        (MONDAY, 2),
        (MONDAY + datetime.timedelta(days=7), 0),
        (MONDAY + datetime.timedelta(days=14), 1),
    ]
    assert found[1].confidence.reason
    by_day = quality.periods([part(n, day) for n, day in enumerate(days)], VALIDATION, "day")
    assert len(by_day) == 15
    assert quality.periods([], VALIDATION, "day") == []


def test_a_case_read_on_two_days_is_one_case() -> None:
    found = one([part(1), part(1, MONDAY + datetime.timedelta(days=1)), part(2)])
    assert (found.cases, found.cells) == (2, 300)


def test_parts_come_from_the_database(lab: Lab) -> None:
    """Counted by SQL as by hand, on SQLite and PostgreSQL; agreement of signed cases only."""
    with lab.database.begin() as session:
        changes.relabel(session, lab.anna, lab.case, {lab.cells[0]: 1}, "monocyte")
        changes.confirm(session, lab.anna, lab.case, {lab.cells[1]: 1})
    with lab.database.read() as session:
        (before,) = quality.parts(session, lab.model.id)
        rows = session.execute(
            sqlalchemy.select(Reading.confidence, Reading.novelty, Reading.created)
        ).all()
    assert before.cells == len(rows) == 12
    assert before.day == rows[0].created.date()
    assert before.confidence == pytest.approx(sum(row.confidence for row in rows))
    assert before.rated == sum(row.novelty is not None for row in rows)
    assert (before.compared, before.agreed) == (0, 0)
    with lab.database.read() as session:
        revision = cases.find(session, lab.case).revision
    signing.sign(lab.database, lab.anna, lab.case, revision, PASSWORD)
    with lab.database.read() as session:
        (after,) = quality.parts(session, lab.model.id)
        assert (after.compared, after.agreed) == (12, 11)
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
        assert quality.parts(session, lab.model.id, since=later) == []
        (period,) = quality.history(session, lab.model.id)
    assert period.agreement.value == pytest.approx(11 / 12)
    assert period.confidence_shift.reason  # the small laboratory's contract has no validation
