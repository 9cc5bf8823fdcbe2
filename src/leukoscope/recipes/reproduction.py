"""`reproduce`: every arm under every protocol, resumable run by run, and the paper's tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leukoscope.errors import InputError, LeakError, UnknownNameError
from leukoscope.evaluate import intervals, significance
from leukoscope.files import output_folder, write_json
from leukoscope.recipes import ablation, judgement, published
from leukoscope.recipes.published import COLUMNS, Estimate, Evidence, Measured, absent
from leukoscope.recipes.schema import PROTOCOLS, Recipe, arms, raw, resolve

SHOWN = ("accuracy", "macro_f1")
BY_PATIENT = "patient_level.accuracy"

Runs = dict[tuple[str, str], Path]
"""Finished runs by (arm, protocol)."""


def reproduce(
    recipe: str,
    cells: Path,
    out: Path,
    *,
    chosen: Sequence[str] | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    weights: str | None = None,
    settings: Sequence[str] = (),
    record: Callable[[dict[str, Any], list[Path]], None] | None = None,
) -> dict[str, Any]:
    """Run what isn't finished yet and tabulate; see `Tables.fill` for what comes back.

    chosen: arms, all where None. An arm that can't run here (its weights are missing, say) is
    listed with the reason; InputError where none can. After each arm `out/reproduction.json` is
    written with all tables so far, and `record` called with them and with the arm's runs.
    """
    chosen = _chosen(recipe, chosen, protocols)
    tables = Tables.of(resolve(recipe, arm=chosen[0], settings=settings))
    output_folder(out)
    runs: Runs = {}
    not_run: list[dict[str, str]] = []
    found: dict[str, Any] = {}
    for arm in chosen:
        for protocol in protocols:
            run = out / f"{arm}-{protocol}"
            try:
                _run(recipe, cells, run, arm, protocol, weights, settings)
                runs[arm, protocol] = run
            except LeakError:
                raise
            except InputError as problem:
                if isinstance(problem.__cause__, OSError):
                    raise  # a full disk, say, which the next arm would meet as well
                not_run.append({"arm": arm, "protocol": protocol, "why": str(problem)})
        if runs:
            found = tables.fill(runs, not_run)
            write_json(out / "reproduction.json", found)
            if record is not None:
                record(found, [run for (own, _), run in runs.items() if own == arm])
    if not runs:
        raise InputError(f"No arm of {recipe} could run: {not_run[0]['why']}", fix="", field="arms")
    return found


def _chosen(recipe: str, asked: Sequence[str] | None, protocols: Sequence[str]) -> list[str]:
    """The arms to run; UnknownNameError for an arm or protocol that isn't there."""
    known = arms(raw(recipe))
    for kind, names, allowed in (("arm", asked or known, known),
                                 ("protocol", protocols, list(PROTOCOLS))):  # fmt: skip
        for name in names:
            if name not in allowed:
                raise UnknownNameError(kind, name, allowed)
    return list(asked or known)


def _run(
    recipe: str,
    cells: Path,
    run: Path,
    arm: str,
    protocol: Any,
    weights: str | None,
    settings: Sequence[str],
) -> None:
    """One run; a finished one is kept and half a one gone on with, if it was the same."""
    from leukoscope.recipes import runner

    runner.train(
        recipe, cells, run, protocol=protocol, arm=arm, weights=weights, settings=settings,
        resume=(run / "recipe.toml").is_file(),
    )  # fmt: skip


