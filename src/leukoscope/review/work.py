"""What jobs do. Each can be done again after a stop: what is there already is left alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from leukoscope.bundle.inference import Reader
from leukoscope.errors import LeukoscopeError, UnreadableError
from leukoscope.imaging import cells as imaging_cells
from leukoscope.parallel import ahead
from leukoscope.review import audit, cases, files, intake, jobs
from leukoscope.review.blobs import Blobs, free_bytes
from leukoscope.review.cases import NewCell
from leukoscope.review.database import Database
from leukoscope.review.decoding import PROBLEM, Cut, Opened
from leukoscope.review.metrics import Metrics
from leukoscope.review.problems import DecoderFailed
from leukoscope.review.reading import said
from leukoscope.review.schema import Cell, Job, Upload, User
from leukoscope.review.settings import Settings
from leukoscope.review.untrusted import TOGETHER as CHUNK

log = logging.getLogger("leukoscope.review")
TOGETHER = 16
"""Cells written at once, or as many as are read in SECONDS, so that progress shows; more would keep
people's acts waiting for the writer's turn."""
SECONDS = 2.0
MOMENT = 0.5  # seconds in which the next file of many follows
DEPTH = 4  # files opened ahead
SMALL = 16  # cells made ready ahead
PATIENT = 2  # attempts; later ones go file by file


@dataclass(frozen=True)
class Tools:
    """What jobs work with. `check` is called between steps and raises where the server stops;
    `pause` waits so many seconds, or until then; `turn_over` says whether it is another
    person's turn; `pass_on`, called where all that was read is written, then raises."""

    settings: Settings
    database: Database
    reader: Reader
    model_id: int
    blobs: Blobs
    check: Callable[[], None]
    pause: Callable[[float], object]
    turn_over: Callable[[Job], bool]
    pass_on: Callable[[Job], None]
    metrics: Metrics


@dataclass(frozen=True)
class Ready:
    """A cell cut out, stored and prepared for the model, (3, h, w); box None: the whole file."""

    sha256: str
    width: int
    height: int
    box: imaging_cells.Box | None
    quality: tuple[str, ...]
    prepared: np.ndarray


@dataclass
class Batch:
    """What is written together: cells with the upload they are of, and uploads that are through."""

    cells: list[tuple[str, Ready]] = field(default_factory=list)
    uploads: dict[str, dict[str, object]] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    @property
    def full(self) -> bool:
        """Whether it is time to write."""
        return len(self.cells) >= TOGETHER or time.monotonic() - self.since > SECONDS


# --- intake ---------------------------------------------------------------------------------------


def take_in(tools: Tools, job: Job, by: User) -> None:
    """Open every received file of the case; add its cells with what the model says of them."""
    case_id = str(job.case_id)
    while uploads := _received(tools, case_id) or _awaited(tools, case_id):
        _count(tools, job, case_id)
        if job.arguments["attempts"] > PATIENT:
            uploads = uploads[:1]
            with tools.database.begin() as session:
                jobs.suspect(session, job, uploads[0])
        archives = {u.id for u in uploads if files.is_archive(tools.blobs.path(str(u.sha256)))}
        for upload in uploads:
            if upload.id in archives:
                _unpack(tools, job, by, upload)
                tools.pass_on(job)
        batch = Batch()
        images = [upload for upload in uploads if upload.id not in archives]
        for upload, found in ahead(partial(_open, tools), images, DEPTH):
            batch.uploads[upload.id] = _collect(tools, job, by, batch, upload, found)
            if batch.full or tools.turn_over(job):
                batch = _write(tools, job, by, batch)
                tools.pass_on(job)
        _write(tools, job, by, batch)
        tools.pass_on(job)


def _received(tools: Tools, case_id: str) -> list[Upload]:
    with tools.database.read() as session:
        query = select(Upload).where(Upload.case_id == case_id, Upload.state == "received")
        return list(session.scalars(query.order_by(Upload.created, Upload.id).limit(500)))


def _awaited(tools: Tools, case_id: str) -> list[Upload]:
    """What comes within a moment: files come one after the other, and are one job."""
    tools.pause(MOMENT)
    return _received(tools, case_id)


