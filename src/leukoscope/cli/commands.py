"""The commands: each parses, calls the function of its name in leukoscope.api, and prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

import leukoscope
from leukoscope import api
from leukoscope.cli import show
from leukoscope.errors import InputError

app = typer.Typer(
    name="leukoscope",
    help="Train, compare and serve classifiers of leukaemia and blood cells, and tell the truth "
    "about how good they are. Research and second reading, not a diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Cells = Annotated[Path, typer.Argument(help="An index made by `leukoscope index`.")]
Folder = Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe's name, or an own .toml file.")]
Weights = Annotated[
    str | None,
    typer.Option(help="auto (download), none, or a .safetensors file or folder of them."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, e.g. training.epochs=3. Repeatable.")
]

Engine = Annotated[
    str,
    typer.Option(help="Where the images are read: local, or a Ray cluster: ray, ray://HOST:PORT."),
]
Report = Annotated[
    Path | None, typer.Option("--report", help="Write a page with figures into this folder.")
]


def _version(wanted: bool) -> None:
    if wanted:
        show.say(f"leukoscope {leukoscope.__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - acts by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and context.invoked_subcommand != "train":
        raise InputError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes of "
            f"`leukoscope {context.invoked_subcommand}`; allowed: train",
            fix="Start it without torchrun.",
        )


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")] = Path(
        "demo"
    ),
) -> None:
    """The whole way on an embedded synthetic smear: index, audit, train under both protocols,
    evaluate, export, predict, explain; prints where the report is."""
    found = api.demo(out, say=show.note)
    show.metrics("Synthetic smear, clean protocol", found["metrics"])
    show.say("These are synthetic images: the figures show that the software works, no more.")
    show.say(f"Report: {found['report']}")


@app.command("datasets")
def datasets(json: Json = False) -> None:
    """The data sets that are known: licence, citation, how to get them."""
    found = api.datasets()
    if json:
        show.json(found)
        return
    rows = [(d["name"], d["layout"], d["n_images"], d["patients"], d["licence"]) for d in found]
    show.table("Data sets", ("name", "layout", "images", "patients", "licence"), rows)
    for d in found:
        show.say(f"{d['name']}: {d['title']}. {d['how']} Cite: {d['citation']}")


@app.command("recipes")
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, in full.")] = None,
    json: Json = False,
) -> None:
    """The recipes, or what one of them does."""
    found = api.recipes(name)
    if json:
        show.json(found)
        return
    if name is None:
        rows = [(r["name"], r["title"], ", ".join(r["arms"])) for r in found]
        show.table("Recipes", ("name", "what it is", "arms"), rows)
        show.say("leukoscope recipes NAME shows one in full.")
        return
    (one,) = found
    show.say(f"{one['title']}\n{one['summary']}\n{one['paper']}\nArms: {', '.join(one['arms'])}")
    for trap in one["traps"]:
        show.say(f"- {trap}")
    show.say("")
    show.say(one["text"])


@app.command("index")
def index(
    src: Annotated[Path, typer.Argument(help="A folder of images, a csv, or an npz.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The index to write: cells.parquet")],
    layout: Annotated[str, typer.Option(help="How the folder is laid out; auto finds out.")] = (
        "auto"
    ),
    engine: Engine = "local",
    json: Json = False,
) -> None:
    """Index a folder of cell images: labels, patients, sizes, hashes."""
    found = api.index(src, out, layout=layout, engine=engine)
    counts = found.frame["label"].value_counts().sort_index()
    summary = {
        "index": str(out),
        "layout": found.layout,
        "images": len(found.frame),
        "patients": int(found.frame["patient"].nunique()),
        "classes": {str(k): int(v) for k, v in counts.items()},
        "unreadable": found.unreadable,
    }
    if json:
        show.json(summary)
        return
    show.table(f"{out}: layout {found.layout}", ("class", "images"), list(counts.items()))
    patients = summary["patients"] or "unknown"
    show.say(f"{summary['images']} images, patients: {patients}")
    show.unreadable(found.unreadable)


@app.command("audit")
def audit(
    cells: Cells,
    split: Annotated[Path | None, typer.Option(help="A split.parquet to check.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write audit.json here.")] = None,
) -> None:
    """Look for leaks and shortcuts before training. Exit code 3 where a leak is found."""
    found = api.audit(cells, split=split, out=json)
    for sentence in found["summary"]:
        show.say(sentence)
    if found["verdict"] == "leak":
        raise typer.Exit(3)


@app.command("split")
def split(
    cells: Cells,
    out: Annotated[Path, typer.Option("-o", "--output", help="The split to write: split.parquet")],
    ratios: Annotated[str, typer.Option(help="train/validation/test")] = "70/15/15",
    folds: Annotated[int | None, typer.Option(help="K-fold instead of one split.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same split.")] = 0,
) -> None:
    """Split by patient and duplicate cluster, stratified by class."""
    made = api.split(cells, out, ratios=ratios, folds=folds, seed=seed)
    order = {"train": 0, "validation": 1, "test": 2}
    made = made.sort_values(["fold", "role"], key=lambda c: c.map(order) if c.name == "role" else c)
    counts = made.groupby(["fold", "role"], sort=False).size().reset_index(name="images")
    rows = counts.to_numpy().tolist()
    show.table(str(out), ("fold", "role", "images"), rows)


@app.command("train")
def train(
    recipe: RecipeName,
    cells: Cells,
    out: Folder,
    protocol: Annotated[str, typer.Option(help="clean or published.")] = "clean",
    arm: Annotated[
        str | None, typer.Option(help="An arm of the recipe; its first where not given.")
    ] = None,
    weights: Weights = None,
    split: Annotated[Path | None, typer.Option(help="A split.parquet to use.")] = None,
    fold: Annotated[int | None, typer.Option(help="Which fold of a K-fold split file.")] = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="Where a frozen backbone runs: local, or a Ray cluster: ray, ray://HOST:PORT."
        ),
    ] = "local",
    json: Json = False,
) -> None:
    """Train one arm of a recipe, judge it and write its report."""
    found = api.train(
        recipe, cells, out, protocol=protocol, arm=arm, weights=weights, split=split,
        fold=fold, settings=settings or (), resume=resume, device=device, engine=engine,
    )  # fmt: skip
    if not found:  # torchrun's other processes have nothing to say
        return
    if json:
        show.json(found["metrics"])
        return
    show.metrics(f"{recipe}, protocol {protocol}, {found['metrics']['role']} part",
                 found["metrics"])  # fmt: skip
    show.say(f"Report: {found['report']}")


@app.command("reproduce")
def reproduce(
    recipe: RecipeName,
    cells: Cells,
    out: Folder,
    arms: Annotated[str | None, typer.Option(help="Comma-separated; default all.")] = None,
    protocols: Annotated[
        str, typer.Option(help="Comma-separated: clean, published.")
    ] = "clean,published",
    weights: Weights = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Every arm under every protocol in one table beside the published figures."""
    found = api.reproduce(
        recipe, cells, out, arms=None if arms is None else arms.split(","),
        protocols=protocols.split(","), weights=weights, settings=settings or (),
    )  # fmt: skip
    if json:
        show.json(found)
        return
    rows = [
        (
            row["arm"],
            row["metric"].replace("_", " "),
            show.figure(row["metric"], row["published_figure"]),
            show.estimate(row["metric"], row["published_protocol"]),
            show.estimate(row["metric"], row["clean"]),
            show.estimate(row["metric"], row["difference"], difference=True),
        )
        for row in found["table"]
    ]
    show.table(
        f"{recipe}: published protocol minus clean protocol, 95 % intervals",
        ("arm", "metric", "paper", "published protocol", "clean protocol", "difference"),
        rows,
    )
    for skipped in found["not_run"]:
        show.say(f"Not run: {skipped['arm']}, {skipped['protocol']}: {skipped['why']}")
    show.say(f"Report: {found['report']}")


