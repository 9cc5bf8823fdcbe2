"""`predict`: files, folders and globs in; one row an image out, whatever the files are like."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leukoscope import cluster
from leukoscope.bundle.contract import Contract
from leukoscope.bundle.engines import NAMES
from leukoscope.bundle.inference import Answers, FarReader, Reader
from leukoscope.data.tree import find_images
from leukoscope.errors import InputError, UnreadableError
from leukoscope.files import atomic, plain, printable
from leukoscope.progress import track

ROWS = 512  # rows held before they are written


def columns(classes: Sequence[str]) -> list[str]:
    """The columns of a prediction file."""
    probabilities = [f"prob_{name}" for name in classes]
    return ["image", "predicted", "confidence", *probabilities, "prediction_set", "novelty",
            "flag", "error"]  # fmt: skip


def row(path: Path, answer: Answers | UnreadableError, contract: Contract) -> dict[str, Any]:
    """One row: what the model says about one image, or why it can't say anything.

    `prediction_set` joins class names by '|'. `novelty` above 1 is novel. `flag` is empty,
    `doubtful` (the prediction set isn't the predicted class alone), `novel` or `unreadable`.
    """
    blank: dict[str, Any] = dict.fromkeys(columns(contract.classes))
    blank["image"] = printable(str(path))
    if isinstance(answer, UnreadableError):
        return blank | {"flag": "unreadable", "error": answer.message}
    probs, inside = answer.probs[0], answer.sets[0]
    best = int(probs.argmax())
    return blank | {
        "predicted": contract.classes[best],
        "confidence": float(probs[best]),
        **{f"prob_{name}": float(p) for name, p in zip(contract.classes, probs, strict=True)},
        "prediction_set": "|".join(
            name for name, is_in in zip(contract.classes, inside, strict=True) if is_in
        ),
        "novelty": float(answer.novelty[0]),
        "flag": answer.flag(0),
        "error": "",
    }


def predict(
    bundle: Path, paths: Sequence[str | Path], out: Path, *, engine: str = "auto"
) -> dict[str, int]:
    """Read every image with the bundle's model and write `out` (.csv, .parquet or .ndjson).

    `engine` is one of engines.NAMES; `auto` takes the fastest here where there are many images. Or
    it is a Ray cluster as in cluster.joined, whose workers take what `auto` would here.
    Returns {images, unreadable, doubtful, novel}. Memory doesn't grow with the number of images.
    Raises InputError for a bad bundle, path or output; InputError too where no image was readable,
    after the file with the reasons has been written.
    """
    write = _writer(out)
    far = cluster.is_address(engine, NAMES)
    images = find_images(paths)
    reader = Reader.load(Path(bundle), engine="auto" if far else engine, images=len(images))
    counts = {"images": len(images), "unreadable": 0, "doubtful": 0, "novel": 0}

    def rows() -> Iterator[dict[str, Any]]:
        read = _read_far(reader, Path(bundle), images, engine) if far else reader.read(images)
        for path, answer in track(read, "Reading cells", total=len(images)):
            said = row(path, answer, reader.contract)
            if said["flag"]:
                counts[said["flag"]] += 1
            yield said

    with atomic(out) as temporary:
        write(temporary, rows(), columns(reader.contract.classes))
    if counts["unreadable"] == len(images):
        raise InputError(
            f"None of {len(images)} files could be read as an image; the reasons are in {out}",
            fix="Give JPEG, PNG, TIFF or BMP images.",
            field="path",
        )
    return counts


def _read_far(
    reader: Reader, bundle: Path, images: Sequence[Path], engine: str
) -> Iterator[tuple[Path, Answers | UnreadableError]]:
    """`reader.read` over a cluster, where paths are absolute."""
    with cluster.joined(engine) as spread:
        paths = [Path(os.path.abspath(path)) for path in images]  # noqa: PTH100 - links stay
        read = reader.read(paths, spread, FarReader(bundle, reader.engine.name))
        for path, (_, answer) in zip(images, read, strict=True):
            if not isinstance(answer, UnreadableError):
                yield path, answer
                continue
            try:
                reader.image(path)
            except UnreadableError as problem:
                yield path, problem
            else:
                raise cluster.unseen(path)


Rows = Iterable[dict[str, Any]]


def _writer(out: Path) -> Callable[[Path, Rows, list[str]], None]:
    writers = {".csv": _csv, ".parquet": _parquet, ".ndjson": _ndjson}
    if out.suffix.lower() not in writers:
        raise InputError(
            f"Output {out.name!r} has an unknown ending; allowed: {', '.join(writers)}",
            fix="Choose for example -o predictions.csv",
            field="output",
        )
    return writers[out.suffix.lower()]


def _csv(path: Path, rows: Rows, names: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _parquet(path: Path, rows: Rows, names: list[str]) -> None:
    # Imported here: it takes longer to load than a csv of one image takes to make.
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    text = {"image", "predicted", "prediction_set", "flag", "error"}
    schema = pa.schema([(name, pa.string() if name in text else pa.float64()) for name in names])
    with path.open("wb") as handle, ParquetWriter(handle, schema) as writer:
        for some in _batches(rows):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema))


def _batches(rows: Rows) -> Iterator[list[dict[str, Any]]]:
    held: list[dict[str, Any]] = []
    for said in rows:
        held.append(said)
        if len(held) == ROWS:
            yield held
            held = []
    yield held


def _ndjson(path: Path, rows: Rows, names: list[str]) -> None:  # noqa: ARG001
    with path.open("w", encoding="utf-8") as handle:
        for said in rows:
            handle.write(json.dumps(plain(said), ensure_ascii=False) + "\n")
