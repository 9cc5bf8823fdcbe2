"""K-fold cross-validation: a run a fold, and one run folder that speaks for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from leukoscope.data.index import CellIndex
from leukoscope.data.table import read_parquet, write_parquet
from leukoscope.evaluate.intervals import mean_sd
from leukoscope.files import output_folder, read_json, write_json, write_text
from leukoscope.recipes import records
from leukoscope.recipes.judgement import measure
from leukoscope.recipes.schema import Protocol, Recipe
from leukoscope.train import checkpoints, ranks

WITH_SPREAD = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "log_loss")


def run(
    one: Callable[[Path, int], Path],
    plan: Recipe,
    index: CellIndex,
    out: Path,
    protocol: Protocol,
    *,
    resume: bool,
) -> Path:
    """Train and judge every fold in `out/folds/`, then write what they say together into `out`.

    one: trains one fold into a folder. Each image is scored once, by the fold that held it out, so
    `predictions.parquet` and `metrics.json` are over all images; `metrics.json` also has `folds`,
    mean and standard deviation over the folds. `model/` is that of the fold with the lowest
    validation loss, a choice that looks at no test image.
    """
    with ranks.together():
        if ranks.first():
            records.claim_recipe(output_folder(out), plan, protocol, resume)
            records.write_recipe(out, plan, protocol)
    folds = [one(out / "folds" / str(number), number) for number in range(plan.split.folds)]
    if not ranks.first():
        return out
    classes = sorted(index.frame["label"].unique())
    metrics = [read_json(fold / "metrics.json") for fold in folds]
    _join(folds, out)
    predictions = _table(out / "predictions.parquet")
    write_json(out / "metrics.json", _together(predictions, metrics, classes))
    best = min(range(len(folds)), key=lambda k: _validation_loss(metrics[k]))
    for path in (folds[best] / "model").iterdir():
        checkpoints.share(path, out / "model" / path.name)
    _audits(folds, out)
    spent = [read_json(fold / "environment.json") for fold in folds]
    seconds = sum(entry["seconds"] for entry in spent)
    together = {"seconds": seconds, "training_seconds": records.training_seconds(out)}
    write_json(out / "environment.json", spent[0] | together | {"model_of_fold": best})
    return out


def _table(path: Path) -> pd.DataFrame:
    fix = "Train the run again."
    return read_parquet(path, "a table of a run", fix=fix, field="source").to_pandas()


def _join(folds: Sequence[Path], out: Path) -> None:
    """split.parquet, predictions.parquet and history.csv of all folds, with a column `fold`."""
    for name in ("split.parquet", "predictions.parquet"):
        frames = [_table(fold / name).assign(fold=k) for k, fold in enumerate(folds)]
        joined = pd.concat(frames, ignore_index=True)
        write_parquet(pa.Table.from_pandas(joined, preserve_index=False), out / name)
    histories = [
        pd.read_csv(fold / "history.csv").assign(fold=k)
        for k, fold in enumerate(folds)
        if (fold / "history.csv").is_file()  # no network may have been trained
    ]
    if histories:
        joined = pd.concat(histories, ignore_index=True)
        write_text(out / "history.csv", joined.to_csv(index=False, lineterminator="\n"))


def _together(
    predictions: pd.DataFrame, metrics: Sequence[dict[str, Any]], classes: Sequence[str]
) -> dict[str, Any]:
    role = metrics[0]["role"]
    part = predictions[predictions["role"] == role]
    result = {"role": role, "protocol": metrics[0]["protocol"], **measure(part, classes)}
    total = sum(m["n"] for m in metrics)
    result["baseline"] = {
        key: sum(m["baseline"][key] * m["n"] for m in metrics) / total
        for key in metrics[0]["baseline"]
    }
    result["phases"] = {}
    result["folds"] = {
        name: mean_sd(values) | {"values": values}
        for name, values in ((name, [m[name] for m in metrics]) for name in WITH_SPREAD)
    }
    result["notes"] = [
        *result["notes"],
        f"{len(metrics)}-fold cross-validation: every image is scored once, by the network that "
        "was not trained on it; the networks differ, so an interval is of the procedure.",
    ]
    return result


def _validation_loss(metrics: dict[str, Any]) -> float:
    """Of the kept network, on the part that chose it; under the published protocol that part is
    the one scored."""
    found = metrics.get("validation", metrics)["log_loss"]
    return float("inf") if found is None else float(found)


def _audits(folds: Sequence[Path], out: Path) -> None:
    """audit.json: that of the first fold that leaks, or of the first."""
    found = [read_json(fold / "audit.json") for fold in folds]
    worst = next((f for f in found if f["verdict"] == "leak"), found[0])
    write_json(out / "audit.json", worst)
