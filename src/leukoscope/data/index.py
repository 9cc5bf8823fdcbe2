"""The index: one row an image, with everything later steps need so that they decode nothing again.

`cells.parquet` has the columns image (path relative to the root, with slashes), label, patient,
slide, source, mask (null where unknown), width, height (pixels), sha256 (of the file), phash,
thumbnail and colour (see data.signature), and, for a quick second run, size (bytes) and mtime_ns
of the file. The file's metadata holds, as JSON under the key `leukoscope`, the data set's name,
licence, citation, root, layout and unreadable files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from leukoscope import __version__, cluster
from leukoscope.data.datasets import UNKNOWN_LICENCE, datasets
from leukoscope.data.layouts import Row, detect, is_data_set, parse
from leukoscope.data.signature import COLOUR_FEATURES, SIDE, colour_moments, phash, thumbnail
from leukoscope.data.table import as_lists, read_parquet, write_parquet
from leukoscope.data.tree import Tree, scan
from leukoscope.errors import InputError, UnreadableError, some
from leukoscope.files import (
    explain_os_errors,
    output_folder,
    printable,
    refuse_special,
)
from leukoscope.imaging.read import read_bytes, read_bytes_image
from leukoscope.parallel import WORKERS, ahead
from leukoscope.progress import track

FORMAT = 1
"""Raised when the columns, or what a signature means, change: older facts are then read anew."""

_TEXT = ("image", "label", "patient", "slide", "source", "mask")
_SCHEMA = {
    **dict.fromkeys(_TEXT, pa.string()),
    "width": pa.int32(),
    "height": pa.int32(),
    "sha256": pa.string(),
    "phash": pa.string(),
    "thumbnail": pa.binary(),
    "colour": pa.list_(pa.float64()),
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
}
_FACTS = ("width", "height", "sha256", "phash", "thumbnail", "colour", "size", "mtime_ns")
_NUMBERS = ("width", "height", "size", "mtime_ns")
_KEY = b"leukoscope"
_MAKE = "Make one with: leukoscope index FOLDER -o cells.parquet"

Facts = dict[str, Any]
"""What one file's bytes tell: _FACTS, or the single key `why` where it can't be read."""


@dataclass(frozen=True)
class CellIndex:
    """An index in memory; `frame` has the columns named above, null text is None.

    `root` is absolute; `unreadable` lists the files left out as {image, why}.
    """

    frame: pd.DataFrame
    root: Path
    name: str
    licence: str
    citation: str
    layout: str
    unreadable: list[dict[str, str]]

    @property
    def sha256(self) -> str:
        """One hash of every image's content and label, whatever the order of the rows."""
        pairs = zip(self.frame["sha256"], self.frame["label"], strict=True)
        lines = sorted(f"{content} {label}" for content, label in pairs)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def synthetic(self) -> bool:
        """Whether the images were drawn by `data.synthetic`, which names its data set so."""
        return self.name == "synthetic"

    def path(self, image: str) -> Path:
        """Where an image (or mask) of the index lies."""
        return self.root / image


