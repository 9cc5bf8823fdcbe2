"""The report of several runs: arms beside protocols beside the paper, and tests between arms."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from leukoscope import files
from leukoscope.report import figures, page, verdict
from leukoscope.report.numbers import (
    bounds,
    count,
    difference,
    estimate,
    is_decimal,
    listing,
    measured,
    number,
    points,
    title,
)
from leukoscope.report.page import Block, Cell, Missing, Paragraph, Plot, Section, Table

Row = Mapping[str, Any]
KINDS = {
    "published_figure": "figure of the paper",
    "published_protocol": "published protocol",
    "clean": "clean protocol",
}


def write(
    folder: Path,
    runs: Sequence[Path],
    rows: Sequence[Row],
    tests: Mapping[str, Any] | None = None,
    *,
    title: str = "Comparison of runs",
    not_run: Sequence[Row] = (),
) -> Path:
    """Write `report.html` and `figures/` into `folder`; returns the report's path.

    `runs`: folders with a report each, linked. `rows`: one an arm and metric, with the keys `arm`,
    `metric`, `published_figure` (a fraction or None) and `published_protocol`, `clean`,
    `difference` (published protocol minus clean), each `{value, low, high}` or None.
    `tests`: comparison.json of DESIGN.md. `not_run`: `{arm, protocol, why}` of what couldn't run.
    Raises InputError where the folder can't be written to.
    """
    metrics = list(dict.fromkeys(str(row["metric"]) for row in rows))
    sections = [
        _verdict(rows),
        *(_metric(metric, [row for row in rows if row["metric"] == metric]) for metric in metrics),
        _tests(tests),
        _runs(Path(folder), runs, not_run),
    ]
    arms = len({row["arm"] for row in rows})
    built = page.Page(
        title=title,
        subtitle=f"{count(arms, 'arm')}, {count(len(runs), 'run')}",
        sections=sections,
        banner=verdict.SYNTHETIC if any(map(_synthetic, runs)) else "",
        footer=(verdict.PURPOSE,),
    )
    return page.write(built, Path(folder))


def _verdict(rows: Sequence[Row]) -> Section:
    """The best arm under the clean protocol and what the published one adds."""
    name = "accuracy" if any(r["metric"] == "accuracy" for r in rows) else ""
    name = name or (str(rows[0]["metric"]) if rows else "")
    clean = [(r, *estimate(r.get("clean"))) for r in rows if r["metric"] == name]
    known = [(row, value, limits) for row, value, limits in clean if value is not None]
    says = []
    if known:
        row, value, limits = max(known, key=lambda item: item[1] or 0.0)
        says.append(
            f"Under the clean protocol {row['arm']} is best, with {title(name).lower()} "
            f"{measured(name, value or 0.0, limits)}."
        )
    gaps = [(r["arm"], *estimate(r.get("difference"))) for r in rows if r["metric"] == name]
    flattering = [str(arm) for arm, _, limits in gaps if (bounds(limits)[0] or 0) > 0]
    compared = [value for _, value, _ in gaps if value is not None]
    if compared:
        mean = sum(compared) / len(compared)
        says.append(
            f"The published protocol reads {points(mean)} {'higher' if mean >= 0 else 'lower'} on "
            f"average; it clearly flatters {listing(flattering) if flattering else 'no arm'}."
        )
    text = " ".join(says) or "No arm was measured under the clean protocol."
    return Section("verdict", "Verdict", [Paragraph(text, "lead"), Paragraph(verdict.PURPOSE)])


def _metric(metric: str, rows: Sequence[Row]) -> Section:
    table: list[list[Cell | str]] = []
    data = []
    for row in rows:
        cells: list[Cell | str] = [str(row["arm"])]
        for key, kind in KINDS.items():
            value, limits = estimate(row.get(key))
            absent = "not stated" if key == "published_figure" else "not run"
            cells.append(absent if value is None else measured(metric, value, limits))
            if value is not None:
                data.append((str(row["arm"]), kind, value, *bounds(limits)))
        gap, limits = estimate(row.get("difference"))
        cells.append("not known" if gap is None else difference(metric, gap, limits))
        table.append(cells)
    head = ["Arm", "Paper", "Published protocol", "Clean protocol", "Difference"]
    caption = f"{title(metric)} by arm, with 95% intervals; difference is published minus clean."
    blocks: list[Block] = []
    if data:
        frame = pd.DataFrame(data, columns=["name", "kind", "value", "low", "high"])
        stem = f"arms_{re.sub('[^a-z0-9]+', '_', metric.lower())}"
        alt = f"{title(metric)} of each arm: paper, published and clean protocol"
        blocks.append(
            Plot(
                [figures.ranges(stem, frame, alt, share=not is_decimal(metric))],
                _metric_says(metric, rows),
            )
        )
    name = re.sub("[^a-z0-9]+", "-", metric.lower())
    return Section(f"metric-{name}", title(metric), [*blocks, Table(caption, head, table)])


def _metric_says(metric: str, rows: Sequence[Row]) -> str:
    pairs = [(estimate(r.get("published_figure"))[0], estimate(r.get("clean"))) for r in rows]
    both = [
        (theirs, ends)
        for theirs, (_, ends) in pairs
        if theirs is not None and bounds(ends)[0] is not None
    ]
    if not both:
        return f"{title(metric)} with 95% intervals; the paper states no figure to compare with."
    over = sum(theirs > (bounds(ends)[1] or 1.0) for theirs, ends in both)
    return (
        f"{title(metric)} with 95% intervals: the paper's figure lies above the clean interval in "
        f"{over} of {count(len(both), 'arm')}."
    )


def _tests(tests: Mapping[str, Any] | None) -> Section:
    name = "Tests between arms"
    pairs = (tests or {}).get("pairs") or []
    if not pairs:
        text = "No two arms were tested against each other; to do so, run"
        return Section("tests", name, [Missing(text, "leukoscope compare A B -o comparison.json")])
    rows: list[list[Cell | str]] = []
    for pair in pairs:
        mcnemar = pair.get("mcnemar") or {}
        rows.append(
            [
                f"{pair.get('a')} against {pair.get('b')}",
                f"{mcnemar.get('b', '')} and {mcnemar.get('c', '')}",
                _statistic(mcnemar.get("chi2"), _why(mcnemar)),
                _p(mcnemar.get("p"), _why(mcnemar)),
                _p(mcnemar.get("exact_p"), _why(mcnemar)),
                _p(pair.get("permutation_p")),
                _gap((pair.get("difference") or {}).get("accuracy")),
            ]
        )
        if len(pairs) > 1:
            rows[-1].insert(-1, _p((pair.get("holm") or {}).get("permutation_p")))
    head = ["Pair", "Discordant", "χ²", "p", "exact p", "permutation p", "Accuracy difference"]
    if len(pairs) > 1:
        head.insert(-1, "after Holm")
    held = [(pair.get("holm") or pair).get("permutation_p") for pair in pairs]
    clear = sum(p is not None and p < 0.05 for p in map(number, held))
    caption = (
        f"McNemar's test and a permutation test: {clear} of {count(len(pairs), 'pair')} "
        f"differ at the 5% level by permutation{', after Holm' if len(pairs) > 1 else ''}."
    )
    return Section("tests", name, [Table(caption, head, rows), *_paired_t(pairs)])


def _paired_t(pairs: Sequence[Mapping[str, Any]]) -> list[Block]:
    rows: list[list[Cell | str]] = []
    for pair in pairs:
        for metric, result in (pair.get("paired_t") or {}).items():
            who = f"{pair.get('a')} against {pair.get('b')}: {title(metric).lower()}"
            reason = _why(result)
            rows.append([who, _statistic(result.get("t"), reason), _p(result.get("p"), reason)])
    if not rows:
        return []
    return [Table("Paired t-tests over the values of each class.", ["Pair", "t", "p"], rows)]


def _why(result: Mapping[str, Any]) -> str:
    """Why a test is degenerate, or ""."""
    found = result.get("degenerate")
    return found if isinstance(found, str) else "the test is degenerate" if found else ""


def _statistic(value: object, reason: str = "") -> Cell | str:
    found = number(value)
    why = reason or "no reason was recorded"
    return Cell("undefined", why) if found is None else f"{found:.4f}".replace("-", "−")


def _p(value: object, reason: str = "") -> Cell | str:
    found = number(value)
    if found is None:
        return Cell("undefined", reason or "no reason was recorded")
    return f"{found:.3g}" if found >= 0.0001 else f"{found:.1e}"


def _gap(item: object) -> Cell | str:
    value, limits = estimate(item)
    if value is None:
        return Cell("undefined", "the difference was not computed")
    return difference("accuracy", value, limits)


def _synthetic(run: Path) -> bool:
    path = Path(run) / "environment.json"
    found = files.read_json(path) if path.is_file() else None
    return isinstance(found, Mapping) and bool((found.get("index") or {}).get("synthetic"))


def _runs(folder: Path, runs: Sequence[Path], not_run: Sequence[Row]) -> Section:
    if not runs and not not_run:
        return Section("runs", "Single runs", [Paragraph("No run folders were given.")])
    rows: list[list[Cell | str]] = []
    for run in runs:
        target = os.path.relpath(Path(run) / "report.html", folder)
        link = quote(Path(target).as_posix())
        known = (Path(run) / "report.html").is_file()
        rows.append([Path(run).name, Cell("report.html", href=link) if known else "no report"])
    for item in not_run:
        rows.append([f"{item.get('arm')}, {item.get('protocol')}", f"not run: {item.get('why')}"])
    table = Table("The runs that these tables rest on.", ["Run", "Report"], rows, frozenset({1}))
    return Section("runs", "Single runs", [table])
