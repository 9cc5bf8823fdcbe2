"""What jobs do. Each can be done again after a stop: what is there already is left alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from sqlalchemy import func, select, update

from leukoscope.bundle.inference import Reader
from leukoscope.errors import LeukoscopeError, UnreadableError
from leukoscope.imaging import cells as imaging_cells
from leukoscope.imaging.quality import flags
from leukoscope.parallel import ahead
from leukoscope.review import audit, cases, files, intake
from leukoscope.review.blobs import Blobs, png
from leukoscope.review.cases import NewCell
from leukoscope.review.database import Database
from leukoscope.review.metrics import Metrics
from leukoscope.review.reading import said
from leukoscope.review.schema import Cell, Job, Upload, User
from leukoscope.review.settings import Settings

log = logging.getLogger("leukoscope.review")
TOGETHER = 64
"""Cells written at once, or as many as are read in SECONDS, so that progress shows."""
SECONDS = 2.0
MOMENT = 0.5  # seconds in which the next file of many follows
DEPTH = 4  # whole images decoded ahead: each may take 300 MB
SMALL = 16  # cells made ready ahead
PROBLEM = "It can't be processed; the server's log has more"


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
        for member in files.members(path, tools.blobs, tools.settings):
            tools.check()
            _add_member(tools, by, upload, member)
    except UnreadableError as problem:
        state, error = "failed", str(problem)
    with tools.database.begin() as session:
        present = session.get_one(Upload, upload.id)
        present.kind, present.state, present.error = "archive", state, error
        session.get_one(Job, job.id).done += 1


def _add_member(tools: Tools, by: User, archive: Upload, member: files.Member) -> None:
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


Found = tuple[files.Opened, Ready | None] | str
"""What a file shows, with its cell where it is of a single one; or why it can't be used."""


def _open(tools: Tools, upload: Upload) -> tuple[Upload, Found]:
    try:
        image = tools.blobs.pixels(str(upload.sha256))
        opened = files.opened(image, upload.kind)
        single = _ready(tools, upload, opened, None) if opened.kind == "cell" else None
        return upload, (opened, single)
    except LeukoscopeError as problem:
        return upload, str(problem)
    except Exception:
        log.exception("upload %s can't be processed", upload.id)
        return upload, PROBLEM


def _ready(
    tools: Tools, upload: Upload, opened: files.Opened, box: imaging_cells.Box | None
) -> Ready:
    sha256, image = str(upload.sha256), opened.image
    if box is not None:
        (image,) = imaging_cells.crop(opened.image, [box])
        sha256 = tools.blobs.put(png(image))
    height, width = image.shape[:2]
    return Ready(sha256, width, height, box, tuple(flags(image)), tools.reader.prepare(image))


def _collect(
    tools: Tools, job: Job, by: User, batch: Batch, upload: Upload, found: Found
) -> dict[str, object]:
    """Put the cells of a file into the batch, which is written when full; how the file fared."""
    tools.check()
    if isinstance(found, str):
        return {"state": "failed", "error": found}
    opened, single = found
    fared: dict[str, object] = {
        "kind": opened.kind,
        "width": opened.image.shape[1],
        "height": opened.image.shape[0],
    }
    try:
        _refuse_too_many(tools, str(job.case_id), batch, 1 if single else len(opened.boxes))
        for ready in _cells(tools, upload, opened, single):
            tools.check()
            batch.cells.append((upload.id, ready))
            if batch.full:
                _write(tools, job, by, batch)
    except LeukoscopeError as problem:
        return fared | {"state": "failed", "error": str(problem)}
    none = opened.kind == "field" and not opened.boxes
    return fared | {"state": "done", "error": "No white cell was found in it" if none else ""}


def _cells(
    tools: Tools, upload: Upload, opened: files.Opened, single: Ready | None
) -> Iterator[Ready]:
    if single is not None:
        yield single
    yield from ahead(partial(_ready, tools, upload, opened), opened.boxes, SMALL)


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
        session.get_one(Job, job.id).done += len(batch.uploads)
    tools.metrics.cells.inc(len(batch.cells))
    batch.cells.clear()
    batch.uploads.clear()
    batch.since = time.monotonic()
    return batch


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
        return tools.reader.prepare(tools.blobs.pixels(cell[1]))

    readings = said(tools.reader, list(ahead(prepared, cells, SMALL)))
    found = {cell_id: reading for (cell_id, _), reading in zip(cells, readings, strict=True)}
    with tools.database.begin() as session:
        cases.add_readings(session, by, str(job.case_id), tools.model_id, found)
        session.get_one(Job, job.id).done += len(found)
    tools.metrics.cells.inc(len(found))
