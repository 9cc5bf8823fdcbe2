"""Sign-off, its versions, and what leaves the application."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import select
from starlette.background import BackgroundTask

from leukoscope.errors import UnreadableError
from leukoscope.review import audit, cases, signing
from leukoscope.review.api import models
from leukoscope.review.api.common import Db, Reviewer, Viewer, documented_file
from leukoscope.review.api.errors import documented
from leukoscope.review.blobs import Blobs
from leukoscope.review.limits import aside
from leukoscope.review.problems import NotFound
from leukoscope.review.schema import Case, Model, Signature

router = APIRouter(tags=["signing"])
Version = Annotated[int, Query(ge=1, le=2**31 - 1)]


@router.post(
    "/cases/{case_id}/sign",
    status_code=201,
    response_model=models.Signature,
    responses=documented(404, 409),
)
@aside("passwords")
def sign(case_id: str, given: models.NewSignature, by: Reviewer, db: Db) -> Signature:
    """Sign a case as it was seen, with the password once more; it is locked from then on."""
    return signing.sign(db, by, case_id, given.revision_seen, given.password)


@router.post("/cases/{case_id}/amend", response_model=models.Case, responses=documented(404, 409))
def amend(case_id: str, given: models.Amendment, by: Reviewer, db: Db) -> Case:
    """Open a signed case again as its next version; what was signed stays."""
    with db.begin() as session:
        return signing.amend(session, by, case_id, given.reason)


@router.get(
    "/cases/{case_id}/signatures", response_model=models.Signatures, responses=documented(404)
)
def signatures(case_id: str, by: Viewer, db: Db) -> dict[str, Any]:  # noqa: ARG001
    """The signed versions of a case, the first one first."""
    with db.read() as session:
        return {"signatures": signing.signatures(session, case_id)}


@router.get(
    "/cases/{case_id}/signatures/{version}",
    response_model=models.SignedContent,
    responses=documented(404),
)
def signature(case_id: str, version: int, by: Viewer, db: Db) -> Signature:  # noqa: ARG001
    """One signed version with everything that was signed."""
    with db.read() as session:
        return signing.signature(session, case_id, version)


MEDIA = {
    "pdf": ("application/pdf", ".pdf"),
    "csv": ("application/zip", "-csv.zip"),
    "fhir": ("application/fhir+json", ".fhir.json"),
    "retraining": ("application/zip", "-retraining.zip"),
}


@router.get(
    "/cases/{case_id}/exports/{kind}",
    response_class=Response,
    responses=documented(404, 409)
    | documented_file("application/pdf", "application/zip", "application/fhir+json"),
)
@aside("long")
def export(
    case_id: str,
    kind: Literal["pdf", "csv", "fhir", "retraining"],
    by: Viewer,
    request: Request,
    db: Db,
    version: Version | None = None,
    specimen: Literal["blood", "bone marrow"] = "blood",
) -> Response:
    """A signed version, or without `version` the case as it is now; who took it is logged."""
    with db.read() as session:
        case = cases.find(session, case_id)
        content = (
            signing.signature(session, case_id, version).content
            if version
            else signing.content(session, case)
        )
    said = content["model"]["contract_sha256"]  # of an earlier version perhaps not the case's now
    with db.begin() as session:
        model = session.scalars(select(Model).where(Model.contract_sha256 == said)).one()
        audit.record(session, by, "export", case, model, kind=kind,
                     version=content["case"]["version"],
                     signed=content["signed"] is not None)  # fmt: skip
    blobs: Blobs = request.app.state.blobs
    from leukoscope.review.exports import csv, fhir, pdf, retraining, stem

    media_type, ending = MEDIA[kind]
    name = stem(content) + ending
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    if kind == "csv":
        return Response(csv.archive(content), media_type=media_type, headers=headers)
    if kind == "fhir":
        return Response(fhir.to_json(content, specimen), media_type=media_type, headers=headers)
    write = pdf.write if kind == "pdf" else retraining.write
    target = blobs.incoming / f"{secrets.token_hex(16)}{ending}"
    try:
        write(content, target, _pictures(blobs, small=kind == "pdf"))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    gone = BackgroundTask(target.unlink, missing_ok=True)
    return FileResponse(target, media_type=media_type, headers=headers, background=gone)


def _pictures(blobs: Blobs, *, small: bool) -> Callable[[Any], bytes | None]:
    """What the exports are given: files as they came, or small copies of what could be decoded."""

    def picture(cell: Any) -> bytes | None:
        try:
            if not small:
                return blobs.path(cell["sha256"]).read_bytes()
            return blobs.thumbnail(cell["sha256"], 256).read_bytes()
        except NotFound:
            return None
        except UnreadableError:
            return b""

    return picture
