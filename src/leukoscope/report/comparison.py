"""The report of `reproduce`: arms beside protocols beside the paper, and tests between arms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from leukoscope import files
from leukoscope.report import page, sections_paper, sections_tests, verdict
from leukoscope.report.figures import name_of
from leukoscope.report.numbers import (
    bounds,
    count,
    estimate,
    listing,
    measured,
    points,
    title,
)
from leukoscope.report.page import Block, Cell, Paragraph, Section, Table
from leukoscope.report.sections_paper import OVERALL, Row, drawn, estimates


def write(folder: Path, found: Mapping[str, Any], *, title: str = "Comparison of runs") -> Path:
    """Write `report.html` and `figures/` into `folder`; returns the report's path.

    `found`: reproduction.json, see recipes.reproduction.Tables.fill; only `runs` (folders with a
    report each, linked) and `table` must be there.
    Raises InputError where the folder can't be written to.
    """
    rows, runs = found["table"], [Path(run) for run in found["runs"]]
    known = [m for m in OVERALL if any(row["metric"] == m for row in rows)]
    study = found.get("ablation")
    sections = [
        _verdict(rows),
        *(_metric(metric, [row for row in rows if row["metric"] == metric]) for metric in known),
        *(sections_paper.table(one, i) for i, one in enumerate(found.get("tables") or [], 1)),
        *([sections_paper.ablation(study)] if study else []),
        *_tests(found),
        _runs(Path(folder), runs, found.get("not_run") or [], found.get("tables_left_out") or []),
    ]
    arms = len({row["arm"] for row in rows})
    built = page.Page(
        title=title,
        subtitle=f"{count(arms, 'arm')}, {count(len(runs), 'run')}",
        sections=sections,
        banner=verdict.SYNTHETIC if any(map(synthetic, runs)) else "",
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
    named = [(str(row["arm"]), row) for row in rows]
    alt = f"{title(metric)} of each arm: paper, published and clean protocol"
    caption = f"{title(metric)} by arm, with 95% intervals; difference is published minus clean."
    head = ["Arm", *sections_paper.HEAD, "Difference"]
    blocks: list[Block] = [
        *drawn(f"arms_{name_of(metric)}", named, alt, _metric_says(metric, rows)),
        Table(caption, head, [estimates(name, row) for name, row in named]),
    ]
    return Section(f"metric-{name_of(metric)}", title(metric), blocks)


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


def _tests(found: Mapping[str, Any]) -> list[Section]:
    """The tests within each protocol."""
    published = found.get("comparison_published")
    clean = sections_tests.section(
        "tests", "Tests between arms, clean protocol", found.get("comparison")
    )
    if not published:
        return [clean]
    name, heading = "tests-published", "Tests between arms, published protocol"
    return [clean, sections_tests.section(name, heading, published)]


def synthetic(run: Path) -> bool:
    """Whether a run's images were generated."""
    path = Path(run) / "environment.json"
    found = files.read_json(path) if path.is_file() else None
    return isinstance(found, Mapping) and bool((found.get("index") or {}).get("synthetic"))


def _runs(
    folder: Path, runs: Sequence[Path], not_run: Sequence[Row], left_out: Sequence[str]
) -> Section:
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
    notes = [
        Paragraph(f"Left out, since it is about data of other classes: {name}.", "quiet")
        for name in left_out
    ]
    return Section("runs", "Single runs", [table, *notes])
