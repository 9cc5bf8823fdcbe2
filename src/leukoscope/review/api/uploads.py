"""Files on their way in: announce, send in pieces, finish; interrupted ones go on."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect

from leukoscope.review import access, cases, intake
from leukoscope.review.api import models
from leukoscope.review.api.common import Db, Key, Reviewer, Viewer, documented_file, picture
from leukoscope.review.api.errors import documented
from leukoscope.review.database import Database
from leukoscope.review.limits import aside
from leukoscope.review.problems import Conflict, NotFound
from leukoscope.review.schema import Upload

router = APIRouter(tags=["uploads"])
_BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _view(session: Session, upload: Upload) -> models.Upload:
    equal = intake.twin(session, upload) if upload.state == "duplicate" else None
    view = models.Upload.model_validate(upload)
    return view.model_copy(update={"duplicate_of": equal.id if equal else None})


@router.post(
    "/cases/{case_id}/uploads",
    status_code=201,
    response_model=models.Upload,
    responses=documented(404, 409),
)
@aside("uploads")
def start(
    case_id: str, given: models.NewUpload, by: Reviewer, request: Request, db: Db, key: Key = ""
) -> models.Upload:
    """Announce a file; its bytes follow by PUT."""
    settings, model_id = access.settings(request), request.app.state.model_id
    with db.begin() as session:
        upload = intake.start(
            session, by, case_id, given.name, given.size, given.kind,
            settings=settings, model_id=model_id, key=key,
        )  # fmt: skip
        return _view(session, upload)


@router.get("/cases/{case_id}/uploads", response_model=models.Uploads, responses=documented(404))
def listed(case_id: str, by: Viewer, db: Db) -> dict[str, Any]:  # noqa: ARG001
    """All files of a case, in the order of their arrival."""
    with db.read() as session:
        case = cases.find(session, case_id)
        query = select(Upload).where(Upload.case_id == case.id)
        found = session.scalars(query.order_by(Upload.created, Upload.id))
        return {"uploads": [_view(session, upload) for upload in found]}


@router.get("/uploads/{upload_id}", response_model=models.Upload, responses=documented(404))
def one(upload_id: str, by: Viewer, db: Db) -> models.Upload:  # noqa: ARG001
    """One file: how much of it has been received."""
    return _present(db, upload_id)


@router.put(
    "/uploads/{upload_id}",
    response_model=models.Upload,
    responses=documented(404, 409),
    openapi_extra=_BYTES,
)
async def append(
    upload_id: str,
    by: Reviewer,
    request: Request,
    db: Db,
    offset: Annotated[int, Query(ge=0)],
) -> models.Upload:
    """Send bytes from `offset` on, which must be the number received so far."""
    state = request.app.state
    try:
        with state.streams.inside(by.id):
            await intake.append(db, state.blobs, upload_id, offset, request.stream())
    except ClientDisconnect:  # nobody hears this; it is no bug to be logged with its traceback
        raise Conflict("The connection broke", fix="Go on from what has arrived.") from None
    return await run_sync(_present, db, upload_id)


def _present(db: Database, upload_id: str) -> models.Upload:
    with db.read() as session:
        return _view(session, intake.find(session, upload_id))


@router.post(
    "/uploads/{upload_id}/finish", response_model=models.Upload, responses=documented(404, 409)
)
@aside("uploads")
def finish(upload_id: str, by: Reviewer, request: Request, db: Db) -> models.Upload:
    """All bytes are sent: the file is recognised as a duplicate, or read."""
    upload = intake.finish(db, request.app.state.blobs, by, upload_id)
    request.app.state.jobs.wake()
    with db.read() as session:
        return _view(session, upload)


@router.delete("/uploads/{upload_id}", status_code=204, responses=documented(404, 409))
def abandon(upload_id: str, by: Reviewer, request: Request, db: Db) -> None:
    """Give up a file of which not all bytes were sent."""
    with db.begin() as session:
        intake.abandon(session, by, upload_id)
    (request.app.state.blobs.incoming / upload_id).unlink(missing_ok=True)


@router.get(
    "/uploads/{upload_id}/image",
    response_class=FileResponse,
    responses=documented(404) | documented_file("image/jpeg", "image/png", "image/gif"),
)
@aside("pictures")
def image(upload_id: str, by: Viewer, request: Request, db: Db) -> Response:  # noqa: ARG001
    """The file as a browser can show it: a field, or a single cell's image."""
    with db.read() as session:
        upload = intake.find(session, upload_id)
    if upload.sha256 is None or upload.kind == "archive" or upload.width is None:
        raise NotFound("There is no image of this upload", field="upload")
    return picture(*request.app.state.blobs.shown(upload.sha256))
