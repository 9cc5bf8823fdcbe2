"""The commands as plain functions of the same names; the command line only calls these.

Each imports what it needs when called, so that `predict` starts without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope.compat import require
from leukoscope.files import read_json, refuse_overwriting, write_json

# Half the recipe's resolution and fewer views: a demonstration should take a minute or two.
DEMO_SETTINGS = (
    "preprocessing=[{step='resize',size=112},{step='stretch_contrast'}]",
    "views.count=6",
    "training.steps_per_epoch=120",
)

if TYPE_CHECKING:
    import pandas as pd

    from leukoscope.data.index import CellIndex
    from leukoscope.review.backup import Manifest


def index(src: Path, out: Path, *, layout: str = "auto", engine: str = "local") -> CellIndex:
    """Index a folder (or csv, npz) of images into `out`, a cells.parquet; see data.index."""
    from leukoscope.data import index as indexes

    return indexes.index(Path(src), Path(out), layout=layout, engine=engine)


def audit(
    cells: Path, *, split: Path | None = None, out: Path | None = None
) -> dict[str, Any]:  # fmt: skip
    """Look for leaks and shortcuts before training; the audit.json of DESIGN.md."""
    from leukoscope.data import audit as audits
    from leukoscope.data import index as indexes
    from leukoscope.data import split as splits

    refuse_overwriting(out, [cells, split])
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

    refuse_overwriting(out, [cells])
    index_ = indexes.load(Path(cells))
    made = splits.split(index_, ratios=splits.ratios(ratios), folds=folds, seed=seed)
    splits.write(made, Path(out))
    return made


def train(recipe: str, cells: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Train one arm of a recipe, judge it, write its report; options as in recipes.runner.train.

    Returns {run, report, metrics}; nothing in processes that torchrun started beside the first.
    """
    require("torch", "train")
    from leukoscope.recipes import runner
    from leukoscope.report.run import write

    with runner.resumable(Path(out)):
        run = runner.train(recipe, Path(cells), Path(out), **options)
        if run is None:
            return {}
        report = write(run)
    return {"run": str(run), "report": str(report), "metrics": read_json(run / "metrics.json")}


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
    """Every arm under every protocol beside the paper's tables; finished runs are kept and not run
    again. Tables and reports are written after each arm, so that a stop leaves those so far."""
    require("torch", "train")
    from leukoscope.recipes import reproduction
    from leukoscope.report import comparison
    from leukoscope.report.run import write

    def record(found: dict[str, Any], runs: Sequence[Path]) -> None:
        for run in runs:
            write(run)
        comparison.write(Path(out), found, title=f"Reproduction of {recipe}")

    found = reproduction.reproduce(
        recipe, Path(cells), Path(out), chosen=arms, protocols=protocols, weights=weights,
        settings=settings, record=record,
    )  # fmt: skip
    return {**found, "report": str(Path(out) / "report.html")}


def evaluate(
    source: Path,
    *,
    on: Path | None = None,
    out: Path | None = None,
    report: Path | None = None,
    robustness: bool = False,
    limit: int | None = None,
) -> dict[str, Any]:
    """Metrics of a run, of a run on another index (`on`), or of any tool's predictions.csv.

    report: a folder for the page of these figures. robustness: score disturbed images too, at most
    `limit` (recipes.robustness.LIMIT) of them: robustness.csv goes into the run, whose report is
    written anew, or with `on` beside `out`; the rows are in `robustness`.
    """
    from leukoscope.recipes import judgement

    refuse_overwriting(out, [source, on])
    refuse_overwriting(Path(report) / "errors.csv" if report else None, [source])
    source, on = Path(source), Path(on) if on else None
    if robustness:
        from leukoscope.recipes import robustness as disturbed

        target = disturbed.output(source, on, out)
        refuse_overwriting(target, [source, on])
    found, frame = judgement.judged(source, on)
    if robustness:
        table = disturbed.robustness(
            source, on, out=target, limit=disturbed.LIMIT if limit is None else limit
        )
        found["robustness"] = table.to_dict("records")
    if out is not None:
        write_json(Path(out), found)
    if robustness and on is None:
        from leukoscope.report.run import write

        write(source)
    if report is not None:
        from leukoscope.report.run import evaluated

        evaluated(source, on, found, frame, Path(report))
    return found


