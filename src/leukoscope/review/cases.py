"""Cases, their cells, and what models said of them.

A cell shows the reading of its case's model; readings of other models stay beside it for ever.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, insert, or_, select, update
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from leukoscope.bundle.contract import Contract
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.review import audit
from leukoscope.review.accounts import acting
from leukoscope.review.problems import Conflict, NotFound, text
from leukoscope.review.schema import Case, Cell, Change, Model, Reading, Upload, User
from leukoscope.review.settings import LARGEST_PIXEL, SMALLEST_PIXEL

EXTRA_LABELS = ("artefact", "unclassifiable")
"""What a reviewer may call a cell beside the model's classes; not counted in the differential."""
STATES = ("open", "signed")
ERASED = "erased"
"""The state, and the pseudonym, of a case that is there no more (`erasure`)."""
FLAGS = ("novel", "doubtful", "")  # the order in which a reviewer should look
_CLASSES: dict[tuple[URL, int], tuple[str, ...]] = {}
CHUNK = 5_000  # parameters of one statement: SQLite and PostgreSQL allow about 32,000


@dataclass(frozen=True)
class NewReading:
    """What a model said of one cell. probs: by class, sum 1; flag: one of FLAGS; place: as stored
    in `Reading`."""

    predicted: str
    confidence: float
    probs: dict[str, float]
    prediction_set: list[str]
    novelty: float | None = None
    flag: str = ""
    place: bytes | None = None


@dataclass(frozen=True)
class NewCell:
    """A cell to add; the box is in pixels of its field, None for an image of a single cell."""

    upload_id: str
    sha256: str
    width: int
    height: int
    reading: NewReading
    quality: tuple[str, ...] = ()
    x: int | None = None
    y: int | None = None
    box_width: int | None = None
    box_height: int | None = None


@dataclass(frozen=True)
class CellView:
    """A cell as a reviewer sees it. shown: the reviewer's label, or what the model predicted."""

    id: int
    upload_id: str
    field_name: str  # of the file that it came from
    x: int | None
    y: int | None
    box_width: int | None
    box_height: int | None
    width: int
    height: int
    sha256: str
    quality: list[str]
    label: str | None
    comment: str
    revision: int
    model_id: int
    predicted: str
    confidence: float
    probs: dict[str, float]
    prediction_set: list[str]
    novelty: float | None
    flag: str

    @property
    def shown(self) -> str:
        """The reviewer's label, or the predicted class where nobody has said anything."""
        return self.predicted if self.label is None else self.label


@dataclass(frozen=True)
class CaseRow:
    """A line of the list of cases. reviewed: cells that a reviewer has labelled or confirmed."""

    id: str
    pseudonym: str
    slide: str
    stain: str
    state: str
    version: int
    revision: int
    created: datetime.datetime
    created_by: str
    model: str
    model_version: str
    cells: int
    doubtful: int
    novel: int
    reviewed: int


# --- models ---------------------------------------------------------------------------------------


def register_model(
    session: Session, contract: Contract, graph_sha256: str, contract_sha256: str
) -> Model:
    """The row of a served bundle, made at the first time it is served."""
    found = session.scalar(select(Model).where(Model.contract_sha256 == contract_sha256))
    if found is not None:
        return found
    model = Model(
        sha256=graph_sha256,
        contract_sha256=contract_sha256,
        name=contract.name,
        version=contract.version,
        contract=contract.model_dump(mode="json"),
    )
    session.add(model)
    session.flush()
    audit.record(session, "server", "serve model", model=model, name=model.name)
    return model


def find_model(session: Session, model_id: int) -> Model:
    """The model with this number; NotFound otherwise."""
    model = session.get(Model, model_id) if 0 < model_id < 2**31 else None
    if model is None:
        raise NotFound(f"There is no model {model_id}", fix="Look into the list of models.")
    return model


