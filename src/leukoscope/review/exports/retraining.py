"""Images with the labels that people gave them, as `leukoscope index` reads them."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from leukoscope import files
from leukoscope.errors import InputError
from leukoscope.review.exports import CAVEAT, CellContent, Content, Picture, image_of
from leukoscope.review.vocabulary import is_no_cell

COLUMNS = ("image", "label", "patient", "slide", "predicted", "labelled_by", "labelled_at",
           "model_sha256")  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"BM": ".bmp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}
_README = f"""Cells of one case with the classes that a person gave or confirmed.
{CAVEAT}

Unpack, then: leukoscope index cells.csv -o cells.parquet
Cells that only the model has classified are left out: learning from them would teach the model its
own mistakes. So are artefacts and cells called unclassifiable.
"""


def chosen(content: Content) -> list[CellContent]:
    """The cells that a person classified, without artefacts and unclassifiable ones."""
    return [c for c in content["cells"] if c["label"] is not None and not is_no_cell(c["label"])]


def write(content: Content, target: Path, picture: Picture) -> Path:
    """Write a zip of `cells.csv` (layout `csv`: image, label, patient, slide and more), `images/`.

    `label` is the reviewer's class and `patient` the pseudonym. The table is read by programs, so
    nothing in it is marked against formulas. One image at a time is in memory. Returns `target`.
    Raises InputError where nobody has classified a cell yet, LeukoscopeError where an image is
    gone.
    """
    cells = chosen(content)
    if not cells:
        raise InputError(
            "No cell of this case has been classified or confirmed by a person",
            fix="Confirm or correct cells first: the model's own classes are no training labels.",
            field="case",
        )
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    with files.atomic(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for cell in cells:
            data = image_of(cell, picture)
            name = f"images/{cell['id']}-{cell['sha256'][:12]}{_suffix(data)}"
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
            writer.writerow(_row(content, cell, name))
        for name, text in (("cells.csv", table.getvalue()), ("README.txt", _README)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            archive.writestr(entry, text.encode(), zipfile.ZIP_DEFLATED)
    return target


def _row(content: Content, cell: CellContent, image: str) -> dict[str, object]:
    case = content["case"]
    return {
        "image": image,
        "label": cell["label"],
        "patient": case["pseudonym"],
        "slide": case["slide"],
        "predicted": cell["predicted"],
        "labelled_by": cell["changed_by"],
        "labelled_at": cell["changed_at"],
        "model_sha256": content["model"]["sha256"],
    }


def _suffix(data: bytes) -> str:
    """The ending that fits the file's first bytes."""
    return next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".img")