@app.command("evaluate")
def evaluate(
    source: Annotated[Path, typer.Argument(help="A run, a bundle, or a predictions.csv.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write metrics.json here.")
    ] = None,
    on: Annotated[Path | None, typer.Option(help="Another index: the external test.")] = None,
    report: Report = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Score blurred, noisy, dark … images too.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Images to disturb at most; default 300.")
    ] = None,
    json: Json = False,
) -> None:
    """Metrics with intervals, of a run or of any tool's predictions."""
    found = api.evaluate(
        source, on=on, out=out, report=report, robustness=robustness, limit=limit
    )  # fmt: skip
    if json:
        show.json(found)
        return
    show.metrics(str(source), found)
    if robustness:
        show.robustness(found["robustness"])
    if robustness and on is None:
        show.say(f"Report: {source / 'report.html'}")
    if report is not None:
        show.say(f"Report: {report / 'report.html'}")


@app.command("compare")
def compare(
    sources: Annotated[list[Path], typer.Argument(help="Two or more runs or prediction files.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write comparison.json here.")
    ] = None,
    report: Report = None,
    json: Json = False,
) -> None:
    """Paired tests and differences with intervals on the same images."""
    found = api.compare(sources, out=out, report=report)
    if json:
        show.json(found)
        return
    rows = []
    for pair in found["pairs"]:
        accuracy = pair["difference"]["accuracy"]
        test = pair["mcnemar"]
        gap = show.estimate("accuracy", accuracy, difference=True)
        rows.append((pair["a"], pair["b"], gap, test["b"], test["c"], test["exact_p"],
                     pair["permutation_p"]))  # fmt: skip
    columns = ("a", "b", "accuracy of a minus b", "only a right", "only b right",
               "McNemar exact p", "permutation p")  # fmt: skip
    show.table("Comparison", columns, rows)
    if report is not None:
        show.say(f"Report: {report / 'report.html'}")