def classes(session: Session, case: Case) -> list[str]:
    """The classes of the case's model, in the contract's order.

    They never change, and the whole contract, 300 kB, would be read at every act of a reviewer.
    """
    key = (session.get_bind().engine.url, case.model_id)
    if key not in _CLASSES:
        _CLASSES[key] = tuple(find_model(session, case.model_id).contract["classes"])
    return list(_CLASSES[key])


# --- cases ----------------------------------------------------------------------------------------


def create(
    session: Session,
    by: User,
    pseudonym: str,
    model_id: int,
    slide: str = "",
    stain: str = "",
    notes: str = "",
    pixel_size: float | None = None,
    key: str = "",
) -> Case:
    """A new open case; InputError where a text is too long or empty.

    pixel_size: micrometres a pixel of its images, None where unknown. key: chosen by who asks;
    asked again with the same one, the case that was made.
    """
    by = acting(session, by, "reviewer")
    model = find_model(session, model_id)
    described = _described(
        pseudonym=pseudonym, slide=slide, stain=stain, notes=notes, pixel_size=pixel_size
    )
    made_id = id_of("case", by, key)[:16]
    made = session.get(Case, made_id)
    if made is not None:
        if (made.pseudonym, made.slide) != (described["pseudonym"], described["slide"]):
            raise used_otherwise()
        return made
    made = Case(id=made_id, model_id=model.id, created_by=by.id, **described)
    session.add(made)
    session.flush()
    audit.record(session, by, "create case", made, model, pseudonym=made.pseudonym)
    return made


def edit(
    session: Session, by: User, case_id: str, revision_seen: int | None = None, **changed: Any
) -> Case:
    """Change pseudonym, slide, stain, notes or pixel_size of an open case: a revision of it.

    Conflict where somebody did so since `revision_seen`.
    """
    by = acting(session, by, "reviewer")
    found = open_case(session, case_id)
    allowed = [*_LENGTHS, "pixel_size"]
    unknown = set(changed) - set(allowed)
    if unknown:
        raise UnknownNameError("field", min(unknown), allowed)
    after = _described(**changed)
    was = {name: getattr(found, name) for name in after}
    if was == after:  # also where the request is sent again since its answer was lost
        return found
    if revision_seen is not None:
        _refuse_edited(session, found, revision_seen)
    for name, value in after.items():
        setattr(found, name, value)
    found.revision += 1
    session.add(
        Change(case_id=found.id, revision=found.revision, kind="edit", user_id=by.id,
               before=was, after=after)
    )  # fmt: skip
    audit.record(session, by, "edit case", found, was=was, now=after)
    return found


def id_of(kind: str, by: User, key: str) -> str:
    """An id of 32 characters, always the same for what one person calls by the same key; random
    without one."""
    if not key:
        return secrets.token_hex(16)
    return hashlib.sha256(f"{kind}/{by.id}/{key}".encode()).hexdigest()[:32]


def used_otherwise() -> Conflict:
    """The refusal where a key stands for something else already."""
    return Conflict(
        "This Idempotency-Key was used for something else",
        fix="Take a new one, random, for each new thing.",
        field="Idempotency-Key",
    )


def _refuse_edited(session: Session, found: Case, seen: int) -> None:
    """Cells may have come since then: those aren't in the way."""
    query = (
        select(User.name)
        .join(Change, Change.user_id == User.id)
        .where(Change.case_id == found.id, Change.kind == "edit", Change.revision > seen)
        .order_by(Change.revision.desc())
    )
    name = session.scalars(query.limit(1)).first()
    if name is not None:
        raise Conflict(
            f"{name} changed what the case is called since you saw it",
            fix="Load the page again, then decide.",
            field="revision_seen",
        )


def find(session: Session, case_id: str) -> Case:
    """The case; NotFound otherwise."""
    known = case_id.isalnum() and case_id.isascii()  # PostgreSQL refuses odd characters
    found = session.get(Case, case_id) if known else None
    if found is None or found.state == ERASED:
        raise NotFound("There is no such case", fix="Look into the list of cases.", field="case")
    return found