def index(
    src: Path,
    out: Path,
    *,
    layout: str = "auto",
    workers: int = WORKERS,
    engine: str = "local",
) -> CellIndex:
    """Index the images of `src` (a folder, csv or npz) into the file `out`.

    `layout` is a registered layout or `auto`; `workers` the number of threads; `engine` `local`,
    or a Ray cluster as in cluster.joined. Where `out` stands already only files whose size or time
    changed are read; a run cut short is continued. Nothing under `src` is changed. Raises
    InputError where `src` is not laid out as said, holds no readable image, or `out` can't be
    written.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; allowed: 1 or more", field="workers")
    cluster.is_address(engine)  # fails now
    tree = scan(Path(src))
    tree = replace(tree, src=tree.src.resolve())
    out = Path(out).absolute()
    name = detect(tree) if layout == "auto" else layout
    output_folder(out.parent)  # fails now rather than after an hour of reading
    _check_output(out)
    images = out.parent / f"{out.stem}-images"
    rows = parse(name, tree.src, images)
    root = _root(tree.src, images, rows)
    named, unreadable = _named(rows, root)
    journal = out.parent / f".{out.name}.partial"
    facts = _read_all(sorted(named), root, _known(out, root), journal, workers, engine)
    unreadable += [{"image": i, "why": f["why"]} for i, f in facts.items() if "why" in f]
    unreadable.sort(key=lambda entry: entry["image"])
    frame = _frame(named, facts, root)
    if frame.empty:
        journal.unlink(missing_ok=True)
        raise _nothing_readable(str(src), unreadable)
    title, licence, citation = _origin(name, tree)
    save(CellIndex(frame, root, title, licence, citation, name, unreadable), out)
    journal.unlink(missing_ok=True)
    return load(out)


def _check_output(out: Path) -> None:
    """InputError where a file of another kind stands at `out`: an image, or the csv itself."""
    refuse_special(out)
    with explain_os_errors(out):
        if out.suffix.lower() == ".parquet" or not out.exists() or not out.stat().st_size:
            return
        with out.open("rb") as handle:
            parquet = handle.read(4) == b"PAR1"
    if not parquet:
        raise InputError(
            f"Can't write {out}: a file that is no index stands there",
            fix="Name a new file, for example -o cells.parquet.",
            field="output",
        )


def _root(src: Path, images: Path, rows: Sequence[Row]) -> Path:
    if rows and rows[0].image.parent == images:
        return images
    return src if src.is_dir() else src.parent


def _named(rows: Iterable[Row], root: Path) -> tuple[dict[str, Row], list[dict[str, str]]]:
    """The rows by their image's name in the index, and those whose name can't be stored."""
    named, unreadable = {}, []
    for row in rows:
        image = _relative(row.image, root)
        try:
            image.encode()
        except UnicodeEncodeError:
            why = "its name is not valid UTF-8: rename it"
            unreadable.append({"image": printable(image), "why": why})
        else:
            named[image] = row
    return named, unreadable


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _nothing_readable(src: str, unreadable: Sequence[Mapping[str, str]]) -> InputError:
    reasons = some([f"{entry['image']} ({entry['why']})" for entry in unreadable], 3)
    return InputError(
        f"None of the {len(unreadable)} images of {src} can be read: {reasons}",
        fix="Check the files, or give another folder.",
        field="src",
    )


def _origin(layout: str, tree: Tree) -> tuple[str, str, str]:
    """Name, licence and citation: those of a known data set only where it is for sure that one."""
    if is_data_set(layout, tree):
        for known in datasets.values():
            if known.layout == layout:
                return known.name, known.licence, known.citation
    own = tree.src.name if tree.src.is_dir() else tree.src.stem
    return own or "images", UNKNOWN_LICENCE, UNKNOWN_LICENCE


# --- reading the files -------------------------------------------------------------------------


def examine(path: Path) -> Facts:
    """Everything the index keeps about one file, read and decoded once; or {why}."""
    try:
        data = read_bytes(path)
        image = read_bytes_image(data)
        status = path.stat()
    except UnreadableError as problem:
        return {"why": problem.message}
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": phash(image),
        "thumbnail": thumbnail(image).tobytes(),
        "colour": colour_moments(image).tolist(),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def _read_all(
    images: Sequence[str],
    root: Path,
    known: dict[str, Facts],
    journal: Path,
    workers: int,
    engine: str,
) -> dict[str, Facts]:
    """Facts of every image: known ones where the file is unchanged, the others read in parallel."""
    head = json.dumps({"format": FORMAT, "side": SIDE, "root": str(root)})
    finished = _resume(journal, head)
    known |= finished
    facts = {i: known[i] for i in images if i in known and _unchanged(root / i, known[i])}
    todo = [image for image in images if image not in facts]
    if not todo:
        return facts
    with (
        cluster.joined(engine) as spread,
        explain_os_errors(journal),
        journal.open("a" if finished else "w", encoding="utf-8") as log,
    ):
        log.write(head + "\n")  # a line of its own also behind one that was cut short
        paths = [root / image for image in todo]
        seen = spread(examine, paths, workers=workers)
        for image, found in track(zip(todo, seen, strict=True), "Reading images", len(todo)):
            if "why" in found and spread is not ahead and "why" not in examine(root / image):
                raise cluster.unseen(root / image)
            facts[image] = found
            if "why" not in found:
                text = base64.b64encode(found["thumbnail"]).decode()
                log.write(json.dumps({"image": image, **found, "thumbnail": text}) + "\n")
    return facts


def _unchanged(path: Path, facts: Facts) -> bool:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return False
    return status.st_size == facts["size"] and status.st_mtime_ns == facts["mtime_ns"]


def _resume(journal: Path, head: str) -> dict[str, Facts]:
    """What a run that was cut short had finished; its last line may be half written."""
    found: dict[str, Facts] = {}
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return found
    if lines[0] != head:
        return found
    for line in lines[1:]:
        try:
            entry = json.loads(line)
            entry["thumbnail"] = base64.b64decode(entry["thumbnail"], validate=True)
            found[entry["image"]] = {name: entry[name] for name in _FACTS}
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _known(out: Path, root: Path) -> dict[str, Facts]:
    """Facts that an earlier index at `out` holds about the same folder."""
    names = ["image", *_FACTS]
    try:
        table = read_parquet(out, "an index", fix="", field="output")
        metadata = _metadata(table.schema)
        now = {"format": FORMAT, "side": SIDE, "root": str(root)}
        if not now.items() <= metadata.items() or not set(names) <= set(table.column_names):
            return {}
        columns = as_lists(table, names, out)
    except InputError:
        return {}
    rows = (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return {c["image"]: c for c in rows if all(sound(c[name]) for name, sound in _SOUND.items())}


def _frame(named: Mapping[str, Row], facts: Mapping[str, Facts], root: Path) -> pd.DataFrame:
    """The table, sorted by image, of what could be read."""
    images = [image for image in sorted(named) if "why" not in facts[image]]
    columns: dict[str, list[Any]] = {
        "image": images,
        "label": [named[i].label for i in images],
        "patient": [named[i].patient for i in images],
        "slide": [named[i].slide for i in images],
        "source": [named[i].source for i in images],
        "mask": [_relative(m, root) if (m := named[i].mask) else None for i in images],
        **{name: [facts[i][name] for i in images] for name in _FACTS},
    }
    return _typed(columns)


# --- the file ----------------------------------------------------------------------------------


def save(cells: CellIndex, path: Path) -> None:
    """Write the index to `path` atomically; InputError where that can't be."""
    path = Path(path).absolute()
    table = pa.Table.from_pandas(cells.frame, preserve_index=False)
    fields = [pa.field(f.name, _SCHEMA.get(f.name, f.type)) for f in table.schema]
    metadata = {
        "format": FORMAT,
        "version": __version__,
        "side": SIDE,
        "name": cells.name,
        "licence": cells.licence,
        "citation": cells.citation,
        "root": str(cells.root),
        "root_from_index": _relative(cells.root, path.parent),
        "layout": cells.layout,
        "unreadable": cells.unreadable,
    }
    table = table.cast(pa.schema(fields)).replace_schema_metadata({_KEY: json.dumps(metadata)})
    write_parquet(table, path)


