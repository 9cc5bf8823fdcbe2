"""One row a cell and one row a class, for spreadsheets and for other programs."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leukoscope.review.exports import CAVEAT, Content, shown, status, stem

CELLS = (
    "case", "pseudonym", "slide", "stain", "version", "status", "cell", "image", "field", "x", "y",
    "box_width", "box_height", "sha256", "predicted", "confidence", "prediction_set", "novelty",
    "flag", "quality", "label", "shown", "comment", "changed_by", "changed_at", "model",
    "model_version", "model_sha256", "contract_sha256", "signed_by", "signed_at", "note",
)  # fmt: skip
DIFFERENTIAL = (
    "case", "pseudonym", "version", "status", "reader", "class", "count", "share", "low", "high",
    "note",
)  # fmt: skip
# What a spreadsheet takes for the start of a formula; the wide ones are converted in some places.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same bytes


def cells(content: Content) -> str:
    """The cells as CSV with the columns CELLS; prediction set and quality are joined by '|'."""
    same = _of_case(content)
    rows = [
        same
        | {name: cell.get(name) for name in CELLS if name in cell}
        | {
            "cell": cell["id"],
            "prediction_set": "|".join(cell["prediction_set"]),
            "quality": "|".join(map(str, cell["quality"])),
            "shown": shown(cell),
        }
        for cell in content["cells"]
    ]
    return _table(CELLS, rows)


def differential(content: Content) -> str:
    """The differential as CSV with the columns DIFFERENTIAL, the model's and then the reviewer's.

    `share` is of the leukocytes, 0 to 1, empty for what is none; `low` and `high` are its 95 %
    Wilson interval.
    """
    same = _of_case(content)
    rows = [
        same | {**share, "reader": reader, "class": share["name"]}
        for reader in ("model", "reviewer")
        for share in content["differential"][reader]
    ]
    return _table(DIFFERENTIAL, rows)


def archive(content: Content) -> bytes:
    """Both tables as a zip, UTF-8 with the mark that spreadsheets need to read it as such."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        for name, text in (("cells", cells(content)), ("differential", differential(content))):
            entry = zipfile.ZipInfo(f"{stem(content)}-{name}.csv", _EPOCH)
            target.writestr(entry, text.encode("utf-8-sig"), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _of_case(content: Content) -> dict[str, Any]:
    """The columns that are the same in every row."""
    case, model, signed = content["case"], content["model"], content["signed"] or {}
    return {
        "case": case["id"],
        **{name: case[name] for name in ("pseudonym", "slide", "stain", "version")},
        "status": status(content),
        "model": model["name"],
        "model_version": model["version"],
        "model_sha256": model["sha256"],
        "contract_sha256": model["contract_sha256"],
        "signed_by": signed.get("by"),
        "signed_at": signed.get("at"),
        "note": CAVEAT,
    }


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _harmless(row.get(name)) for name in columns} for row in rows)
    return stream.getvalue()


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula, behind an apostrophe; numbers as they are."""
    if isinstance(value, str):
        value = value.replace("\x00", "")
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value