def open_case(session: Session, case_id: str) -> Case:
    """The case; Conflict where it is signed."""
    found = find(session, case_id)
    if found.state != "open":
        raise Conflict(
            f"The case is signed (version {found.version})",
            fix="Amend it first: that begins a new version.",
            field="state",
        )
    return found


def cases(
    session: Session, query: str = "", state: str = "", before: str | None = None, limit: int = 50
) -> list[CaseRow]:
    """Cases, newest first; those whose pseudonym, slide or notes contain `query`.

    before: the id of the last case already seen; state: open, signed, or "" for both.
    """
    wanted: list[ColumnElement[bool]] = [Case.state != ERASED]
    if state:
        if state not in STATES:
            raise UnknownNameError("state", state, STATES)
        wanted.append(Case.state == state)
    query = text(query, "query", most=128)
    if query:
        texts = (Case.pseudonym, Case.slide, Case.notes)
        wanted.append(or_(*(column.icontains(query, autoescape=True) for column in texts)))
    if before is not None:
        last = find(session, before)
        older = and_(Case.created == last.created, Case.id < last.id)
        wanted.append(or_(Case.created < last.created, older))
    page = (
        select(Case, User.name, Model.name, Model.version)
        .join(User, User.id == Case.created_by)
        .join(Model, Model.id == Case.model_id)
        .where(*wanted)
        .order_by(Case.created.desc(), Case.id.desc())
        .limit(limit)
    )
    rows = session.execute(page).all()
    counts = _counts(session, [row[0].id for row in rows])
    return [
        CaseRow(
            c.id, c.pseudonym, c.slide, c.stain, c.state, c.version, c.revision, c.created,
            creator, model, version, *counts.get(c.id, (0, 0, 0, 0)),
        )
        for c, creator, model, version in rows
    ]  # fmt: skip


def _counts(session: Session, case_ids: list[str]) -> dict[str, tuple[int, int, int, int]]:
    """Cells, doubtful, novel and labelled ones of each case, by the readings that it shows."""
    query = (
        select(
            Cell.case_id,
            func.count(),
            func.sum(case((Reading.flag == "doubtful", 1), else_=0)),
            func.sum(case((Reading.flag == "novel", 1), else_=0)),
            func.count(Cell.label),
        )
        .join(Case, Case.id == Cell.case_id)
        .join(Reading, and_(Reading.cell_id == Cell.id, Reading.model_id == Case.model_id))
        .where(Cell.case_id.in_(case_ids))
        .group_by(Cell.case_id)
    )
    return {row[0]: (row[1], int(row[2]), int(row[3]), row[4]) for row in session.execute(query)}


_LENGTHS = {"pseudonym": (1, 128), "slide": (0, 128), "stain": (0, 64), "notes": (0, 10_000)}


def _described(**given: Any) -> dict[str, Any]:
    """What describes a case, checked."""
    found = {
        name: text(value, name, least=_LENGTHS[name][0], most=_LENGTHS[name][1],
                   lines=name == "notes")
        for name, value in given.items() if name in _LENGTHS
    }  # fmt: skip
    if "pixel_size" not in given:
        return found
    size = given["pixel_size"]
    if size is not None and not SMALLEST_PIXEL <= size <= LARGEST_PIXEL:
        raise InputError(
            f"A pixel of {size} micrometres; allowed: {SMALLEST_PIXEL} to {LARGEST_PIXEL}",
            fix="Measure it with a stage micrometre, or leave it out.",
            field="pixel_size",
        )
    return found | {"pixel_size": size}


# --- cells and readings ---------------------------------------------------------------------------