def compare(
    sources: Sequence[Path], *, out: Path | None = None, report: Path | None = None
) -> dict[str, Any]:
    """Paired tests and differences with intervals between predictions of the same images.

    report: a folder for the page of these figures.
    """
    from leukoscope.recipes import judgement

    refuse_overwriting(out, sources)
    sources = [Path(source) for source in sources]
    found = judgement.compare(sources)
    if out is not None:
        write_json(Path(out), found)
    if report is not None:
        from leukoscope.report import compared

        compared.write(sources, found, Path(report))
    return found


def export(run: Path, out: Path, *, precision: str = "fp32") -> Path:
    """Write the bundle of a run: model.onnx, contract.json, README.md; see recipes.deploy.export.

    `precision` int8 is refused where it costs accuracy on validation.
    """
    require("torch", "train")
    from leukoscope.recipes import deploy

    return deploy.export(Path(run), Path(out), precision=precision)


def predict(
    bundle: Path, paths: Sequence[str | Path], out: Path, *, engine: str = "auto"
) -> dict[str, int]:
    """Read images with a bundle and write one row an image; see bundle.prediction.predict."""
    from leukoscope.bundle import prediction

    refuse_overwriting(out, paths)
    return prediction.predict(Path(bundle), paths, Path(out), engine=engine)


