"""The report of one run, or of any predictions: `report.html` and `figures/`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from leukoscope.data import index as indexes
from leukoscope.report import (
    page,
    sections_cases,
    sections_data,
    sections_errors,
    sections_explain,
    sections_levels,
    sections_results,
    sections_robustness,
    sections_trust,
    verdict,
)
from leukoscope.report.inputs import Run, load
from leukoscope.report.numbers import clean
from leukoscope.report.page import Section


def write(run: Path) -> Path:
    """Write `report.html`, `errors.csv` and `figures/*.svg` with their data as `figures/*.csv`
    into the run.

    Only `metrics.json` is needed: a section whose input is absent says so and how to get it.
    Returns the report's path. Raises InputError where the folder has no metrics.json, a file in it
    is broken, or it can't be written to.
    """
    return page.write(build(load(Path(run))), Path(run))


def evaluated(
    source: Path, on: Path | None, metrics: dict[str, Any], frame: pd.DataFrame, out: Path
) -> Path:
    """The report of `evaluate` in the folder `out`; returns its path.

    metrics, frame: what recipes.judgement.judged gives for source and `on`. Of a run all sections
    are written; of foreign predictions and of an external test those that have something to show.
    """
    if on is None and source.is_dir():
        return page.write(build(replace(load(source), metrics=metrics)), out)
    texts = [c for c in ("image", "label", "predicted") if c in frame]
    run = Run(out, metrics, predictions=frame.astype(dict.fromkeys(texts, str)))
    if on is None:
        return page.write(build(run, "Foreign predictions", source.name), out)
    index = indexes.load(on)
    about = {"path": str(on.resolve()), "root": str(index.root), "name": index.name,
             "licence": index.licence, "citation": index.citation, "n": len(index.frame),
             "synthetic": index.synthetic}  # fmt: skip
    run = replace(run, environment={"protocol": metrics["protocol"], "index": about})
    return page.write(build(run, f"External test of {source.name}", index.name), out)


def build(run: Run, title: str = "", subtitle: str = "") -> page.Page:
    """The report of a loaded run as data; of predictions without a recipe a shorter one."""
    title = title or str(run.recipe.get("title") or run.recipe.get("name") or "Foreign predictions")
    about = [
        f"arm {run.arm}" if run.arm else "",
        f"{run.protocol} protocol" if run.protocol else "",
        str(run.index.get("name") or ""),
        str(run.environment.get("started") or ""),
    ]
    subtitle = subtitle or ", ".join(part for part in about if part) or run.folder.resolve().name
    found = _sections(run) if run.trained else _judged(run)
    return page.Page(
        title=clean(title),
        subtitle=subtitle,
        sections=[section for section in found if section is not None],
        banner=verdict.SYNTHETIC if run.synthetic else "",
        footer=(verdict.PURPOSE,),
    )


def _sections(run: Run) -> list[Section | None]:
    return [
        verdict.section(run),
        sections_data.audit(run),
        sections_data.split(run),
        sections_data.samples(run),
        sections_results.learning(run),
        *_figures(run),
        sections_results.published(run),
        sections_results.protocols(run),
        sections_trust.baseline(run),
        sections_trust.calibration(run),
        sections_robustness.section(run),
        sections_errors.section(run),
        sections_cases.failures(run),
        sections_explain.explanations(run),
        sections_cases.environment(run),
    ]


def _judged(run: Run) -> list[Section | None]:
    """What predictions alone can tell."""
    return [
        verdict.section(run),
        *_figures(run),
        sections_trust.baseline(run),
        sections_trust.calibration(run),
        sections_robustness.section(run),
        sections_errors.section(run),
        sections_cases.failures(run),
    ]


def _figures(run: Run) -> list[Section | None]:
    return [
        sections_results.confusion(run),
        sections_results.classes(run),
        sections_levels.section(run),
        sections_results.roc(run),
    ]
