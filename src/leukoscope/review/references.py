"""Reference cells: what a class looks like, from signed cases and from a folder of the laboratory.

Those come first that the model finds most like the cell in question, by the distance of their
features. A bundle carries no images, so the first references come with the first signature, or by
`--references DIR`, a folder with one folder of images a class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased

from leukoscope.bundle.inference import BATCH, Reader
from leukoscope.errors import InputError, UnreadableError
from leukoscope.imaging.read import IMAGE_SUFFIXES
from leukoscope.review.decoding import Decoder
from leukoscope.review.problems import NotFound
from leukoscope.review.reading import distance, places_of
from leukoscope.review.schema import Case, Cell, Reading

MOST = 2_000
"""Signed cells of a class that are looked at, the latest ones."""
MOST_OWN = 200
"""Images of one folder of which the model's features are taken, at the first demand."""


@dataclass(frozen=True)
class Reference:
    """A cell that a reviewer signed as `label`, with what its case is called.

    distance: how unlike the cell in question it is for that one's model, None where unknown.
    """

    cell_id: int
    case_id: str
    pseudonym: str
    label: str
    confidence: float
    distance: float | None


def place_of(session: Session, cell_id: int, model_id: int) -> bytes | None:
    """Where a model's features put a cell, None where that isn't known."""
    query = select(Reading.place).where(Reading.cell_id == cell_id, Reading.model_id == model_id)
    return session.scalar(query)


def signed(
    session: Session, case: Case, label: str, most: int = 6, place: bytes | None = None
) -> list[Reference]:
    """Cells of other, signed cases that were given `label`: those first that a reviewer named or
    confirmed himself, then those nearest to `place`, then those of which the model was surest.

    place: where the model of `case` puts the cell in question. Of each case at most two, so that
    one patient doesn't stand for a class.
    """
    same = aliased(Reading)  # what the present case's model says of them, where it has read them
    query = (
        select(Cell.id, Case.id, Case.pseudonym, Reading.confidence, same.place, Cell.label,
               Reading.predicted)
        .join(Case, Case.id == Cell.case_id)
        .join(Reading, and_(Reading.cell_id == Cell.id, Reading.model_id == Case.model_id))
        .outerjoin(same, and_(same.cell_id == Cell.id, same.model_id == case.model_id))
        .where(
            Case.state == "signed",
            Case.id != case.id,
            (Cell.label == label) | (Cell.label.is_(None) & (Reading.predicted == label)),
        )
        .order_by(Cell.label.is_(None), Cell.id.desc())
        .limit(MOST)
    )  # fmt: skip
    rows = [
        (given is None, distance(place, there) if place and there else math.inf,
         predicted != label, -confidence, cell_id, case_id, pseudonym)
        for cell_id, case_id, pseudonym, confidence, there, given, predicted
        in session.execute(query)
    ]  # fmt: skip
    found: list[Reference] = []
    for _, far, _, less, cell_id, case_id, pseudonym in sorted(rows):
        if sum(one.case_id == case_id for one in found) < 2:
            known = far if math.isfinite(far) else None
            found.append(Reference(cell_id, case_id, pseudonym, label, -less, known))
        if len(found) == most:
            break
    return found


class References:
    """The laboratory's own reference images (final): DIR/<class>/<image>."""

    def __init__(self, folder: Path | None, reader: Reader, decoder: Decoder) -> None:
        self.reader, self.decoder = reader, decoder
        self.images: dict[str, list[Path]] = {}
        self._places: dict[str, list[bytes | None]] = {}
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

    def nearest(self, label: str, most: int, place: bytes | None) -> list[tuple[int, float | None]]:
        """Number and distance of images of a class, those nearest to `place` first."""
        there = self._places_of(label) if place else []
        far = [distance(place, one) if place and one else math.inf for one in there]
        far += [math.inf] * (len(self.images.get(label, [])) - len(far))
        first = sorted(range(len(far)), key=far.__getitem__)[: max(0, most)]
        return [(n, far[n] if math.isfinite(far[n]) else None) for n in first]

    def _places_of(self, label: str) -> list[bytes | None]:
        if label not in self._places:
            found: list[bytes | None] = []
            paths = self.images.get(label, [])[:MOST_OWN]
            for start in range(0, len(paths), BATCH):
                found += self._read(paths[start : start + BATCH])
            self._places[label] = found
        return self._places[label]

    def _read(self, paths: list[Path]) -> list[bytes | None]:
        images: dict[int, np.ndarray] = {}
        for n, path in enumerate(paths):
            try:
                images[n] = self.decoder.prepared(path)
            except UnreadableError:
                continue  # shown, it says so itself
        if not images:
            return [None] * len(paths)
        features = self.reader.answer(np.stack(list(images.values()))).features
        places = dict(zip(images, places_of(self.reader, features), strict=True))
        return [places.get(n) for n in range(len(paths))]

    def image(self, label: str, number: int) -> bytes:
        """One of them as a PNG; NotFound where there is none."""
        if not 0 <= number < len(self.images.get(label, [])):
            raise NotFound(f"There is no reference image {number} of {label!r}")
        return self.decoder.picture(self.images[label][number])
