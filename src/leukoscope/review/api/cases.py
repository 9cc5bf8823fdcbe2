"""Cases, the models that read them, and the jobs that do so."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import select

from leukoscope.review import access, cases, erasure, jobs
from leukoscope.review.api import models
from leukoscope.review.api.common import Administrator, Db, Key, Reviewer, Viewer
from leukoscope.review.api.errors import documented
from leukoscope.review.limits import aside
from leukoscope.review.schema import Case, Job, Model

router = APIRouter(tags=["cases"])


@router.get("/cases", response_model=models.Cases, responses=documented(404))
def listed(
    by: Viewer,  # noqa: ARG001
    db: Db,
    query: Annotated[str, Query(max_length=128)] = "",
    state: Literal["", "open", "signed"] = "",
    before: Annotated[str | None, Query(max_length=32)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """Cases, newest first; `before` is the last one of the page before."""
    with db.read() as session:
        return {"cases": cases.cases(session, query, state, before, limit)}


@router.post("/cases", status_code=201, response_model=models.Case, responses=documented(409))
def create(given: models.NewCase, by: Reviewer, request: Request, db: Db, key: Key = "") -> Case:
    """A new open case, to be read by the model that is served."""
    state = request.app.state
    texts = {"pixel_size": state.settings.pixel_size} | given.model_dump(exclude_unset=True)
    with db.begin() as session:
        return cases.create(session, by, model_id=state.model_id, key=key, **texts)


@router.get("/cases/{case_id}", response_model=models.Case, responses=documented(404))
def one(case_id: str, by: Viewer, db: Db) -> Case:  # noqa: ARG001
    """One case."""
    with db.read() as session:
        return cases.find(session, case_id)


@router.patch("/cases/{case_id}", response_model=models.Case, responses=documented(404, 409))
def edit(case_id: str, given: models.CaseChange, by: Reviewer, db: Db) -> Case:
    """Change what an open case is called. `pixel_size` null: unknown; other nulls: as it is."""
    sent = given.model_dump(exclude_unset=True)
    changed = {k: v for k, v in sent.items() if v is not None or k == "pixel_size"}
    with db.begin() as session:
        return cases.edit(session, by, case_id, **changed)


@router.post(
    "/cases/{case_id}/reread",
    status_code=202,
    response_model=models.Job,
    responses=documented(404, 409),
)
def reread(case_id: str, by: Reviewer, request: Request, db: Db) -> Job:
    """Have the served model read all cells of an open case; what others said stays."""
    with db.begin() as session:
        job = jobs.order(session, by, "reread", case_id, access.settings(request))
    request.app.state.jobs.wake()
    return job


@router.post("/cases/{case_id}/erase", response_model=models.Erased, responses=documented(404, 409))
@aside("long")
def erase(
    case_id: str, given: models.Erasure, by: Administrator, request: Request, db: Db
) -> dict[str, int]:
    """Delete a case's images and all that was typed about it, for good; its acts stay in the log.

    Copies in back-ups aren't reached. Refused while anybody's files come in or are read.
    """
    return {"files": erasure.erase(db, request.app.state.blobs, by, case_id, given.reason)}


@router.get("/cases/{case_id}/jobs", response_model=models.Jobs, responses=documented(404))
def jobs_of(case_id: str, by: Viewer, db: Db) -> dict[str, Any]:  # noqa: ARG001
    """The jobs of a case, the latest first."""
    with db.read() as session:
        return {"jobs": jobs.of_case(session, case_id)}


@router.get("/jobs/{job_id}", response_model=models.Job, responses=documented(404))
def job(job_id: str, by: Viewer, db: Db) -> Job:  # noqa: ARG001
    """How far a job is."""
    with db.read() as session:
        return jobs.find(session, job_id)


@router.get("/models", response_model=models.Models)
def all_models(by: Viewer, request: Request, db: Db) -> dict[str, Any]:  # noqa: ARG001
    """Every model that was ever served here."""
    served = request.app.state.model_id
    with db.read() as session:
        found = session.scalars(select(Model).order_by(Model.id)).all()
    return {
        "models": [
            vars(each) | {"classes": each.contract["classes"], "served": each.id == served}
            for each in found
        ]
    }
