"""`reproduce`: every arm under every protocol, resumable run by run, and one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukoscope.errors import InputError, LeakError, UnknownNameError
from leukoscope.evaluate import intervals
from leukoscope.files import output_folder, read_json, write_json
from leukoscope.recipes import judgement, runner
from leukoscope.recipes.schema import PROTOCOLS, arms, raw, resolve

SHOWN = ("accuracy", "macro_f1")


def reproduce(
    recipe: str,
    cells: Path,
    out: Path,
    *,
    chosen: Sequence[str] | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    weights: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Run what isn't finished yet and tabulate: {runs, not_run, table, comparison}.

    chosen: arms, all where None. An arm that can't run here (its weights are missing, say) is
    listed with the reason; InputError where none can.
    """
    known = arms(raw(recipe))
    chosen = list(chosen or known)
    for name in chosen:
        if name not in known:
            raise UnknownNameError("arm", name, known)
    for name in protocols:
        if name not in PROTOCOLS:
            raise UnknownNameError("protocol", name, PROTOCOLS)
    output_folder(out)
    runs: dict[tuple[str, str], Path] = {}
    not_run = []
    for arm in chosen:
        for protocol in protocols:
            run = out / f"{arm}-{protocol}"
            try:
                _run(recipe, cells, run, arm, protocol, weights, settings)
                runs[arm, protocol] = run
            except LeakError:
                raise
            except InputError as problem:
                not_run.append({"arm": arm, "protocol": protocol, "why": str(problem)})
    if not runs:
        raise InputError(f"No arm of {recipe} could run: {not_run[0]['why']}", fix="", field="arms")
    rows = [row for arm in chosen for row in _rows(recipe, arm, runs, settings)]
    clean = [run for (_, protocol), run in runs.items() if protocol == "clean"]
    found = {
        "runs": [str(run) for run in runs.values()],
        "not_run": not_run,
        "table": rows,
        "comparison": judgement.compare(clean) if len(clean) > 1 else None,
    }
    write_json(out / "reproduction.json", found)
    return found


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
    runner.train(
        recipe, cells, run, protocol=protocol, arm=arm, weights=weights, settings=settings,
        resume=(run / "recipe.toml").is_file(),
    )  # fmt: skip


def _rows(
    recipe: str, arm: str, runs: dict[tuple[str, str], Path], settings: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a metric of one arm, and `beside.json` into the arm's runs."""
    claimed = resolve(recipe, arm=arm, settings=settings).published
    found: dict[str, Any] = {
        p: read_json(runs[arm, p] / "metrics.json") for p in PROTOCOLS if (arm, p) in runs
    }
    gap = {}
    if len(found) == len(PROTOCOLS):
        gap = _difference(runs[arm, "published"], runs[arm, "clean"])
        _beside(runs, arm, found, gap)
    return [
        {
            "arm": arm,
            "metric": metric,
            "published_figure": claimed.get(metric),
            "published_protocol": _estimate(found.get("published"), metric),
            "clean": _estimate(found.get("clean"), metric),
            "difference": gap.get(metric),
        }
        for metric in dict.fromkeys([*SHOWN, *claimed])
        if found
    ]


def _estimate(found: dict[str, Any] | None, metric: str) -> dict[str, Any] | None:
    if found is None or found.get(metric) is None:
        return None
    low, high = found["ci"].get(metric) or (None, None)
    return {"value": found[metric], "low": low, "high": high}


def _difference(published: Path, clean: Path) -> dict[str, dict[str, Any]]:
    """Published protocol minus clean, patients (or images) of both resampled together."""
    (theirs, classes), (ours, _) = map(judgement.read_predictions, (published, clean))
    return intervals.difference(
        judgement.scored(theirs, classes),
        judgement.scored(ours, classes),
        judgement.units_of(theirs),
        images=_rows_of(theirs),
        images_b=_rows_of(ours),
        groups_b=judgement.units_of(ours),
    )


def _rows_of(frame: Any) -> list[str]:
    """An id a row: the published protocol scores several views of one image."""
    return [f"{image} view {view}" for image, view in zip(frame["image"], frame["view"],
                                                         strict=True)]  # fmt: skip


def _beside(
    runs: dict[tuple[str, str], Path], arm: str, found: dict[str, Any], gap: dict[str, Any]
) -> None:
    """Put the other protocol's figures into each run's folder, for its report."""
    for own, other in (PROTOCOLS, PROTOCOLS[::-1]):
        write_json(
            runs[arm, own] / "beside.json",
            {
                "protocol": other,
                "run": str(runs[arm, other]),
                "metrics": found[other],
                "ci": found[other]["ci"],
                "difference": gap,
            },
        )
