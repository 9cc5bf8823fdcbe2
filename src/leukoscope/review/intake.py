"""Files on their way in: received in pieces, recognised, archives opened, cells found in fields.

Bytes go to disk as they come; what has arrived is kept when a connection breaks, and sending goes
on from there. Nothing of a name that came from outside is ever used as a path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import BinaryIO, Literal

import anyio
from anyio.to_thread import run_sync
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.files import atomic
from leukoscope.review import audit, cases, jobs
from leukoscope.review.accounts import acting
from leukoscope.review.blobs import Blobs, free_bytes
from leukoscope.review.database import Database
from leukoscope.review.files import clean
from leukoscope.review.limits import lane
from leukoscope.review.problems import Conflict, NotFound
from leukoscope.review.schema import Upload, User
from leukoscope.review.settings import Settings

Kind = Literal["auto", "cell", "field"]
KINDS: tuple[Kind, ...] = ("auto", "cell", "field")
ON_THEIR_WAY = Upload.state.in_(("receiving", "received"))
SILENCE = 60
"""Seconds without a byte after which an upload is cut off; it can be continued."""
SPARE = 200_000_000
"""Bytes that stay free on the disk for the database."""


# --- receiving ------------------------------------------------------------------------------------


def start(
    session: Session,
    by: User,
    case_id: str,
    name: str,
    size: int,
    kind: str,
    *,
    settings: Settings,
    model_id: int,
    key: str = "",
) -> Upload:
    """Announce a file of `size` bytes for an open case; its bytes follow by `append`.

    kind: what an image shows, `auto` to have that found out; a .zip is opened. InputError where it
    is too large, Conflict where the case is signed or shows another model than the one served.
    key: chosen by who asks; asked again with the same one, the upload that was announced.
    """
    by = acting(session, by, "reviewer")
    upload_id = cases.id_of(f"upload/{case_id}", by, key)
    announced = session.get(Upload, upload_id)
    if announced is not None:
        if (announced.name, announced.size) != (clean(name), size):
            raise cases.used_otherwise()
        return announced
    case = cases.open_case(session, case_id)
    if case.model_id != model_id:
        raise Conflict(
            "The case was read by another model than the one that is served now",
            fix="Read it again with the present model first; what the other one said stays.",
            field="model",
        )
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    name = clean(name)
    most = settings.archive_bytes if name.lower().endswith(".zip") else settings.file_bytes
    if not 0 < size <= most:
        raise InputError(
            f"{name} has {size:,} bytes; allowed: 1 to {most:,}",
            fix="Cut or pack it differently.",
            field="size",
        )
    _refuse_too_many(session, by, case_id, settings)
    if free_bytes(settings.folder) < size + SPARE:
        raise InputError(
            "The server's disk is nearly full", fix="Ask whoever runs it for space.", field="size"
        )
    upload = Upload(
        id=upload_id, case_id=case.id, name=name, kind=kind, size=size, created_by=by.id
    )
    session.add(upload)
    session.flush()
    audit.record(session, by, "announce upload", case, name=name, size=size, upload=upload.id)
    return upload


def _refuse_too_many(session: Session, by: User, case_id: str, settings: Settings) -> None:
    coming = select(func.count()).where(ON_THEIR_WAY)
    jobs.refuse_beyond(
        session,
        (coming.where(Upload.created_by == by.id), settings.files_per_user),
        (coming, settings.files_waiting),
        said="files {whose}are on their way or wait to be read",
        fix="Wait until some are read, or give up those that were cut off.",
    )
    jobs.refuse_too_many(session, by, settings, besides=case_id)
    there = session.scalar(select(func.count()).where(Upload.case_id == case_id)) or 0
    if there >= settings.cells_per_case:
        raise InputError(
            f"The case has {there:,} files; allowed: {settings.cells_per_case:,}",
            fix="Begin another case.",
            field="case",
        )


def find(session: Session, upload_id: str) -> Upload:
    """The upload; NotFound otherwise."""
    known = upload_id.isalnum() and upload_id.isascii()
    found = session.get(Upload, upload_id) if known else None
    if found is None:
        raise NotFound("There is no such upload", field="upload")
    return found


def receiving(session: Session) -> set[str]:
    """The ids of the uploads of which bytes still come."""
    return set(session.scalars(select(Upload.id).where(Upload.state == "receiving")))


async def append(
    database: Database, blobs: Blobs, upload_id: str, offset: int, chunks: AsyncIterator[bytes]
) -> None:
    """Write what comes from `offset` on; what arrived before a break is kept.

    Conflict, saying how many bytes there are, where `offset` isn't that number.
    """
    aside = partial(run_sync, limiter=lane("uploads"))
    with _alone(upload_id):
        size, handle = await aside(_open, database, blobs, upload_id, offset)
        arrived = offset
        try:
            async for chunk in _in_time(chunks):
                if arrived + len(chunk) > size:
                    raise InputError(
                        f"More bytes than the {size:,} announced",
                        fix="Begin the upload anew with the right size.",
                        field="size",
                    )
                await aside(handle.write, chunk)
                arrived += len(chunk)
        finally:
            # Also where the connection broke or the server stops: what is there counts.
            with anyio.CancelScope(shield=True):
                await aside(_arrived, database, handle, upload_id, arrived)


async def _in_time(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks; TimeoutError where none comes: a computer that was cut off says no goodbye."""
    while True:
        with anyio.fail_after(SILENCE):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk


def _open(database: Database, blobs: Blobs, upload_id: str, offset: int) -> tuple[int, BinaryIO]:
    with database.read() as session:
        upload = find(session, upload_id)
    if upload.state != "receiving":
        raise Conflict(f"{upload.name} was received already", field="state")
    path = blobs.incoming / upload.id
    path.touch()
    if path.stat().st_nlink > 1:  # `finish` got half-way: what is stored is never written to
        with atomic(path) as own:
            shutil.copyfile(path, own)
    there = min(upload.received, path.stat().st_size)
    if offset != there:
        raise Conflict(
            f"{upload.name}: {there} bytes have been received, not {offset}",
            fix=f"Go on from {there}.",
            field="offset",
        )
    handle = path.open("r+b")
    handle.truncate(offset)
    handle.seek(offset)
    return upload.size, handle


def _arrived(database: Database, handle: BinaryIO, upload_id: str, arrived: int) -> None:
    with handle:
        handle.flush()
        os.fsync(handle.fileno())  # what is said to have arrived isn't sent again
    with database.begin() as session:
        find(session, upload_id).received = arrived


def finish(database: Database, blobs: Blobs, by: User, upload_id: str) -> Upload:
    """All bytes are there: hash, recognise a file the case has already, or order its reading.

    Again is harmless. Conflict while bytes are missing.
    """
    with _alone(upload_id):
        with database.read() as session:
            upload = find(session, upload_id)
        if upload.state != "receiving":
            return upload
        path = blobs.incoming / upload.id
        there = path.stat().st_size if path.is_file() else 0
        if there != upload.size:
            with database.begin() as session:
                find(session, upload_id).received = min(there, upload.size)
            raise Conflict(
                f"{upload.name}: {there} of {upload.size} bytes have been received",
                fix=f"Go on from {there}.",
                field="offset",
            )
        sha256 = blobs.take(path)
        with database.begin() as session:
            by = acting(session, by, "reviewer")
            upload = find(session, upload_id)
            case = cases.open_case(session, upload.case_id)
            upload.sha256, upload.received = sha256, upload.size
            known = twin(session, upload)
            upload.state = "duplicate" if known else "received"
            audit.record(
                session, by, "upload", case, name=upload.name, sha256=sha256, state=upload.state
            )
            if not known:
                jobs.order(session, by, "intake", case.id)
        path.unlink()  # not before it is noted that the image store holds it
        return upload


def abandon(session: Session, by: User, upload_id: str) -> Upload:
    """Give up a file that isn't there whole; its bytes may be deleted."""
    by = acting(session, by, "reviewer")
    upload = find(session, upload_id)
    if upload.state != "receiving":
        raise Conflict(f"{upload.name} has been received already", field="state")
    upload.state, upload.error = "failed", "It was given up before all of it had arrived"
    case = cases.find(session, upload.case_id)
    audit.record(session, by, "give up upload", case, name=upload.name, upload=upload.id)
    return upload


def twin(session: Session, upload: Upload) -> Upload | None:
    """The file of the same case with the same bytes that came first, if there is one.

    What was taken for something else before, a field for a cell, say, is sent again for a reason.
    """
    if upload.sha256 is None:
        return None
    kinds = (*KINDS, "archive") if upload.kind == "auto" else ("auto", upload.kind)
    query = select(Upload).where(
        Upload.case_id == upload.case_id,
        Upload.sha256 == upload.sha256,
        Upload.id != upload.id,
        Upload.kind.in_(kinds),
        Upload.state.in_(("received", "done")),
    )
    return session.scalars(query.order_by(Upload.created)).first()


_busy: set[str] = set()
_lock = threading.Lock()


@contextlib.contextmanager
def _alone(upload_id: str) -> Iterator[None]:
    """One request at a time writes to one file."""
    with _lock:
        if upload_id in _busy:
            raise Conflict("This file is being sent by another request", fix="Wait for it.")
        _busy.add(upload_id)
    try:
        yield
    finally:
        with _lock:
            _busy.discard(upload_id)
