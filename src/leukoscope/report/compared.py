"""The report of `compare`: two or more models on the images that all of them predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from leukoscope.evaluate.metrics import SCALARS
from leukoscope.recipes import judgement
from leukoscope.report import comparison, figures, page, sections_results, sections_tests, verdict
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import bounds, count, listing, measured, number, percent, title
from leukoscope.report.page import Block, Cell, Missing, Paragraph, Plot, Section, Table
from leukoscope.report.sections_trust import reliability_bins

DRAWN = ("accuracy", "macro_f1")
MOST_DRAWN = 6  # models whose own figures are drawn
LEVEL = 0.05


def write(sources: Sequence[Path], found: Mapping[str, Any], out: Path) -> Path:
    """Write `report.html` and `figures/` of a comparison into `out`; returns the report's path.

    found: comparison.json of these sources. Figures of each model are of the shared images alone,
    and may thus differ from those of its own report. Raises InputError as recipes.judgement.align.
    """
    aligned = judgement.align(sources)
    runs = {
        name: Run(out, judgement.measure(frame, aligned.classes), predictions=frame)
        for name, frame in aligned.frames.items()
    }
    built = page.Page(
        title=f"Comparison of {count(len(runs), 'model')}",
        subtitle=listing(list(runs)),
        sections=[
            _verdict(runs, found),
            _overall(runs),
            sections_tests.section("tests", "Tests between models", found),
            _classes(runs),
            _confusion(runs),
            _roc(runs),
            _calibration(runs),
        ],
        banner=verdict.SYNTHETIC if any(map(comparison.synthetic, sources)) else "",
        footer=(verdict.PURPOSE,),
    )
    return page.write(built, out)


def _accuracy(run: Run) -> float:
    return number(run.metrics.get("accuracy")) or 0.0


def _verdict(runs: Mapping[str, Run], found: Mapping[str, Any]) -> Section:
    """The best model, and which of the others it clearly beats."""
    best = max(runs, key=lambda name: _accuracy(runs[name]))
    says = [
        f"On the {count(found['n'], 'image')} that all predicted, {best} is best: accuracy "
        f"{measured('accuracy', _accuracy(runs[best]), runs[best].limits('accuracy'))}."
    ]
    beaten: list[str] = []
    level: list[str] = []
    for pair in found["pairs"]:
        if best in (pair["a"], pair["b"]):
            p = number((pair.get("holm") or pair).get("permutation_p"))
            other = pair["b"] if pair["a"] == best else pair["a"]
            (beaten if p is not None and p < LEVEL else level).append(other)
    if beaten:
        says.append(f"The difference to {listing(beaten)} is clear at the 5% level.")
    if level:
        says.append(
            f"Between it and {listing(level)} chance may explain the difference: these images "
            "don't tell which is better."
        )
    left = [f"{name} {n:,}" for name, n in found["left_out"].items() if n]
    rest = f" Left out, since not all predicted them: {listing(left)}." if left else ""
    level_of = verdict.level(runs[best])
    blocks = [Paragraph(" ".join(says), "lead"), Paragraph(f"{level_of}{rest} {verdict.PURPOSE}")]
    return Section("verdict", "Verdict", blocks)


def _overall(runs: Mapping[str, Run]) -> Section:
    drawings = []
    for metric in DRAWN:
        known = [(n, run) for n, run in runs.items() if run.metrics[metric] is not None]
        data = [(n, run.metrics[metric], *bounds(run.limits(metric))) for n, run in known]
        frame = pd.DataFrame(data, columns=["name", "value", "low", "high"])
        alt = f"{title(metric)} of each model with 95% intervals"
        if len(frame):
            drawings.append(figures.ranges(metric, frame, alt, title=title(metric)))
    caption = (
        "Accuracy and macro F1 with 95% intervals. Intervals that overlap say little here, since "
        "the images are the same: what counts is the test of each pair, below."
    )
    rows: list[list[Cell | str]] = [
        [title(metric), *(sections_results.value(run, metric) for run in runs.values())]
        for metric in SCALARS
    ]
    table = Table("Every figure on the shared images, with 95% intervals.", ["Metric", *runs], rows)
    return Section("overall", "Figures overall", [Plot(drawings, caption), table])


def _classes(runs: Mapping[str, Run]) -> Section:
    """Recall, F1 and AUC of each class, models as columns."""
    blocks: list[Block] = [_by_class(runs, metric) for metric in ("recall", "f1", "roc_auc")]
    return Section("classes", "Figures by class", blocks)


def _by_class(runs: Mapping[str, Run], metric: str) -> Table:
    tables = {name: run.metrics["per_class"] for name, run in runs.items()}
    names = next(iter(runs.values())).classes
    rows: list[list[Cell | str]] = []
    gaps: dict[str, float] = {}
    for label in names:
        cells = [
            sections_results.value(run, f"per_class.{label}.{metric}") for run in runs.values()
        ]
        known = [v for t in tables.values() if (v := number(t[label].get(metric))) is not None]
        if len(known) > 1:
            gaps[label] = max(known) - min(known)
        support = next(iter(tables.values()))[label]["support"]
        rows.append([label, f"{support:,}", *cells])
    caption = f"{title(metric)} by class."
    if gaps and max(gaps.values()) > 0:
        widest = max(gaps, key=lambda label: gaps[label])
        caption = f"{title(metric)} by class; the models differ most on {widest}."
    return Table(caption, ["Class", "Support", *runs], rows)


def _confusion(runs: Mapping[str, Run]) -> Section:
    drawings = [
        figures.confusion_matrix(run.confusions, run.classes, str(at), name)
        for at, (name, run) in enumerate(_drawn(runs), 1)
    ]
    caption = (
        "Rows true, columns predicted; darker means a larger share of the row. What is dark off "
        "the diagonal in one matrix alone is what that model gets wrong by itself."
    )
    return Section("confusion", "Confusion matrices", [Plot(drawings, caption + _more(runs))])


def _roc(runs: Mapping[str, Run]) -> Section:
    own = [
        sections_results.roc(run, str(at), name) for at, (name, run) in enumerate(_drawn(runs), 1)
    ]
    plots = [block for section in own for block in section.blocks if isinstance(block, Plot)]
    if not plots:
        return own[0]
    caption = (
        "ROC curves of each class against the rest, the hardest classes named; the AUC of every "
        "class stands in the table above."
    )
    drawings = [drawing for plot in plots for drawing in plot.drawings]
    return Section("roc", "ROC curves", [Plot(drawings, caption + _more(runs))])


def _calibration(runs: Mapping[str, Run]) -> Section:
    name = "Calibration"
    known = {n: run for n, run in runs.items() if run.scored and run.scored.probs is not None}
    if not known:
        text = (
            "Without class probabilities calibration can't be judged; give prob_<class> columns to"
        )
        return Section("calibration", name, [Missing(text, "leukoscope compare A B --report DIR")])
    shown = {n: reliability_bins(run) for n, run in list(known.items())[:MOST_DRAWN]}
    eces = {n: e for n, run in known.items() if (e := number(run.metrics.get("ece"))) is not None}
    best = min(eces, key=lambda n: eces[n])
    caption = (
        f"Share of right answers against stated confidence: {best} keeps most closely to what it "
        f"states, with an expected calibration error of {percent(eces[best])}. Below the diagonal "
        f"a model claims more than it keeps.{_more(known)}"
    )
    return Section("calibration", name, [Plot([figures.reliability(shown)], caption)])


def _drawn(runs: Mapping[str, Run]) -> list[tuple[str, Run]]:
    return list(runs.items())[:MOST_DRAWN]


def _more(runs: Mapping[str, Run]) -> str:
    return f" The first {MOST_DRAWN} models are drawn." if len(runs) > MOST_DRAWN else ""
