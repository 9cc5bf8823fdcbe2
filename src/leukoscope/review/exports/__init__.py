"""What leaves the application: CSV, FHIR, PDF and images for training, of one version of a case.

Each export is a function of the content that `signing.content` makes and that a signature keeps, so
that the export of a signed version is the same for ever. This module holds what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leukoscope.errors import LeukoscopeError

Content = Mapping[str, Any]
CellContent = Mapping[str, Any]
Picture = Callable[[CellContent], bytes | None]
"""The bytes of a cell's image file by what the content says of it (`sha256`), None where gone."""

CAVEAT = "Second reading, not a diagnosis."
SYNTHETIC = "The model was trained on synthetic cells: for demonstration only."


def status(content: Content) -> str:
    """`preliminary` until the version is signed, then `final`; `amended` from version 2 on."""
    if not content["signed"]:
        return "preliminary"
    return "amended" if content["case"]["version"] > 1 else "final"


def stem(content: Content) -> str:
    """A name for the export's file, without anything a patient or a path could be guessed from."""
    case = content["case"]
    return f"case-{case['id']}-v{case['version']}"


def shown(cell: CellContent) -> str:
    """The reviewer's class of a cell where there is one, else the model's."""
    return str(cell["label"] or cell["predicted"])


def is_corrected(cell: CellContent) -> bool:
    """Whether the reviewer's class differs from the model's."""
    return cell["label"] is not None and cell["label"] != cell["predicted"]


def leukocytes(shares: Sequence[Mapping[str, Any]]) -> int:
    """The denominator of a differential: the cells of the classes that have a share."""
    return sum(share["count"] for share in shares if share["share"] is not None)


def image_of(cell: CellContent, picture: Picture) -> bytes:
    """The bytes of the cell's image; LeukoscopeError where they are gone."""
    data = picture(cell)
    if data is None:
        raise LeukoscopeError(
            f"The image of cell {cell['id']} (SHA-256 {cell['sha256']}) is missing from the store",
            fix="Restore the folder 'blobs' from the backup.",
            field="cell",
        )
    return data
