"""The papers' tables: each figure looked up in what a run measured. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from leukoscope.evaluate.significance import paired_t
from leukoscope.files import read_json
from leukoscope.recipes.schema import PROTOCOLS

NOT_HERE = "not on this data"
NOT_RUN = "not run"
COLUMNS = {"published": "published_protocol", "clean": "clean"}

Estimate = dict[str, Any]
"""{value, low, high}; where value is None also `why`."""


def absent(why: str) -> Estimate:
    """An estimate that there is none of, with the reason."""
    return {"value": None, "low": None, "high": None, "why": why}


def _exactly(value: float | None, why: str) -> Estimate:
    """An estimate without an interval."""
    return absent(why) if value is None else {"value": value, "low": None, "high": None}


@dataclass(frozen=True)
class Measured:
    """What a run measured: metrics.json, history.csv and environment.json."""

    metrics: Mapping[str, Any]
    history: pd.DataFrame | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, run: Path) -> Measured:
        """Of a finished run's folder."""
        history = run / "history.csv"
        return cls(
            read_json(run / "metrics.json"),
            pd.read_csv(history) if history.is_file() else None,
            read_json(run / "environment.json"),
        )

    def lookup(self, path: str) -> Estimate:
        """The figure under a dotted path, see recipes.schema.PublishedTable; a class name may hold
        dots. What this run can't have, such as another data set's classes, is NOT_HERE."""
        head, _, rest = path.partition(".")
        if head == "history":
            return self._epoch(*rest.partition(".")[::2])
        if head == "environment":
            return _exactly(_number(self.environment.get(rest)), NOT_HERE)
        if head == "phases":
            phase, _, rest = rest.partition(".")
            return _within((self.metrics.get("phases") or {}).get(phase), rest)
        if head == "validation" and self.metrics.get("role") == "validation":
            return _within(self.metrics, rest)
        if head in ("validation", "patient_level"):
            part = self.metrics.get(head)
            why = (self.metrics.get("undefined") or {}).get(head, NOT_HERE)
            return absent(why) if part is None else _within(part, rest)
        return _within(self.metrics, path)

    def _epoch(self, epoch: str, column: str) -> Estimate:
        if self.history is None or column not in self.history:
            return absent(NOT_HERE)
        rows = self.history[self.history["epoch"].astype(str) == epoch]
        if rows.empty:
            return absent(f"training ended after epoch {self.history['epoch'].max()}")
        if len(rows) > 1:
            return absent("several phases or folds have this epoch")
        return _exactly(_number(float(rows[column].iloc[0])), "not recorded")


def _within(node: Any, path: str) -> Estimate:
    """A figure of one table in the shape of metrics.json, with its interval or its reason."""
    if not isinstance(node, Mapping):
        return absent(NOT_HERE)
    value = _number(_walk(node, path))
    if value is None:
        return absent((node.get("undefined") or {}).get(path, NOT_HERE))
    low, high = (node.get("ci") or {}).get(path) or (None, None)
    return {"value": value, "low": low, "high": high}


def _walk(node: Mapping[str, Any], path: str) -> Any:
    if path in node:
        return node[path]
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        inner = node.get(".".join(parts[:end]))
        found = _walk(inner, ".".join(parts[end:])) if isinstance(inner, Mapping) else None
        if found is not None:
            return found
    return None


def _number(value: Any) -> float | None:
    """A number that is one; NaN and infinity count as none."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and abs(value) < float("inf") else None


# --- tables ---------------------------------------------------------------------------------------


def applying(
    tables: Sequence[Mapping[str, Any]], classes: int
) -> tuple[list[Mapping[str, Any]], str]:
    """The tables about data of so many classes; all of them, with a remark, where none is."""
    chosen = [table for table in tables if table.get("classes", 0) in (0, classes)]
    if chosen or not tables:
        return chosen, ""
    counts = sorted({table["classes"] for table in tables})
    theirs = " or ".join(map(str, counts))
    return list(tables), (
        f"The paper's figures are about data of {theirs} classes, these images have {classes}: "
        "another data set, so that the difference is one of data as much as of method."
    )


def claimed(tables: Sequence[Mapping[str, Any]], arm: str, metric: str) -> float | None:
    """The paper's figure for an arm: of the first table that states one."""
    found = (table["figures"].get(arm, {}).get(metric) for table in tables)
    return next((value for value in found if value is not None), None)