@app.command("preview")
def preview(
    images: Annotated[list[str], typer.Argument(help="Images, folders or globs.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name, or an own .toml file.")],
    out: Folder,
    settings: Settings = None,
) -> None:
    """A picture of every preprocessing step and of sample augmentations."""
    made = api.preview(images, recipe, out, settings=settings or ())
    show.say(f"{len(made)} pictures in {out}")


@app.command("segment")
def segment(
    images: Annotated[list[str], typer.Argument(help="A folder of images, or images and globs.")],
    out: Folder,
    method: Annotated[
        str, typer.Option(help="nucleus (the best here), or the papers' otsu and hsv.")
    ] = "nucleus",
    polarity: Annotated[
        str, typer.Option(help="Which side of Otsu's threshold is the nucleus: dark or bright.")
    ] = "dark",
) -> None:
    """Nucleus masks: 0/255 PNG of each image's size and stem."""
    found = api.segment(images, out, method=method, polarity=polarity)
    show.say(f"{found['masks']} masks in {out}")
    show.unreadable(found["unreadable"])


@app.command("crop")
def crop(
    fields: Annotated[list[str], typer.Argument(help="Fields of view: folders, images or globs.")],
    out: Folder,
    margin: Annotated[
        float, typer.Option(help="What a crop adds around the cell, as a share of its size.")
    ] = 0.1,
) -> None:
    """Find the white cells in fields of view: one square crop each, and cells.csv."""
    found = api.crop(fields, out, margin=margin)
    show.say(f"{found['cells']} cells in {found['fields']} fields: {out}")
    show.unreadable(found["unreadable"])


@app.command("explain")
def explain(
    source: Annotated[Path, typer.Argument(help="A run or a bundle.")],
    out: Folder,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders or globs. None: of a run the surest errors and some right "
            "answers of the part that it was scored on.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="A folder of nucleus masks as `leukoscope segment` writes them."),
    ] = None,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Check that maps change with random weights (a run).")
    ] = False,
    tsne: Annotated[
        bool,
        typer.Option("--tsne", help="A map of the features: of the images, or the scored part."),
    ] = False,
    neighbours: Annotated[
        int, typer.Option(min=0, max=100, help="So many most similar training images of each.")
    ] = 0,
) -> None:
    """Heat maps: where in the image the evidence for the predicted class lies (Grad-CAM), and how
    much of it in the cell; what else the model finds similar."""
    made = api.explain(
        source, images or [], out, masks=masks, sanity=sanity, tsne=tsne, neighbours=neighbours,
        say=show.note,
    )  # fmt: skip
    show.say(f"{sum('file' in entry for entry in made)} heat maps in {out}")
    show.unreadable([entry for entry in made if "why" in entry])