def load(path: Path) -> CellIndex:
    """Read an index, also one that another tool wrote with the columns image and label alone.

    Where the stored root is gone, the same folder relative to the index file is taken. Missing
    patient, slide, source and mask become None; missing facts about the pixels are read from the
    files, and files that can't be read are moved to `unreadable`. Raises InputError where it is no
    such file.
    """
    path = Path(path)
    table = read_parquet(path, "an index", fix=_MAKE, field="cells")
    metadata = _metadata(table.schema)
    if metadata.get("format", FORMAT) > FORMAT:
        raise InputError(f"{path} was made by a newer Leukoscope", fix="Update, or index anew.")
    frame = _typed(as_lists(table, table.column_names, path))
    _check(frame, path)
    stored, beside = metadata.get("root", "."), metadata.get("root_from_index", ".")
    here = path.absolute().parent
    root = next((r for r in (here / stored, here / beside) if r.is_dir()), here / stored)
    cells = CellIndex(
        frame=frame,
        root=Path(os.path.normpath(root)),
        name=metadata.get("name", path.stem),
        licence=metadata.get("licence", UNKNOWN_LICENCE),
        citation=metadata.get("citation", UNKNOWN_LICENCE),
        layout=metadata.get("layout", "foreign"),
        unreadable=metadata.get("unreadable", []),
    )
    return cells if _complete(frame) else _completed(cells, path)