def _count(tools: Tools, job: Job, case_id: str) -> None:
    """How many files are through, of how many."""
    with tools.database.begin() as session:
        waiting = session.scalar(
            select(func.count()).where(Upload.case_id == case_id, Upload.state == "received")
        )
        present = session.get_one(Job, job.id)
        present.total = present.done + (waiting or 0)


def _unpack(tools: Tools, job: Job, by: User, upload: Upload) -> None:
    """Make an upload of each file in an archive."""
    state, error = "done", ""
    path = tools.blobs.path(str(upload.sha256))
    try:
        for member in files.members(path, tools.blobs):
            tools.check()
            _add_member(tools, job, by, upload, member)
            if free_bytes(tools.blobs.incoming) < intake.SPARE:
                raise UnreadableError("the server's disk is nearly full", fix="Free some space.")
    except UnreadableError as problem:
        state, error = "failed", str(problem)
        _note_crash(tools, upload, problem)
    with tools.database.begin() as session:
        present = session.get_one(Upload, upload.id)
        present.kind, present.state, present.error = "archive", state, error
        if state == "failed":
            _note_failure(session, by, present)
        jobs.got_on(session, job, 1)


def _add_member(tools: Tools, job: Job, by: User, archive: Upload, member: files.Member) -> None:
    member_id = files.member_id(archive.id, member.place)
    with tools.database.begin() as session:
        if session.get(Upload, member_id) is not None:
            return
        made = Upload(
            id=member_id, case_id=archive.case_id, parent_id=archive.id, name=member.name,
            kind=archive.kind, size=member.size, received=member.size, sha256=member.sha256,
            state="received" if member.sha256 else "failed", error=member.error,
            created_by=archive.created_by,
        )  # fmt: skip
        session.add(made)
        session.flush()
        if intake.twin(session, made) is not None:
            made.state = "duplicate"
        audit.record(
            session, by, "upload", cases.find(session, archive.case_id), name=made.name,
            sha256=made.sha256, state=made.state, archive=archive.sha256,
        )  # fmt: skip
        jobs.got_on(session, job, 0)
    if member.crashed:
        _note_crash(tools, made, DecoderFailed(member.error))


def _note_crash(tools: Tools, upload: Upload, problem: LeukoscopeError | None) -> None:
    """A line in the audit log where a decoder failed on a file."""
    if isinstance(problem, DecoderFailed):
        with tools.database.begin() as session:
            audit.record(
                session, "server", "decoder failed", cases.find(session, upload.case_id),
                name=upload.name, upload=upload.id, sha256=upload.sha256, error=problem.message,
            )  # fmt: skip


Found = Opened | LeukoscopeError
"""What a file shows, with its cells; or why it can't be used."""


def _open(tools: Tools, upload: Upload) -> tuple[Upload, Found]:
    blobs = tools.blobs
    try:
        return upload, blobs.decoder.open(blobs.path(str(upload.sha256)), upload.kind)
    except LeukoscopeError as problem:
        return upload, problem
    except Exception:
        log.exception("upload %s can't be processed", upload.id)
        return upload, LeukoscopeError(PROBLEM)


def _collect(
    tools: Tools, job: Job, by: User, batch: Batch, upload: Upload, found: Found
) -> dict[str, object]:
    """Put the cells of a file into the batch, which is written when full; how the file fared."""
    tools.check()
    if isinstance(found, LeukoscopeError):
        _note_crash(tools, upload, found)
        return {"state": "failed", "error": str(found)}
    fared: dict[str, object] = {"kind": found.kind, "width": found.width, "height": found.height}
    try:
        _refuse_too_many(tools, str(job.case_id), batch, max(len(found.boxes), len(found.cells)))
        for ready in _cells(tools, upload, found):
            tools.check()
            batch.cells.append((upload.id, ready))
            if batch.full:
                _write(tools, job, by, batch)
    except LeukoscopeError as problem:
        _note_crash(tools, upload, problem)
        return fared | {"state": "failed", "error": str(problem)}
    none = found.kind == "field" and not found.boxes
    return fared | {"state": "done", "error": "No white cell was found in it" if none else ""}


def _cells(tools: Tools, upload: Upload, found: Opened) -> Iterator[Ready]:
    """The cells of a file; those of a field stored by themselves, the later ones cut in chunks."""
    boxes = found.boxes or (None,)
    yield from map(partial(_ready, tools, upload), found.cells, boxes)
    later = found.boxes[len(found.cells) :]
    chunks = [list(later[start : start + CHUNK]) for start in range(0, len(later), CHUNK)]
    for ready in ahead(partial(_chunk, tools, upload), chunks, 2):
        yield from ready