@app.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    out: Folder,
    precision: Annotated[
        str, typer.Option(help="fp32, or int8, refused where it costs accuracy on validation.")
    ] = "fp32",
) -> None:
    """Write a run's bundle: model.onnx, contract.json, README.md."""
    show.say(f"Bundle: {api.export(run, out, precision=precision)}")


@app.command("predict")
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `leukoscope export`.")],
    paths: Annotated[list[str], typer.Argument(help="Images, folders or globs.")],
    out: Annotated[
        Path, typer.Option("-o", "--output", help="The table to write: .csv, .parquet or .ndjson")
    ],
    engine: Annotated[
        str,
        typer.Option(
            help="auto (the fastest here), onnxruntime, openvino, openvino-bf16, or a Ray "
            "cluster, whose workers take what auto takes here: ray, ray://HOST:PORT."
        ),
    ] = "auto",
    json: Json = False,
) -> None:
    """Read images with a bundle: one row an image, with doubt said plainly."""
    counts = api.predict(bundle, paths, out, engine=engine)
    if json:
        show.json(counts)
        return
    show.say(
        f"{counts['images']} images, {counts['doubtful']} doubtful, {counts['novel']} novel, "
        f"{counts['unreadable']} unreadable: {out}"
    )


@app.command("serve")
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `leukoscope export`.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where images and database lie. [leukoscope-review]")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="Another database: postgresql://user:password@host/name")
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on. [8350]")] = None,
    references: Annotated[
        Path | None, typer.Option(help="Reference images: one folder a class.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(help="text, or json: a line also for every request. [text]")
    ] = None,
) -> None:
    """The review application in the browser. LEUKOSCOPE_REVIEW_… sets the rest, e.g.
    LEUKOSCOPE_REVIEW_BEHIND_TLS=true: see the guide of operations."""
    given = {"folder": folder, "database": database, "host": host, "port": port, "log": log}
    api.serve(bundle, **given, references=references, say=show.say)


Served = Annotated[
    Path | None, typer.Option(help="The folder of `leukoscope serve`. [leukoscope-review]")
]
Stored = Annotated[
    str | None, typer.Option(help="Its database where that isn't in the folder: its address.")
]


@app.command("backup")
def backup(
    out: Annotated[Path, typer.Option("-o", "--output", help="The zip to write.")],
    folder: Served = None,
    database: Stored = None,
    json: Json = False,
) -> None:
    """Save everything of the review application as one file, also while it serves."""
    _saved(api.backup(out, folder=folder, database=database), str(out), json)


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="A file made by `leukoscope backup`.")],
    folder: Served = None,
    database: Stored = None,
    json: Json = False,
) -> None:
    """Make a new folder and database of a back-up, everything checked; nothing is overwritten."""
    found = api.restore(file, folder=folder, database=database)
    _saved(found, f"restored from {file}", json)


def _saved(found: dict[str, Any], what: str, json: bool) -> None:
    if json:
        show.json(found)
    else:
        show.say(
            f"{found['images']} images, {found['rows']} rows, {found['entries']} lines of the "
            f"audit log: {what}"
        )
    if found["damage"]:
        show.error(". ".join(found["damage"]), "All else is there; look into an earlier back-up.")
        raise typer.Exit(2)


@app.command("doctor")
def doctor(json: Json = False) -> None:
    """What works here, with the fix for what doesn't."""
    found = api.doctor()
    if json:
        show.json(found)
        return
    rows = [(c["name"], "works" if c["works"] else "missing", c["detail"]) for c in found]
    show.table("What works here", ("part", "state", "detail"), rows)
