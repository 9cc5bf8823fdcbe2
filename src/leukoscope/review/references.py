"""Reference cells: what a class looks like, from signed cases and from a folder of the laboratory.

A bundle carries no images, so the first references come with the first signature, or by
`--references DIR`, a folder with one folder of images a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from leukoscope.errors import InputError
from leukoscope.imaging.read import IMAGE_SUFFIXES
from leukoscope.review.decoding import Decoder
from leukoscope.review.problems import NotFound
from leukoscope.review.schema import Case, Cell, Reading


@dataclass(frozen=True)
class Reference:
    """A cell that a reviewer signed as `label`, with what its case is called."""

    cell_id: int
    case_id: str
    pseudonym: str
    label: str
    confidence: float


def signed(session: Session, case_id: str, label: str, most: int = 6) -> list[Reference]:
    """Cells of other, signed cases that were given `label`, by the case's model most sure first.

    Of each case at most two, so that one patient doesn't stand for a class.
    """
    query = (
        select(Cell.id, Case.id, Case.pseudonym, Reading.confidence)
        .join(Case, Case.id == Cell.case_id)
        .join(Reading, (Reading.cell_id == Cell.id) & (Reading.model_id == Case.model_id))
        .where(
            Case.state == "signed",
            Case.id != case_id,
            (Cell.label == label) | (Cell.label.is_(None) & (Reading.predicted == label)),
        )
        .order_by(Cell.label.is_(None), (Reading.predicted != label), Reading.confidence.desc())
        .limit(50 * most)
    )
    found: list[Reference] = []
    for cell_id, case, pseudonym, confidence in session.execute(query):
        if sum(one.case_id == case for one in found) < 2:
            found.append(Reference(cell_id, case, pseudonym, label, confidence))
    return found[:most]


class References:
    """The laboratory's own reference images (final): DIR/<class>/<image>."""

    def __init__(self, folder: Path | None, decoder: Decoder) -> None:
        self.decoder = decoder
        self.images: dict[str, list[Path]] = {}
        if folder is None:
            return
        if not folder.is_dir():
            raise InputError(
                f"{folder} is no folder of reference images",
                fix="Give a folder that holds one folder of images a class.",
                field="references",
            )
        for each in sorted(path for path in folder.iterdir() if path.is_dir()):
            found = sorted(p for p in each.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            self.images[each.name] = found

    def count(self, label: str) -> int:
        """How many images there are of a class."""
        return len(self.images.get(label, []))

    def image(self, label: str, number: int) -> bytes:
        """One of them as a PNG; NotFound where there is none."""
        if not 0 <= number < self.count(label):
            raise NotFound(f"There is no reference image {number} of {label!r}")
        return self.decoder.picture(self.images[label][number])
