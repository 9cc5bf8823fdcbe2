"""The audit log, quality over time, and whether the server works."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

import leukoscope
from leukoscope.errors import LeukoscopeError
from leukoscope.review import audit, cases, quality, readiness
from leukoscope.review.access import watcher
from leukoscope.review.api import models
from leukoscope.review.api.common import Administrator, Db, Viewer
from leukoscope.review.api.errors import Problem, answered, documented
from leukoscope.review.limits import aside

router = APIRouter(tags=["oversight"])
health = APIRouter(tags=["oversight"])
Watcher = Annotated[None, Depends(watcher)]


@router.get("/audit", response_model=models.Entries)
def log(
    by: Administrator,  # noqa: ARG001
    db: Db,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Lines of the audit log, the latest first."""
    with db.read() as session:
        return {"entries": audit.entries(session, None, before, limit)}


@router.get("/audit/verify", response_model=models.Verdict)
@aside("long")
def verify(
    by: Administrator,  # noqa: ARG001
    db: Db,
    noted: Annotated[str, Query(max_length=64)] = "",
) -> audit.Verdict:
    """Read the whole chain again; `noted` is a `head` that was written down earlier."""
    with db.read() as session:
        return audit.verify(session, noted)


@router.get("/cases/{case_id}/audit", response_model=models.Entries, responses=documented(404))
def log_of_case(
    case_id: str,
    by: Viewer,  # noqa: ARG001
    db: Db,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """What was done to a case, the latest first."""
    with db.read() as session:
        case = cases.find(session, case_id)
        return {"entries": audit.entries(session, case.id, before, limit)}


@router.get("/quality", response_model=models.Quality, responses=documented(404))
@aside("long")
def over_time(
    by: Viewer,  # noqa: ARG001
    request: Request,
    db: Db,
    unit: Literal["day", "week"] = "week",
    model_id: int | None = None,
) -> dict[str, Any]:
    """How much a model read, how often reviewers agreed, whether it drifts from its validation."""
    with db.read() as session:
        model = cases.find_model(session, model_id or request.app.state.model_id)
        found = quality.history(session, model.id, unit=unit)
    return {"model_id": model.id, "unit": unit, "rule": quality.RULE, "periods": found}


# --- for whoever watches over the server ----------------------------------------------------------


@health.get("/health", response_model=models.Health, responses=documented(400, 413, 429))
async def alive(request: Request) -> dict[str, str]:
    """Whether the server is alive, however much it has to do. Needs no log-in, says no secrets."""
    contract = request.app.state.reader.contract
    return {
        "status": "ok",
        "version": leukoscope.__version__,
        "model": f"{contract.name} {contract.version}",
    }


@health.get(
    "/ready",
    response_model=models.Ready,
    responses=documented(400, 413, 429) | answered(Problem, 503),
)
def ready(request: Request) -> Any:
    """Whether the server can do its work, part by part; 503 saying what is wrong where it can't.

    Needs no log-in. The model needs no look: without one the server doesn't start.
    """
    wrong = readiness.wrong(request.app.state)
    if wrong:
        problem = LeukoscopeError(
            f"Not ready: {'; '.join(wrong)}", fix="The server's log has more."
        )
        return JSONResponse(problem.as_dict(), 503)
    return dict.fromkeys(("database", "folder", "model", "worker"), "ok")


@health.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=documented(400, 401, 403, 413, 429, 503)
    | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Metrics"}},
)
def measured(request: Request, by: Watcher) -> Response:  # noqa: ARG001
    """Counts and times in Prometheus' text format, without names or data of patients.

    For the bearer token of the setting `metrics_token`, or an administrator.
    """
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
