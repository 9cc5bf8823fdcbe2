"""Sections on a paper's tables: what it states beside what was measured, and its ablation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from leukoscope.recipes.published import NOT_HERE, NOT_RUN
from leukoscope.report import figures
from leukoscope.report.numbers import (
    bounds,
    count,
    difference,
    estimate,
    is_decimal,
    is_time,
    listing,
    measured,
    number,
    plain,
    title,
)
from leukoscope.report.page import Block, Cell, Details, Paragraph, Plot, Section, Table

Row = Mapping[str, Any]
KINDS = {
    "published_figure": "figure of the paper",
    "published_protocol": "published protocol",
    "clean": "clean protocol",
}
HEAD = ["Paper", "Published protocol", "Clean protocol"]
MOST_OPEN = 3  # tables or pairs shown at once; the rest is folded away
MOST_DRAWN = 20  # names in one figure
OVERALL = ("accuracy", "macro_f1", "patient_level.accuracy")  # drawn by arm before any table


def shown(metric: str, item: object, write: Callable[..., str] = measured) -> Cell | str:
    """A measured {value, low, high, why} as a cell: the value, or why there is none."""
    value, limits = estimate(item)
    if value is not None:
        return write(metric, value, limits)
    why = str(item.get("why") or "") if isinstance(item, Mapping) else NOT_RUN
    if NOT_RUN in why:
        return Cell(NOT_RUN, "" if why == NOT_RUN else why)
    return Cell(NOT_HERE) if why == NOT_HERE else Cell("undefined", why or "no reason was recorded")


def stated(metric: str, figure: object) -> str:
    """The paper's figure as a cell."""
    value = number(figure)
    return "not stated" if value is None else plain(metric, value)


def estimates(name: str, row: Row) -> list[Cell | str]:
    """Cells of one row: its name, paper, published protocol, clean protocol, difference."""
    metric = str(row["metric"])
    return [
        name,
        stated(metric, row.get("published_figure")),
        shown(metric, row.get("published_protocol")),
        shown(metric, row.get("clean")),
        shown(metric, row.get("difference"), difference),
    ]


def drawn(stem: str, rows: Sequence[tuple[str, Row]], alt: str, caption: str) -> list[Block]:
    """Values with intervals of the rows that were measured, by name: the paper and both protocols.

    Shares and decimals don't share an axis, times have none.
    """
    rows = [
        (name, row)
        for name, row in rows
        if not is_time(row["metric"])
        and any(estimate(row.get(key))[0] is not None for key in ("published_protocol", "clean"))
    ]
    if not rows:
        return []
    decimal = is_decimal(rows[0][1]["metric"])
    rows = [(name, row) for name, row in rows if is_decimal(row["metric"]) == decimal]
    if len(rows) > MOST_DRAWN:
        return []
    kinds = [key for key in KINDS if any(estimate(row.get(key))[0] is not None for _, row in rows)]
    data = []
    for name, row in rows:
        for key in kinds:
            value, limits = estimate(row.get(key))
            data.append((name, KINDS[key], value, *bounds(limits)))
    frame = pd.DataFrame(data, columns=["name", "kind", "value", "low", "high"])
    frame = frame.astype(dict.fromkeys(("value", "low", "high"), float))
    return [Plot([figures.ranges(stem, frame, alt, share=not decimal)], caption)]


# --- the paper's tables ---------------------------------------------------------------------------


def table(found: Row, place: int) -> Section:
    """One published table, the `place`-th: overall figures, figures by class, the paper's tests."""
    rows = found["rows"]
    blocks: list[Block] = [Paragraph(found["remark"], "warning")] if found.get("remark") else []
    blocks += _overall([row for row in rows if not _place(row["metric"])], f"paper_{place}")
    blocks += _grids(rows)
    blocks += _repeated(found.get("tests") or [])
    return Section(f"paper-{place}", f"Paper: {found['title']}", blocks)


