"""The commands as plain functions of the same names; the command line only calls these.

Each imports what it needs when called, so that `predict` starts without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope.compat import require
from leukoscope.files import write_json

if TYPE_CHECKING:
    import pandas as pd

    from leukoscope.data.index import CellIndex


def index(src: Path, out: Path, *, layout: str = "auto") -> CellIndex:
    """Index a folder (or csv, npz) of images into `out`, a cells.parquet; see data.index."""
    from leukoscope.data import index as indexes

    return indexes.index(Path(src), Path(out), layout=layout)


def audit(
    cells: Path, *, split: Path | None = None, out: Path | None = None
) -> dict[str, Any]:  # fmt: skip
    """Look for leaks and shortcuts before training; the audit.json of DESIGN.md."""
    from leukoscope.data import audit as audits
    from leukoscope.data import index as indexes
    from leukoscope.data import split as splits

    found = audits.audit(indexes.load(Path(cells)), splits.read(Path(split)) if split else None)
    if out is not None:
        write_json(Path(out), found)
    return found


def split(
    cells: Path,
    out: Path,
    *,
    ratios: str = "70/15/15",
    folds: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Split an index by patient and duplicate cluster, stratified, and write split.parquet."""
    from leukoscope.data import index as indexes
    from leukoscope.data import split as splits

    index_ = indexes.load(Path(cells))
    made = splits.split(index_, ratios=splits.ratios(ratios), folds=folds, seed=seed)
    splits.write(made, Path(out))
    return made


def train(recipe: str, cells: Path, out: Path, **options: Any) -> Path:
    """Train one arm of a recipe, judge it, write the report; see recipes.runner.train."""
    require("torch", "train")
    from leukoscope.recipes import runner
    from leukoscope.report.run import write

    run = runner.train(recipe, Path(cells), Path(out), **options)
    write(run)
    return run


def reproduce(
    recipe: str,
    cells: Path,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    protocols: Sequence[str] = ("clean", "published"),
    weights: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Every arm under every protocol, one table; finished runs are kept and not run again."""
    require("torch", "train")
    from leukoscope.recipes import reproduction
    from leukoscope.report import comparison
    from leukoscope.report.run import write

    found = reproduction.reproduce(
        recipe, Path(cells), Path(out), arms=arms, protocols=protocols, weights=weights,
        settings=settings,
    )  # fmt: skip
    for run in found["runs"]:
        write(Path(run))
    comparison.write(Path(out), found)
    return found


def evaluate(source: Path, *, on: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """Metrics of a run, of a run on another index (`on`), or of any tool's predictions.csv."""
    from leukoscope.recipes import judgement

    found = judgement.evaluate(Path(source), Path(on) if on else None)
    if out is not None:
        write_json(Path(out), found)
    return found


def compare(sources: Sequence[Path], *, out: Path | None = None) -> dict[str, Any]:
    """Paired tests and differences with intervals between predictions of the same images."""
    from leukoscope.recipes import judgement

    found = judgement.compare([Path(source) for source in sources])
    if out is not None:
        write_json(Path(out), found)
    return found


def export(run: Path, out: Path) -> Path:
    """Write the bundle of a run: model.onnx, contract.json, README.md."""
    require("torch", "train")
    from leukoscope.recipes import deploy

    return deploy.export(Path(run), Path(out))


def predict(bundle: Path, paths: Sequence[str | Path], out: Path) -> dict[str, int]:
    """Read images with a bundle and write one row an image; see bundle.prediction.predict."""
    from leukoscope.bundle import prediction

    return prediction.predict(Path(bundle), paths, Path(out))