@dataclass(frozen=True)
class Tables:
    """What a recipe's paper states, to be filled from finished runs as often as one is added.

    What two runs were compared for is kept, since finished runs don't change.
    """

    published: Sequence[Mapping[str, Any]] = ()
    ablation: Mapping[str, Any] | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, plan: Recipe) -> Tables:
        """Of a resolved recipe; any arm has them all."""
        study = plan.ablation.model_dump() if plan.ablation else None
        return cls([table.model_dump() for table in plan.published], study)

    def fill(self, runs: Runs, not_run: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
        """reproduction.json.

        runs, not_run: what ran, and {arm, protocol, why} of what couldn't. table: overall figures,
        one row an arm and metric. tables: one a published table, see published.fill;
        tables_left_out: titles of those about data of other classes. ablation: see ablation.fill,
        or None. comparison, comparison_published: every pair of arms within the protocol,
        comparison.json of DESIGN.md, or None. Also writes `beside.json` into the runs of an arm
        that has both protocols.
        """
        measured = {key: Measured.read(run) for key, run in runs.items()}
        pairs = {protocol: self._pairs(runs, protocol) for protocol in PROTOCOLS}
        both = [arm for arm, protocol in runs if protocol == "published" and (arm, "clean") in runs]
        gaps = {
            arm: self._once(("gap", arm), _difference, runs[arm, "published"], runs[arm, "clean"])
            for arm in both
        }
        for arm in both:
            _beside(runs, arm, measured, gaps[arm])
        reasons = {(item["arm"], item["protocol"]): item["why"] for item in not_run}
        evidence = Evidence(
            measured, gaps, {p: found["pairs"] for p, found in pairs.items() if found}, reasons
        )
        classes = len(next(iter(measured.values())).metrics["classes"])
        applying, remark = published.applying(self.published, classes)
        return {
            "runs": [str(run) for run in runs.values()],
            "not_run": list(not_run),
            "table": _overall(evidence, applying),
            "tables": [published.fill(table, evidence, remark) for table in applying],
            "tables_left_out": [t["title"] for t in self.published if t not in applying],
            "ablation": None if self.ablation is None else ablation.fill(
                self.ablation, applying, evidence,
                lambda *asked: self._contrast(runs, *asked),
            ),
            "comparison": pairs["clean"],
            "comparison_published": pairs["published"],
        }  # fmt: skip

    def _once(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = function(*arguments)
        return self._kept[key]

    def _pairs(self, runs: Runs, protocol: str) -> dict[str, Any] | None:
        """Every pair of arms under one protocol, and Holm's p with more than one; None without."""
        own = [arm for arm, ran in runs if ran == protocol]
        if len(own) < 2:
            return None
        tested: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        for a, b in itertools.combinations(own, 2):
            pair = self._once((protocol, a, b), _pair, runs[a, protocol], runs[b, protocol], a, b)
            (failed if "why" in pair else tested).append(dict(pair))
        if len(tested) > 1:
            adjusted = {
                "mcnemar_p": significance.holm([pair["mcnemar"]["p"] for pair in tested]),
                "mcnemar_exact_p": significance.holm([p["mcnemar"]["exact_p"] for p in tested]),
                "permutation_p": significance.holm([pair["permutation_p"] for pair in tested]),
            }
            for place, pair in enumerate(tested):
                pair["holm"] = {name: values[place] for name, values in adjusted.items()}
        return {"pairs": tested, "not_tested": failed}

    def _contrast(
        self, runs: Runs, protocol: str, plus: Sequence[str], minus: Sequence[str], metric: str
    ) -> Estimate:
        sides = [[runs[arm, protocol] for arm in side] for side in (plus, minus)]
        key = (protocol, tuple(plus), tuple(minus), metric)
        return dict(self._once(key, _paired, *sides, metric))


def _paired(plus: Sequence[Path], minus: Sequence[Path], metric: str) -> Estimate:
    try:
        return ablation.paired(plus, minus, metric)
    except InputError as problem:
        return absent(str(problem))


def _pair(first: Path, second: Path, a: str, b: str) -> dict[str, Any]:
    """One pair of comparison.json; {a, b, why} where the two share no image."""
    try:
        (pair,) = judgement.compare([first, second], [a, b])["pairs"]
    except InputError as problem:
        return {"a": a, "b": b, "why": str(problem)}
    return dict(pair)


def _overall(evidence: Evidence, tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row an arm that ran and metric without a dotted path; estimates None where undefined."""
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in evidence.measured):
        stated = [m for t in tables for m in t["figures"].get(arm, {}) if "." not in m]
        for metric in dict.fromkeys([*SHOWN, BY_PATIENT, *stated]):
            row = evidence.row(arm, metric, published.claimed(tables, arm, metric))
            for column in (*COLUMNS.values(), "difference"):
                row[column] = row[column] if row[column]["value"] is not None else None
            if metric != BY_PATIENT or any(row[column] for column in COLUMNS.values()):
                rows.append(row)
    return rows


def _difference(published_run: Path, clean: Path) -> dict[str, dict[str, Any]]:
    """Published protocol minus clean, patients (or images) of both resampled together."""
    (theirs, classes), (ours, _) = map(judgement.read_predictions, (published_run, clean))
    return intervals.difference(
        judgement.scored(theirs, classes),
        judgement.scored(ours, classes),
        judgement.units_of(theirs),
        images=judgement.row_ids(theirs),
        images_b=judgement.row_ids(ours),
        groups_b=judgement.units_of(ours),
    )


def _beside(
    runs: Runs, arm: str, measured: Mapping[tuple[str, str], Measured], gap: dict[str, Any]
) -> None:
    """Put the other protocol's figures into each run's folder, for its report."""
    for own, other in (PROTOCOLS, PROTOCOLS[::-1]):
        metrics = measured[arm, other].metrics
        write_json(
            runs[arm, own] / "beside.json",
            {
                "protocol": other,
                "run": str(runs[arm, other]),
                "metrics": metrics,
                "ci": metrics["ci"],
                "difference": gap,
            },
        )