def _overall(rows: Sequence[Row], stem: str) -> list[Block]:
    """As few tables as will do: one an arm where there are more metrics, else one a metric."""
    arms = dict.fromkeys(str(row["arm"]) for row in rows)
    metrics = dict.fromkeys(str(row["metric"]) for row in rows)
    by_arm = len(arms) < len(metrics)
    blocks: list[Block] = []
    groups = list(arms if by_arm else metrics)
    for place, group in enumerate(groups):
        own = [row for row in rows if str(row["arm" if by_arm else "metric"]) == group]
        named = [(title(row["metric"]) if by_arm else str(row["arm"]), row) for row in own]
        what = group if by_arm else title(group)
        caption = f"{what}; difference is published minus clean protocol."
        made = Table(
            caption,
            ["Metric" if by_arm else "Arm", *HEAD, "Difference"],
            [estimates(name, row) for name, row in named],
        )
        if place >= MOST_OPEN:
            blocks.append(Details(what, [made]))
            continue
        if by_arm or group not in OVERALL:
            alt = f"{what}: paper, published and clean protocol"
            blocks += drawn(f"{stem}_{figures.name_of(group)}", named, alt, _says(what, own))
        blocks.append(made)
    return blocks


def _says(what: str, rows: Sequence[Row]) -> str:
    """How often the paper's figure lies above, in or below the clean interval."""
    sides = []
    for row in rows:
        theirs, (low, high) = (
            number(row.get("published_figure")),
            bounds(estimate(row.get("clean"))[1]),
        )
        if theirs is not None and low is not None and high is not None:
            sides.append("above" if theirs > high else "below" if theirs < low else "within")
    if not sides:
        return f"{what}, with 95% intervals where they can be had."
    places = [f"{side} in {n}" for side in ("above", "within", "below") if (n := sides.count(side))]
    return (
        f"{what}: the paper's figure beside the 95% interval of the clean protocol is "
        f"{listing(places)} of {count(len(sides), 'figure')}."
    )


def _place(metric: str) -> tuple[str, str, str] | None:
    """(kind of table, row, column) of a figure by class or epoch; None of any other."""
    inner, _, column = metric.rpartition(".")
    kind, _, row = inner.partition(".")
    if kind == "phases":
        phase, _, rest = row.partition(".per_class.")
        return (f"by class, after phase {phase}", rest, column) if rest else None
    return {"per_class": ("by class", row, column),
            "history": ("by epoch", f"Epoch {row}", column)}.get(kind)  # fmt: skip


def _grids(rows: Sequence[Row]) -> list[Block]:
    """One table an arm of what is by class or epoch: metrics as columns; paper and both protocols
    below each other."""
    grids: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        if place := _place(row["metric"]):
            kind, name, metric = place
            grids.setdefault(f"{row['arm']}, {kind}", {}).setdefault(name, {})[metric] = row
    blocks: list[Block] = []
    for at, (what, lines) in enumerate(grids.items()):
        metrics = list(dict.fromkeys(metric for cells in lines.values() for metric in cells))
        body = [line for name, cells in lines.items() for line in _lines(name, cells, metrics)]
        head = ["Epoch" if what.endswith("epoch") else "Class", *map(title, metrics)]
        made = Table(f"{what}.", head, body)
        blocks.append(made if at < MOST_OPEN else Details(what, [made]))
    return blocks


def _lines(name: str, cells: Mapping[str, Row], metrics: Sequence[str]) -> list[list[Cell | str]]:
    def line(source: str, write: Callable[[str, Row], Cell | str]) -> list[Cell | str]:
        return [f"{name}: {source}", *(write(m, cells[m]) if m in cells else "" for m in metrics)]

    lines = [line("paper", lambda metric, row: stated(metric, row.get("published_figure")))]
    both = [(row.get(key) or {}).get("why") for row in cells.values() for key in list(KINDS)[1:]]
    if set(both) == {NOT_HERE}:
        return [*lines, line("measured", lambda *_: NOT_HERE)]
    lines.append(line("published", lambda m, row: shown(m, row.get("published_protocol"))))
    return [*lines, line("clean", lambda m, row: shown(m, row.get("clean")))]


# --- the paper's own tests ------------------------------------------------------------------------