def add_cells(
    session: Session, by: User, case_id: str, model_id: int, cells: Sequence[NewCell]
) -> list[int]:
    """Add cells with their first readings in one revision; the ids of those that are new.

    A cell already there (same upload, same place) is left alone, so work that was interrupted can
    be done again. The role isn't asked: that was done when the work was ordered, and it must be
    finished also where the account was shut meanwhile. Conflict where the case is signed or shows
    another model.
    """
    found = open_case(session, case_id)
    if found.model_id != find_model(session, model_id).id:
        raise Conflict(
            "The case shows another model",
            fix="Read its cells again with this model first.",
            field="model",
        )
    uploads = {cell.upload_id for cell in cells}
    there = select(Cell.upload_id, Cell.x, Cell.y).where(Cell.case_id == found.id)
    known = {tuple(row) for row in session.execute(there.where(Cell.upload_id.in_(uploads)))}
    new = {(c.upload_id, c.x, c.y): c for c in cells if (c.upload_id, c.x, c.y) not in known}
    if not new:
        return []
    found.revision += 1
    rows = [_cell_row(found, cell) for cell in new.values()]
    made = insert(Cell).returning(Cell.id, sort_by_parameter_order=True)
    ids = list(session.scalars(made, rows))
    _insert_readings(
        session, model_id, {i: c.reading for i, c in zip(ids, new.values(), strict=True)}
    )
    _note_reading(session, by, found, ids)
    audit.record(session, by, "read cells", found, cells=len(ids))
    return ids


def _cell_row(found: Case, cell: NewCell) -> dict[str, Any]:
    return {
        "case_id": found.id,
        "upload_id": cell.upload_id,
        "sha256": cell.sha256,
        "width": cell.width,
        "height": cell.height,
        "x": cell.x,
        "y": cell.y,
        "box_width": cell.box_width,
        "box_height": cell.box_height,
        "quality": list(cell.quality),
        "revision": found.revision,
    }


def add_readings(
    session: Session, by: User, case_id: str, model_id: int, readings: Mapping[int, NewReading]
) -> int:
    """Readings of a case's cells by another model; the number of new ones, old ones stay as is.

    They are shown once `use_model` says so. Conflict where the case is signed.
    """
    found = open_case(session, case_id)
    model = find_model(session, model_id)
    mine = set(session.scalars(select(Cell.id).where(Cell.case_id == found.id)))
    strange = sorted(set(readings) - mine)
    if strange:
        raise NotFound(f"The case has no cell {strange[0]}")
    known = (
        select(Reading.cell_id)
        .join(Cell, Cell.id == Reading.cell_id)
        .where(Cell.case_id == found.id, Reading.model_id == model.id)
    )
    done = set(session.scalars(known))
    new = {cell_id: reading for cell_id, reading in readings.items() if cell_id not in done}
    if new:
        _insert_readings(session, model.id, new)
        audit.record(session, by, "read cells again", found, model, cells=len(new))
    return len(new)


def use_model(session: Session, by: User, case_id: str, model_id: int) -> Case:
    """Show the readings of another model; labels, comments and earlier readings stay.

    Conflict where the case is signed or a cell wasn't read by that model.
    """
    found = open_case(session, case_id)
    model = find_model(session, model_id)
    if found.model_id == model.id:
        return found
    missing = unread(session, found.id, model.id)
    if missing:
        raise Conflict(
            f"{len(missing)} cells of the case weren't read by {model.name} {model.version}",
            fix="Read the case again with it.",
            field="model",
        )
    was = session.get_one(Model, found.model_id)
    found.model_id = model.id
    found.revision += 1
    ids = list(session.scalars(select(Cell.id).where(Cell.case_id == found.id)))
    session.execute(
        update(Cell).where(Cell.case_id == found.id).values(revision=found.revision),
        execution_options={"synchronize_session": False},
    )
    _note_reading(session, by, found, ids)
    audit.record(session, by, "use model", found, model, was=was.contract_sha256)
    return found


