"""Quality over time: how much is read, how often the reviewer agrees, whether the model drifts.

Cells of one slide share their stain and their patient, so a period's uncertainty comes from its
cases, not its cells: means and shares are ratios of case totals, with the linearised variance of
such ratios (Cochran 1977, Sampling Techniques, section 6.4) and Student's t.
"""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, case, func, literal_column, or_, select
from sqlalchemy.orm import Session

from leukoscope.review.schema import Case, Cell, Model, Reading

Unit = Literal["day", "week"]

LEVEL = 0.99
Z = 2.5758293035489004  # the normal distribution's 99.5 % point
FEWEST_CASES = 10  # an alarm rests on no fewer
SHIFT = 0.25  # standard deviations of validation; less is no reason to worry
EXPECTED_NOVEL, MOST_NOVEL = 0.05, 0.10  # of images like those of validation; what raises an alarm
RULE = (
    f"An alarm needs at least {FEWEST_CASES} cases in the period and one of these: the mean "
    f"confidence or the mean novelty lies {SHIFT} or more standard deviations of the validation "
    "images away from theirs, and the 99 % interval of that difference leaves out zero; or at "
    f"least {100 * MOST_NOVEL:.0f} % of the cells are novel, and the 99 % interval of that share "
    f"lies above the {100 * EXPECTED_NOVEL:.0f} % to be expected. Of a hundred periods in which "
    "nothing has changed, each of the three raises about one false alarm at most."
)
_NO_VALIDATION = "the bundle holds no such statistics of its validation images"


@dataclass(frozen=True)
class Part:
    """What one model read of one case on one day. Sums are over cells; `rated` have a novelty.

    `compared` cells belong to a signed case, `agreed` of them kept the model's class.
    """

    day: datetime.date
    case: str
    cells: int
    confidence: float
    rated: int
    novelty: float
    novel: int
    flagged: int
    compared: int
    agreed: int