def explain(
    source: Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    masks: Path | None = None,
    sanity: bool = False,
    tsne: bool = False,
    neighbours: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Heat maps of a run's or a bundle's answers, the energy in them, whether they pass the sanity
    check, a map of the features, similar training cells; see recipes.explanations.explain."""
    from leukoscope.recipes import explanations

    found = explanations.explain(
        Path(source), images, Path(out), masks=Path(masks) if masks else None, sanity=sanity,
        tsne=tsne, neighbours=neighbours, say=say,
    )  # fmt: skip
    if tsne:
        from leukoscope.report import feature_map

        feature_map.write(Path(out))
    return found


def segment(
    images: Sequence[str | Path], out: Path, *, method: Any = "nucleus", polarity: Any = "dark"
) -> dict[str, Any]:
    """Nucleus masks as 0/255 PNG of each image's size and stem; see data.derived.segment."""
    from leukoscope.data import derived

    return derived.segment(images, Path(out), method=method, polarity=polarity)


def crop(fields: Sequence[str | Path], out: Path, *, margin: float = 0.1) -> dict[str, Any]:
    """White cells of fields of view as square crops, and cells.csv; see data.derived.crop."""
    from leukoscope.data import derived

    return derived.crop(fields, Path(out), margin=margin)


def preview(
    images: Sequence[str | Path], recipe: str, out: Path, *, settings: Sequence[str] = ()
) -> list[Path]:
    """A picture of every step and of sample views; see recipes.preview.preview."""
    require("torch", "train")
    from leukoscope.recipes import preview as previews

    return previews.preview(images, recipe, Path(out), settings=settings)


def datasets() -> list[dict[str, Any]]:
    """The data sets that are known, with licence, citation and how to get them."""
    from dataclasses import asdict

    from leukoscope.data.datasets import datasets as known

    return [asdict(card) for card in known.values()]


def recipes(name: str | None = None) -> list[dict[str, Any]]:
    """The recipes as {name, title, paper, arms, protocols, …}, or the one of that name."""
    from leukoscope.recipes import schema

    found = []
    for each in [name] if name else schema.names():
        plan = schema.resolve(each)
        found.append(
            {
                "name": plan.name,
                "title": plan.title,
                "paper": plan.paper.citation,
                "arms": schema.arms(schema.raw(each)),
                "protocols": list(schema.PROTOCOLS),
                "summary": plan.summary,
                "traps": plan.traps,
                "settings": schema.paths(),
                "text": schema.text(each),
            }
        )
    return found


def serve(bundle: Path, *, say: Callable[[str], None] = lambda _: None, **given: Any) -> None:
    """The review application, until it is stopped; `given` are review.settings.Settings.

    `say` gets the address and, at the first start, the one-time link. Raises InputError for a bad
    bundle, folder, database, setting or a port in use.
    """
    require("uvicorn", "serve")
    from leukoscope.review.server import run
    from leukoscope.review.settings import settings_of

    run(settings_of(bundle=Path(bundle), **given), say)


def backup(out: Path, *, folder: Path | None = None, database: str | None = None) -> dict[str, Any]:
    """Save a review application's data as one zip, also while it serves; see review.backup.

    folder, database: as of `serve`. Returns {images, rows, entries, damage}: `damage` has a
    sentence for each thing that was wrong with the data themselves.
    """
    require("sqlalchemy", "serve")
    from leukoscope.review import backup as copies
    from leukoscope.review.settings import settings_of

    given = settings_of(bundle=Path(), folder=folder, database=database)
    return _saved(copies.backup(given.folder, given.database_url, Path(out)))


def restore(
    source: Path, *, folder: Path | None = None, database: str | None = None
) -> dict[str, Any]:
    """Make a new folder and database of a back-up; returns the same as `backup`."""
    require("sqlalchemy", "serve")
    from leukoscope.review import backup as copies
    from leukoscope.review.settings import settings_of

    given = settings_of(bundle=Path(), folder=folder, database=database)
    return _saved(copies.restore(Path(source), given.folder, given.database_url))


def _saved(manifest: Manifest) -> dict[str, Any]:
    return {
        "images": manifest.images,
        "rows": sum(table.rows for table in manifest.tables.values()),
        "entries": manifest.audit.entries,
        "damage": manifest.damage,
    }


def doctor() -> list[dict[str, Any]]:
    """What works on this machine, with the fix for what doesn't."""
    from leukoscope import doctor as checks

    return checks.doctor()


def demo(out: Path, *, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The whole way on the embedded synthetic smear; returns {metrics, report, bundle, …}.

    The from-scratch arm, since it needs no downloaded weights. `say` gets a line a step.
    """
    require("torch", "train")
    from leukoscope.data import synthetic

    out = Path(out)
    say("1/8 Drawing a synthetic smear: 500 cells, 40 patients, with leaks planted")
    cells = synthetic.make(out / "smear", patients=40)
    say("2/8 Indexing")
    index(cells, out / "cells.parquet", layout="csv")
    say("3/8 Auditing")
    for sentence in audit(out / "cells.parquet", out=out / "audit.json")["summary"]:
        say(f"    {sentence}")
    say("4/8 Training recipe lightweight-cnn, arm cnn (from scratch), both protocols")
    found = reproduce(
        "lightweight-cnn", out / "cells.parquet", out / "runs", arms=["cnn"],
        settings=DEMO_SETTINGS,
    )  # fmt: skip
    run = out / "runs" / "cnn-clean"
    say("5/8 Evaluating")
    metrics = evaluate(run, out=out / "metrics.json")
    say("6/8 Exporting the bundle")
    bundle = export(run, out / "bundle")
    say("7/8 Reading all its cells with the bundle")
    predict(bundle, [out / "smear" / "images"], out / "predictions.csv")
    say("8/8 Explaining some of them")
    pictures = sorted((out / "smear" / "images").glob("*/*"))[:: 500 // 12]
    explain(run, pictures, run / "explain", sanity=True, tsne=True, neighbours=3)
    from leukoscope.report.run import write

    report = write(run)
    return {
        "metrics": metrics,
        "report": str(report),
        "bundle": str(bundle),
        "reproduction": found["report"],
    }