def unread(session: Session, case_id: str, model_id: int) -> list[int]:
    """The ids of a case's cells that the model hasn't read, in order."""
    read = exists().where(Reading.cell_id == Cell.id, Reading.model_id == model_id)
    query = select(Cell.id).where(Cell.case_id == case_id, ~read).order_by(Cell.id)
    return list(session.scalars(query))


def _insert_readings(session: Session, model_id: int, readings: Mapping[int, NewReading]) -> None:
    for reading in readings.values():
        if reading.flag not in FLAGS:
            raise InputError(f"Unknown flag {reading.flag!r}", field="flag")
    session.execute(
        insert(Reading),
        [
            {
                "cell_id": cell_id,
                "model_id": model_id,
                "predicted": reading.predicted,
                "confidence": reading.confidence,
                "probs": reading.probs,
                "prediction_set": reading.prediction_set,
                "novelty": reading.novelty,
                "flag": reading.flag,
                "place": reading.place,
            }
            for cell_id, reading in readings.items()
        ],
    )


def _note_reading(session: Session, by: User, found: Case, ids: list[int]) -> None:
    after = {str(cell_id): {"model": found.model_id} for cell_id in ids}
    session.add(
        Change(case_id=found.id, revision=found.revision, kind="read", user_id=by.id,
               before={}, after=after)
    )  # fmt: skip
    session.flush()


_VIEW = (
    Cell.id, Cell.upload_id, Upload.name, Cell.x, Cell.y, Cell.box_width, Cell.box_height,
    Cell.width, Cell.height, Cell.sha256, Cell.quality, Cell.label, Cell.comment, Cell.revision,
    Reading.model_id, Reading.predicted, Reading.confidence, Reading.probs,
    Reading.prediction_set, Reading.novelty, Reading.flag,
)  # fmt: skip


def cells(session: Session, case_id: str, since: int = -1) -> list[CellView]:
    """The cells of a case, or those changed after revision `since`, in the order of looking.

    By the class shown, in the contract's order; within it flagged ones first (novel, doubtful),
    then the least confident.
    """
    found = find(session, case_id)
    query = (
        select(*_VIEW)
        .join(Upload, Upload.id == Cell.upload_id)
        .join(Reading, and_(Reading.cell_id == Cell.id, Reading.model_id == found.model_id))
        .where(Cell.case_id == found.id)
    )
    if since >= 0:
        query = query.where(Cell.revision > min(since, 2**31 - 1))
    views = [CellView(*row) for row in session.execute(query)]
    order = {name: place for place, name in enumerate([*classes(session, found), *EXTRA_LABELS])}
    last = len(order)  # classes of an earlier model

    def place(view: CellView) -> tuple[Any, ...]:
        shown = view.shown
        return (order.get(shown, last), shown, FLAGS.index(view.flag), view.confidence, view.id)

    return sorted(views, key=place)


def labels(session: Session, case: Case) -> list[tuple[str, str | None]]:
    """What the model and what the reviewer, if anybody, calls each cell: all that a count needs."""
    query = (
        select(Reading.predicted, Cell.label)
        .join(Cell, Cell.id == Reading.cell_id)
        .where(Cell.case_id == case.id, Reading.model_id == case.model_id)
    )
    return [(predicted, label) for predicted, label in session.execute(query)]


def find_cell(session: Session, cell_id: int) -> Cell:
    """The cell with this number; NotFound otherwise."""
    cell = session.get(Cell, cell_id, populate_existing=True) if 0 < cell_id < 2**31 else None
    if cell is None:
        raise NotFound(f"There is no cell {cell_id}", field="cell")
    return cell


def readings(session: Session, cell_id: int) -> list[Reading]:
    """Everything that models ever said of a cell, in order."""
    query = select(Reading).where(Reading.cell_id == find_cell(session, cell_id).id)
    return list(session.scalars(query.order_by(Reading.id)))