@dataclass(frozen=True)
class Evidence:
    """What `reproduce` has so far.

    measured: by (arm, protocol). gaps: by arm {metric: {value, low, high}}, published protocol
    minus clean. pairs: by protocol the pairs of comparison.json, arms for names. reasons: why an
    (arm, protocol) has no run.
    """

    measured: Mapping[tuple[str, str], Measured]
    gaps: Mapping[str, Mapping[str, Estimate]]
    pairs: Mapping[str, Sequence[Mapping[str, Any]]]
    reasons: Mapping[tuple[str, str], str]

    def estimate(self, arm: str, protocol: str, metric: str) -> Estimate:
        """A measured figure, or why there is none."""
        run = self.measured.get((arm, protocol))
        if run is None:
            return absent(self.why_not(arm, protocol))
        return run.lookup(metric)

    def why_not(self, arm: str, protocol: str) -> str:
        """NOT_RUN and, where it was tried, the reason."""
        reason = self.reasons.get((arm, protocol), "")
        return f"{NOT_RUN}: {reason}" if reason else NOT_RUN

    def difference(self, arm: str, metric: str) -> Estimate:
        """Published protocol minus clean; with an interval where the metric has one."""
        known = self.gaps.get(arm, {}).get(metric)
        if known is not None:
            return dict(known) if known["value"] is not None else absent("undefined in one of them")
        ends = [self.estimate(arm, protocol, metric) for protocol in ("published", "clean")]
        for end in ends:
            if end["value"] is None:
                return absent(end["why"])
        return _exactly(ends[0]["value"] - ends[1]["value"], "")

    def pair(self, a: str, b: str, protocol: str) -> Mapping[str, Any] | str:
        """The pair of comparison.json as a against b, turned round where it was tested as b
        against a; the reason where it wasn't tested."""
        for arm in (a, b):
            if (arm, protocol) not in self.measured:
                return f"{arm} {self.why_not(arm, protocol)}"
        for pair in self.pairs.get(protocol, ()):
            if {pair["a"], pair["b"]} == {a, b}:
                return pair if pair["a"] == a else _turned(pair)
        return "the two were not tested against each other"

    def row(self, arm: str, metric: str, figure: float | None) -> dict[str, Any]:
        """One row of a table: paper, both protocols, difference."""
        return {
            "arm": arm,
            "metric": metric,
            "published_figure": figure,
            **{COLUMNS[p]: self.estimate(arm, p, metric) for p in PROTOCOLS},
            "difference": self.difference(arm, metric),
        }


def _turned(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair of comparison.json with a and b exchanged."""
    test = pair["mcnemar"]
    gaps = {
        metric: {
            "value": None if gap["value"] is None else -gap["value"],
            "low": None if gap["high"] is None else -gap["high"],
            "high": None if gap["low"] is None else -gap["low"],
        }
        for metric, gap in pair["difference"].items()
    }
    tests = {
        metric: found | {"t": None if found["t"] is None else -found["t"]}
        for metric, found in pair["paired_t"].items()
    }
    return {
        **pair,
        "a": pair["b"],
        "b": pair["a"],
        "mcnemar": test | {"b": test["c"], "c": test["b"]},
        "difference": gaps,
        "paired_t": tests,
    }


def fill(table: Mapping[str, Any], evidence: Evidence, remark: str = "") -> dict[str, Any]:
    """A published table with what was measured: {title, classes, remark, rows, tests}."""
    return {
        "title": table["title"],
        "classes": table.get("classes", 0),
        "remark": remark,
        "rows": [
            evidence.row(arm, metric, figure)
            for arm, figures in table["figures"].items()
            for metric, figure in figures.items()
        ],
        "tests": [
            {**test, **{COLUMNS[p]: _repeat(test, evidence, p) for p in PROTOCOLS}}
            for test in table.get("tests", [])
        ],
    }


def _repeat(test: Mapping[str, Any], evidence: Evidence, protocol: str) -> dict[str, Any]:
    """The paper's test on these predictions; {why} where it can't be repeated."""
    pair = evidence.pair(test["a"], test["b"], protocol)
    if isinstance(pair, str):
        return {"why": pair}
    if test["test"] == "mcnemar":
        return {**pair["mcnemar"], "permutation_p": pair["permutation_p"]}
    metric = test.get("metric", "")
    if metric in pair["paired_t"]:
        return dict(pair["paired_t"][metric])
    gap = pair["difference"].get(metric, {}).get("value")
    if gap is None:
        return {"why": f"no values by class of {metric or 'an unnamed metric'}"}
    # One value for all classes, as one paper tested accuracy: every difference is the same.
    classes = evidence.measured[test["a"], protocol].metrics["classes"]
    return dict(paired_t([gap] * len(classes), [0.0] * len(classes)))
