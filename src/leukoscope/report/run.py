"""The report of one run: from its folder to `report.html` and `figures/`."""

from __future__ import annotations

from pathlib import Path

from leukoscope.report import (
    page,
    sections_cases,
    sections_data,
    sections_results,
    sections_trust,
    verdict,
)
from leukoscope.report.inputs import Run, load
from leukoscope.report.numbers import clean


def write(run: Path) -> Path:
    """Write `report.html` and `figures/*.svg` with their data as `figures/*.csv` into the run.

    Only `metrics.json` is needed: a section whose input is absent says so and how to get it.
    Returns the report's path. Raises InputError where the folder has no metrics.json, a file in it
    is broken, or it can't be written to.
    """
    return page.write(build(load(Path(run))), Path(run))


def build(run: Run) -> page.Page:
    """The report of a loaded run as data."""
    sections = [
        verdict.section(run),
        sections_data.audit(run),
        sections_data.split(run),
        sections_data.samples(run),
        sections_results.learning(run),
        sections_results.confusion(run),
        sections_results.classes(run),
        sections_results.published(run),
        sections_results.protocols(run),
        sections_trust.baseline(run),
        sections_trust.calibration(run),
        sections_trust.robustness(run),
        sections_cases.failures(run),
        sections_cases.explanations(run),
        sections_cases.environment(run),
    ]
    title = str(run.recipe.get("title") or run.recipe.get("name") or "Foreign predictions")
    about = [
        f"arm {run.arm}" if run.arm else "",
        f"{run.protocol} protocol" if run.protocol else "",
        str(run.index.get("name") or ""),
        str(run.environment.get("started") or ""),
    ]
    return page.Page(
        title=clean(title),
        subtitle=", ".join(part for part in about if part) or run.folder.resolve().name,
        sections=[section for section in sections if section is not None],
        banner=verdict.SYNTHETIC if run.synthetic else "",
        footer=(verdict.PURPOSE,),
    )