def _chunk(tools: Tools, upload: Upload, boxes: list[imaging_cells.Box]) -> list[Ready]:
    path = tools.blobs.path(str(upload.sha256))
    return list(map(partial(_ready, tools, upload), tools.blobs.decoder.cut(path, boxes), boxes))


def _ready(tools: Tools, upload: Upload, cut: Cut, box: imaging_cells.Box | None) -> Ready:
    sha256 = tools.blobs.put(cut.png) if box else str(upload.sha256)
    return Ready(sha256, cut.width, cut.height, box, cut.quality, cut.prepared)


def _refuse_too_many(tools: Tools, case_id: str, batch: Batch, new: int) -> None:
    with tools.database.read() as session:
        there = session.scalar(select(func.count()).where(Cell.case_id == case_id)) or 0
    most = tools.settings.cells_per_case
    if there + len(batch.cells) + new > most:
        raise UnreadableError(
            f"The case would have more than {most:,} cells", fix="Begin another case."
        )


def _write(tools: Tools, job: Job, by: User, batch: Batch) -> Batch:
    """Have the model read the batch; store cells, readings and progress; an empty batch."""
    readings = said(tools.reader, [ready.prepared for _, ready in batch.cells])
    new = [
        NewCell(
            upload_id=upload_id, sha256=ready.sha256, width=ready.width, height=ready.height,
            reading=reading, quality=ready.quality,
            **_place(ready.box),
        )
        for (upload_id, ready), reading in zip(batch.cells, readings, strict=True)
    ]  # fmt: skip
    with tools.database.begin() as session:
        if new:
            cases.add_cells(session, by, str(job.case_id), tools.model_id, new)
        for upload_id, fared in batch.uploads.items():
            session.execute(update(Upload).where(Upload.id == upload_id).values(**fared))
            if fared["state"] == "failed":
                _note_failure(session, by, session.get_one(Upload, upload_id))
        jobs.got_on(session, job, len(batch.uploads))
    tools.metrics.cells.inc(len(batch.cells))
    batch.cells.clear()
    batch.uploads.clear()
    batch.since = time.monotonic()
    return batch


def _note_failure(session: Session, by: User, upload: Upload) -> None:
    case = cases.find(session, upload.case_id)
    audit.record(
        session, by, "failed upload", case, name=upload.name, sha256=upload.sha256,
        error=upload.error,
    )  # fmt: skip


def _place(box: imaging_cells.Box | None) -> dict[str, int]:
    if box is None:
        return {}
    return {"x": box.x, "y": box.y, "box_width": box.width, "box_height": box.height}


# --- reading again --------------------------------------------------------------------------------


def read_again(tools: Tools, job: Job, by: User) -> None:
    """Have the served model read all cells of a case and show that; earlier readings stay."""
    case_id = str(job.case_id)
    with tools.database.read() as session:
        missing = cases.unread(session, case_id, tools.model_id)
        hashes = dict(
            session.execute(select(Cell.id, Cell.sha256).where(Cell.case_id == case_id)).all()
        )
    with tools.database.begin() as session:
        present = session.get_one(Job, job.id)
        present.total = present.done + len(missing)
    for start in range(0, len(missing), TOGETHER):
        tools.check()
        _read_again(tools, job, by, [(i, hashes[i]) for i in missing[start : start + TOGETHER]])
        tools.pass_on(job)
    with tools.database.begin() as session:
        cases.use_model(session, by, case_id, tools.model_id)


def _read_again(tools: Tools, job: Job, by: User, cells: Sequence[tuple[int, str]]) -> None:
    def prepared(cell: tuple[int, str]) -> np.ndarray:
        return tools.blobs.decoder.prepared(tools.blobs.path(cell[1]))

    readings = said(tools.reader, list(ahead(prepared, cells, SMALL)))
    found = {cell_id: reading for (cell_id, _), reading in zip(cells, readings, strict=True)}
    with tools.database.begin() as session:
        cases.add_readings(session, by, str(job.case_id), tools.model_id, found)
        jobs.got_on(session, job, len(found))
    tools.metrics.cells.inc(len(found))