@dataclass(frozen=True)
class Estimate:
    """A value with its 99 % interval; what is undefined is None, and `reason` says why."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True)
class Period:
    """One day or week from `start` on. Shares are in [0, 1].

    `confidence_shift` and `novelty_shift` are differences of the mean from validation's, in
    validation's standard deviations. `alarms` are sentences, empty where all is quiet.
    """

    start: datetime.date
    cases: int
    cells: int
    flagged: int
    agreement: Estimate
    confidence: Estimate
    confidence_shift: Estimate
    novelty_shift: Estimate
    novel: Estimate
    alarms: tuple[str, ...]


def history(
    session: Session,
    model_id: int,
    *,
    unit: Unit = "week",
    since: datetime.datetime | None = None,
) -> list[Period]:
    """The periods in which this model read cells, the first one first, empty ones between too.

    `since`: leave out readings before this moment (UTC). A case counts in the period in which it
    was read; agreement is of signed cases.
    """
    model = session.get_one(Model, model_id)
    return periods(parts(session, model_id, since), model.contract["validation"], unit)


def parts(session: Session, model_id: int, since: datetime.datetime | None = None) -> list[Part]:
    """Totals by day and case of what a model read: one query, however many cells."""
    postgres = session.get_bind().dialect.name == "postgresql"
    # A bound "UTC" would be one parameter in SELECT and another in GROUP BY: two expressions.
    utc = func.timezone(literal_column("'UTC'"), Reading.created)
    day = func.date(utc if postgres else Reading.created)
    signed = and_(Case.state == "signed", Case.model_id == model_id)
    kept = or_(Cell.label.is_(None), Cell.label == Reading.predicted)
    query = (
        select(
            day, Cell.case_id, func.count(), func.sum(Reading.confidence),
            func.count(Reading.novelty), func.coalesce(func.sum(Reading.novelty), 0.0),
            _times(Reading.novelty > 1), _times(Reading.flag != ""), _times(signed),
            _times(and_(signed, kept)),
        )
        .join(Cell, Cell.id == Reading.cell_id)
        .join(Case, Case.id == Cell.case_id)
        .where(Reading.model_id == model_id)
        .group_by(day, Cell.case_id)
        .order_by(day, Cell.case_id)
    )  # fmt: skip
    if since is not None:
        query = query.where(Reading.created >= since)
    rows = session.execute(query)
    return [Part(datetime.date.fromisoformat(str(on)), *rest) for on, *rest in rows]


def periods(found: Sequence[Part], validation: Mapping[str, Any], unit: Unit) -> list[Period]:
    """Periods from the first part's to the last one's; weeks begin on Monday."""
    if not found:
        return []
    by_start: dict[datetime.date, list[Part]] = defaultdict(list)
    for part in found:
        by_start[_start(part.day, unit)].append(part)
    step = datetime.timedelta(days=7 if unit == "week" else 1)
    start, last = min(by_start), max(by_start)
    made = []
    while start <= last:
        made.append(_period(start, by_start[start], validation))
        start += step
    return made


def ratio(totals: Iterable[tuple[float, float]]) -> Estimate:
    """Sum of the first over sum of the second with its 99 % interval; one pair a case.

    The interval is None for fewer than two cases, or where all are alike.
    """
    pairs = [(float(a), float(b)) for a, b in totals if b > 0]
    if not pairs:
        return Estimate(None, None, None, "there are no such cells")
    whole = math.fsum(b for _, b in pairs)
    value = math.fsum(a for a, _ in pairs) / whole
    if len(pairs) < 2:
        return Estimate(value, None, None, "one case says nothing about others")
    squares = math.fsum((a - value * b) ** 2 for a, b in pairs)
    spread = math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / whole
    if spread <= 1e-12:
        return Estimate(value, None, None, "all cases are alike")
    reach = t_quantile(len(pairs) - 1) * spread
    return Estimate(value, value - reach, value + reach)


def t_quantile(freedom: int) -> float:
    """The 99.5 % point of Student's t, by Cornish and Fisher's expansion about the normal's.

    Within 1 % from 4 degrees of freedom on (Abramowitz & Stegun 26.7.5); for fewer exact.
    """
    exact = {1: 63.656741, 2: 9.924843, 3: 5.840909}
    if freedom in exact:
        return exact[freedom]
    z, n = Z, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, start=1))


def shift(mean: Estimate, validation: Mapping[str, Any], name: str) -> Estimate:
    """How far a mean lies from validation's, in validation's standard deviations.

    The interval adds the error of validation's own mean, as if its images were independent.
    """
    centre, spread = validation.get(f"mean_{name}"), validation.get(f"sd_{name}")
    images = validation.get("n")
    if mean.value is None or centre is None or not spread or not images:
        reason = mean.reason if mean.value is None else _NO_VALIDATION
        return Estimate(None, None, None, reason)
    value = (mean.value - centre) / spread
    if mean.high is None:
        return Estimate(value, None, None, mean.reason)
    reach = math.hypot((mean.high - mean.value) / spread, Z / math.sqrt(images))
    return Estimate(value, value - reach, value + reach)


# --- inside ---------------------------------------------------------------------------------------


def _times(condition: ColumnElement[bool]) -> ColumnElement[int]:
    """How many rows of a group meet the condition."""
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _start(day: datetime.date, unit: Unit) -> datetime.date:
    return day - datetime.timedelta(days=day.weekday()) if unit == "week" else day


def _period(start: datetime.date, found: Sequence[Part], validation: Mapping[str, Any]) -> Period:
    cases = _by_case(found)
    confidence = ratio((c.confidence, c.cells) for c in cases)
    novel = _share((c.novel, c.rated) for c in cases)
    shifts = {
        "confidence": shift(confidence, validation, "confidence"),
        "novelty": shift(ratio((c.novelty, c.rated) for c in cases), validation, "novelty"),
    }
    return Period(
        start=start,
        cases=len(cases),
        cells=sum(c.cells for c in cases),
        flagged=sum(c.flagged for c in cases),
        agreement=_share((c.agreed, c.compared) for c in cases),
        confidence=confidence,
        confidence_shift=shifts["confidence"],
        novelty_shift=shifts["novelty"],
        novel=novel,
        alarms=tuple(_alarms(shifts, novel)) if len(cases) >= FEWEST_CASES else (),
    )


def _by_case(found: Sequence[Part]) -> list[Part]:
    """One part a case: a case may be read over several days of a week."""
    whole: dict[str, Part] = {}
    for part in found:
        had = whole.get(part.case)
        whole[part.case] = part if had is None else _sum(had, part)
    return list(whole.values())


def _sum(a: Part, b: Part) -> Part:
    names = ("cells", "confidence", "rated", "novelty", "novel", "flagged", "compared", "agreed")
    return Part(a.day, a.case, **{name: getattr(a, name) + getattr(b, name) for name in names})


def _share(totals: Iterable[tuple[float, float]]) -> Estimate:
    """A ratio of counts, its interval within 0 to 1.

    Where every case has none or all, Wilson's interval of as many cells as there are cases: the
    least that they may be worth.
    """
    pairs = [pair for pair in totals if pair[1] > 0]
    found = ratio(pairs)
    if found.low is not None and found.high is not None:
        return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))
    if len(pairs) < 2 or found.value not in (0.0, 1.0):
        return found
    edge = len(pairs) / (len(pairs) + Z * Z)
    return Estimate(1.0, edge, 1.0) if found.value else Estimate(0.0, 0.0, 1 - edge)


def _alarms(shifts: Mapping[str, Estimate], novel: Estimate) -> Iterable[str]:
    """The rule RULE, as sentences."""
    for name, found in shifts.items():
        if found.value is None or found.low is None or found.high is None:
            continue
        if abs(found.value) >= SHIFT and not found.low <= 0 <= found.high:
            where = "above" if found.value > 0 else "below"
            yield (
                f"Mean {name} lies {abs(found.value):.2f} standard deviations {where} that of the "
                f"validation images (99 % interval {found.low:.2f} to {found.high:.2f}). Stain, "
                "scanner or patients may differ from what the model knows."
            ).replace("-", "−")
    share, least = novel.value, novel.low
    if share is not None and least is not None and share >= MOST_NOVEL and least > EXPECTED_NOVEL:
        yield (
            f"{100 * share:.0f} % of the cells are novel to the model where "
            f"{100 * EXPECTED_NOVEL:.0f} % are to be expected. Look at them before you trust its "
            "classes."
        )
