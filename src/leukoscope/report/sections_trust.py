"""Sections on how far to trust the figures: baseline and calibration."""

from __future__ import annotations

import numpy as np
import pandas as pd

from leukoscope.evaluate.calibration import reliability
from leukoscope.evaluate.intervals import wilson
from leukoscope.evaluate.metrics import ECE_BINS
from leukoscope.report import figures, verdict
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import bounds, number, percent
from leukoscope.report.page import Missing, Paragraph, Plot, Section


def baseline(run: Run) -> Section:
    """The model beside classifiers that know nothing of cells."""
    name = "Trivial baseline"
    rivals = verdict.baselines(run)
    accuracy = number(run.metrics.get("accuracy"))
    if not rivals or accuracy is None:
        text = "No trivial baseline was measured; to have one, audit the images and evaluate again:"
        command = "leukoscope audit cells.parquet --split split.parquet --json audit.json"
        return Section("baseline", name, [Missing(text, command)])
    data = [(r.name, r.value, *bounds(r.limits)) for r in rivals]
    data.append(("This model", accuracy, *bounds(run.limits("accuracy"))))
    frame = pd.DataFrame(data, columns=["name", "value", "low", "high"])
    drawing = figures.ranges(
        "baseline", frame, "Accuracy of the trivial baselines and of this model", title="Accuracy"
    )
    return Section("baseline", name, [Plot([drawing], verdict.gain(run))])


def calibration(run: Run) -> Section:
    """Whether a stated confidence of 90 % is right nine times in ten."""
    name = "Calibration"
    if run.scored is None or run.scored.probs is None:
        text = (
            "Without class probabilities calibration can't be judged; give prob_<class> columns to"
        )
        command = "leukoscope evaluate predictions.csv -o metrics.json"
        return Section("calibration", name, [Missing(text, command)])
    bins = reliability_bins(run)
    ece = number(run.metrics.get("ece"))
    drawing = figures.reliability({"this model": bins})
    promises = [Paragraph(text) for text in _promises(run)]
    return Section("calibration", name, [Plot([drawing], _reliable(bins, ece)), *promises])


def _promises(run: Run) -> list[str]:
    """Sentences on prediction sets and novelty, where the run measured them."""
    trust = run.metrics.get("trust")
    if not isinstance(trust, dict):
        return []
    sets = trust["prediction_sets"]
    low, high = sets["coverage_ci"]
    kept = "within" if low <= sets["nominal"] <= high else "outside"
    return [
        f"Prediction sets: {percent(sets['nominal'])} of them are meant to hold the true class; "
        f"{percent(sets['coverage'])} do, of {sets['n']:,} images, and what was meant lies {kept} "
        f"the 95% interval, {percent(low)} to {percent(high)}. A set has {sets['mean_size']:.2f} "
        f"classes on average; {percent(sets['single'])} have one, {percent(sets['empty'])} none.",
        f"Novelty: {percent(trust['accepted_as_known'])} of these images, all of known classes, "
        "pass as known; 95% is what its threshold was set to on validation.",
    ]


def reliability_bins(run: Run) -> pd.DataFrame:
    """Per bin of confidence `low, high, n, confidence, accuracy, accuracy_low, accuracy_high`
    (95 %, Wilson), of a run with probabilities; NaN where a bin is empty."""
    found = run.scored
    assert found is not None and found.probs is not None
    bins = pd.DataFrame(reliability(found.probs, found.labels))
    bins = bins.astype({"confidence": float, "accuracy": float})
    right = (bins["accuracy"] * bins["n"]).round()
    ends = [wilson(int(r), n) if n else (np.nan, np.nan)
            for r, n in zip(right.fillna(0), bins["n"], strict=True)]  # fmt: skip
    return bins.assign(accuracy_low=[low for low, _ in ends], accuracy_high=[h for _, h in ends])


def _reliable(bins: pd.DataFrame, ece: float | None) -> str:
    n = bins["n"].to_numpy()
    stated = float(np.nansum(bins["confidence"] * n) / n.sum())
    right = float(np.nansum(bins["accuracy"] * n) / n.sum())
    gap = stated - right
    kind = "overconfident" if gap > 0.02 else "underconfident" if gap < -0.02 else "about right"
    text = (
        f"Mean confidence {percent(stated)}, share correct {percent(right)}: on the whole {kind}."
    )
    known = (
        "" if ece is None else f" Expected calibration error {percent(ece)} over {ECE_BINS} bins."
    )
    return (
        f"{text}{known} Points below the diagonal mean that the model claims more than it keeps; "
        "bars are 95% intervals of a bin, long where it holds few images."
    )