def _repeated(tests: Sequence[Row]) -> list[Block]:
    rows: list[list[Cell | str]] = []
    notes: list[Block] = []
    for test in tests:
        pair = f"{test['a']} against {test['b']}"
        kind = "McNemar" if test["test"] == "mcnemar" else f"t by class, {title(test['metric'])}"
        theirs = {"t" if test["test"] == "paired_t" else "chi2": test.get("statistic")}
        stated = _result({**theirs, "p": test.get("p")})
        rows.append(
            [
                f"{pair}: {kind}",
                "not stated" if isinstance(stated, Cell) else stated,
                _result(test["published_protocol"]),
                _result(test["clean"]),
            ]
        )
        if test.get("note"):
            notes.append(Paragraph(f"{pair}, {kind}: {test['note']}", "quiet"))
    if not rows:
        return []
    caption = "The paper's tests, repeated; in brackets what only one of the two got right."
    return [Table(caption, ["Test", *HEAD], rows), *notes]


def _result(found: Row) -> Cell | str:
    """Statistic and p of a test, with McNemar's discordant counts in brackets."""
    t, chi2, p = (number(found.get(key)) for key in ("t", "chi2", "p"))
    parts = [f"t {t:.4g}"] if t is not None else [f"χ² {chi2:.4g}"] if chi2 is not None else []
    parts += [f"p {small(p)}"] if p is not None else []
    if not parts:
        why = str(found.get("why") or found.get("degenerate") or "no reason was recorded")
        return Cell(NOT_RUN if NOT_RUN in why else "undefined", why)
    counts = f" ({found['b']}, {found['c']})" if "b" in found else ""
    return f"{', '.join(parts)}{counts}".replace("-", "−")


def small(p: float) -> str:
    """A p-value."""
    return f"{p:.3g}" if p >= 0.0001 or p == 0 else f"{p:.1e}"


# --- ablation -------------------------------------------------------------------------------------


def ablation(study: Row) -> Section:
    """The arms of an ablation, and what each factor adds."""
    metric = str(study["metric"])
    steps = study["kind"] == "cumulative"
    named = [(f"{row['arm']}: {_factors(row['factors'])}", row) for row in study["rows"]]
    what = title(metric)
    alt = f"{what} of each arm of the ablation: paper, published and clean protocol"
    blocks = drawn("ablation", named, alt, _says(what, study["rows"]))
    body = [estimates(name, row) for name, row in named]
    blocks.append(Table(f"{what} by arm.", ["Arm", *HEAD, "Difference"], body))
    if not study["effects"]:
        text = "The arms are not every combination of the factors, so no effects can be told apart."
        return Section("ablation", "Ablation", [*blocks, Paragraph(text)])
    caption = (
        f"{what}: each arm minus the one before."
        if steps
        else f"{what}: what a factor adds, on average over the other factors; × is by how much one "
        "factor adds more where the other is on."
    )
    effects = [_effect(metric, effect) for effect in study["effects"]]
    blocks.append(Table(caption, ["Effect", *HEAD], effects))
    if steps:
        caption = "McNemar's test of each step; in brackets what only one of the two got right."
        tests = [_tested(effect) for effect in study["effects"]]
        blocks.append(Table(caption, ["Step", *HEAD[1:]], tests))
    return Section("ablation", "Ablation", blocks)


def _factors(factors: Sequence[str]) -> str:
    return listing(list(map(str, factors))) if factors else "no factor"


def _effect(metric: str, effect: Row) -> list[Cell | str]:
    figure = number(effect.get("published_figure"))
    return [
        str(effect["effect"]),
        "not stated" if figure is None else difference(metric, figure),
        *(shown(metric, effect[key], difference) for key in ("published_protocol", "clean")),
    ]


def _tested(effect: Row) -> list[Cell | str]:
    both = [effect[key] for key in ("published_protocol", "clean")]
    cells = [_result(found.get("mcnemar") or {"why": found.get("why")}) for found in both]
    return [f"{effect['to']} against {effect['from']}", *cells]