def _metadata(schema: pa.Schema) -> dict[str, Any]:
    """What the file says about itself; entries of another type than `save` writes are left out."""
    try:
        found = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    kinds: dict[str, type] = {"format": int, "side": int, "unreadable": list}
    kept: dict[str, Any] = {
        key: value for key, value in found.items() if isinstance(value, kinds.get(key, str))
    }
    entries = kept.get("unreadable", [])
    if not all(isinstance(e, dict) and {"image", "why"} <= e.keys() for e in entries):
        del kept["unreadable"]
    return kept


def _typed(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    """Columns of the contract in order and type, then any others; null text is None."""
    frame = {}
    absent = [None] * len(next(iter(columns.values()), []))
    for name in _TEXT:
        values = [text_of(value) for value in columns.get(name, absent)]
        frame[name] = pd.Series(values, dtype=object)
    for name, values in columns.items():
        if name not in frame:
            number = name in _NUMBERS and all(_is_whole(value, 2**63) for value in values)
            dtype = "int64" if number else object if name in _SCHEMA else None
            frame[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(frame)


def text_of(value: Any) -> str | None:
    """A cell as text: null and blank are None, and the patient 7.0 of a float column is 7."""
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if str(value).strip() else None


def _check(frame: pd.DataFrame, path: Path) -> None:
    """InputError unless every row has an image of its own and a label."""
    for column in ("image", "label"):
        if frame[column].isna().all():
            raise InputError(
                f"{path} is no index: it has no column {column!r} with values in it",
                fix=_MAKE,
                field=column,
            )
        empty = frame.index[frame[column].isna()]
        if len(empty):
            raise InputError(
                f"{path} has no {column} in row {some([str(row + 1) for row in empty])}",
                fix="Fill or remove these rows.",
                field=column,
            )
    twice = frame["image"][frame["image"].duplicated()]
    if len(twice):
        raise InputError(
            f"{path} lists an image more than once: {some(list(twice.unique()))}",
            fix="Keep one row an image.",
            field="image",
        )


def _complete(frame: pd.DataFrame) -> bool:
    """Whether every fact about the pixels is there and is what `examine` gives."""
    return all(name in frame and frame[name].map(sound).all() for name, sound in _SOUND.items())


def _is_whole(value: Any, below: int) -> bool:
    return isinstance(value, int) and -below < value < below


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _is_colour(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != len(COLOUR_FEATURES):
        return False
    return all(isinstance(v, float) and math.isfinite(v) for v in value)


_SOUND: dict[str, Callable[[Any], bool]] = {
    "width": lambda value: _is_whole(value, 2**31) and value > 0,
    "height": lambda value: _is_whole(value, 2**31) and value > 0,
    "sha256": lambda value: _is_hex(value, 64),
    "phash": lambda value: _is_hex(value, 16),
    "thumbnail": lambda value: isinstance(value, bytes) and len(value) == SIDE * SIDE,
    "colour": _is_colour,
}


def _completed(cells: CellIndex, path: Path) -> CellIndex:
    """The same index with every fact read from the files."""
    images = list(cells.frame["image"])
    seen = ahead(examine, [cells.path(image) for image in images])
    facts = list(track(seen, "Reading images", len(images)))
    bad = [{"image": i, "why": f["why"]} for i, f in zip(images, facts, strict=True) if "why" in f]
    if len(bad) == len(images):
        raise _nothing_readable(str(path), bad)
    kept = cells.frame[["why" not in f for f in facts]].reset_index(drop=True)
    read = [f for f in facts if "why" not in f]
    columns = {name: list(kept[name]) for name in kept.columns}
    columns |= {name: [f[name] for f in read] for name in _FACTS}
    return replace(cells, frame=_typed(columns), unreadable=[*cells.unreadable, *bad])
