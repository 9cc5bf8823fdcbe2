"""A case from its first file to its signature: list, images, review, report, log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from leukoscope.errors import InputError, LeukoscopeError
from leukoscope.review import access, audit, cases, differential, erasure, jobs, signing
from leukoscope.review.access import needs
from leukoscope.review.api.common import Administrator, Db, Reviewer, Text, Viewer
from leukoscope.review.database import Database
from leukoscope.review.limits import aside
from leukoscope.review.pages.render import keys_of, page, seen
from leukoscope.review.schema import Case, Cell, Upload, User
from leukoscope.review.vocabulary import spelled

router = APIRouter(prefix="/cases")
PAGE = 50


@router.get("")
def listed(
    request: Request,
    user: Viewer,
    database: Db,
    q: str = "",
    state: str = "",
    before: str | None = None,
) -> Response:
    """The cases, newest first; for htmx only their rows."""
    with database.read() as session:
        rows = cases.cases(session, q, state, before, PAGE + 1)
    template = "case_rows.html" if "hx-request" in request.headers else "cases.html"
    return page(
        request, template, user, rows=rows[:PAGE], more=len(rows) > PAGE, q=q, state=state,
        before=before,
    )  # fmt: skip


@router.get("/new")
def new(request: Request, user: Reviewer) -> Response:
    """The form of a new case."""
    size = request.app.state.settings.pixel_size
    return page(request, "new_case.html", user, given={"pixel_size": size})


@router.post("/new")
def create(
    request: Request,
    user: Reviewer,
    database: Db,
    pseudonym: Text = "",
    slide: Text = "",
    stain: Text = "",
    notes: Text = "",
    pixel_size: Text = "",
) -> Response:
    """Make the case and go on to its images."""
    given = {"pseudonym": pseudonym, "slide": slide, "stain": stain, "notes": notes}
    model = request.app.state.model_id
    try:
        with database.begin() as session:
            made = cases.create(
                session, user, model_id=model, pixel_size=_micrometres(pixel_size), **given
            )
    except LeukoscopeError as problem:
        return page(
            request, "new_case.html", user, problem=problem,
            given=given | {"pixel_size": pixel_size},
        )  # fmt: skip
    return seen(f"/cases/{made.id}/images")


@router.get("/{case_id}")
def case(case_id: str, user: Viewer, database: Db) -> Response:  # noqa: ARG001
    """To where the case stands: its images while there are no cells, then its review or report."""
    with database.read() as session:
        found = cases.find(session, case_id)
        empty = not _cells(session, found.id)
    last = "images" if empty else "report" if found.state == "signed" else "review"
    return seen(f"/cases/{case_id}/{last}")


def _about(request: Request, session: Session, case_id: str) -> dict[str, Any]:
    """What every page of a case shows."""
    found = cases.find(session, case_id)
    model = cases.find_model(session, found.model_id)
    return {"case": found, "model": model, "served": request.app.state.model_id}


@router.get("/{case_id}/images")
def images(request: Request, user: Viewer, case_id: str, database: Db) -> Response:
    """Where files are dropped, and how far they are."""
    with database.read() as session:
        context = _about(request, session, case_id) | _progress(session, case_id)
    return page(request, "images.html", user, tab="images", **context)


@router.get("/{case_id}/jobs")
def progress(request: Request, user: Viewer, case_id: str, database: Db) -> Response:
    """The part of the page of images that says how far reading is."""
    with database.read() as session:
        context = _about(request, session, case_id) | _progress(session, case_id)
    return page(request, "progress.html", user, **context)


def _progress(session: Session, case_id: str) -> dict[str, Any]:
    uploads = list(
        session.scalars(
            select(Upload).where(Upload.case_id == case_id).order_by(Upload.created, Upload.name)
        )
    )
    latest = jobs.of_case(session, case_id)
    return {
        "uploads": uploads,
        "failed": [u for u in uploads if u.state == "failed"],
        "jobs": latest,
        "busy": [j for j in latest if j.state in ("waiting", "running")],
        "cells": _cells(session, case_id),
    }


def _cells(session: Session, case_id: str) -> int:
    return session.scalar(select(func.count()).where(Cell.case_id == case_id)) or 0


@router.post("/{case_id}/edit")
def edit(
    user: Reviewer,
    case_id: str,
    database: Db,
    revision: Annotated[int, Form(ge=0, le=2**31 - 1)],
    pseudonym: Text = "",
    slide: Text = "",
    stain: Text = "",
    notes: Text = "",
    pixel_size: Text = "",
) -> Response:
    """Correct what the case is called."""
    with database.begin() as session:
        cases.edit(
            session, user, case_id, revision, pseudonym=pseudonym, slide=slide, stain=stain,
            notes=notes, pixel_size=_micrometres(pixel_size),
        )  # fmt: skip
    return seen(f"/cases/{case_id}/images")


def _micrometres(typed: str) -> float | None:
    """A number as people write it, with point or comma; None where nothing was typed."""
    if not typed.strip():
        return None
    try:
        return float(typed.replace(",", "."))
    except ValueError:
        raise InputError(
            f"Micrometres a pixel can't be {typed[:32]!r}",
            fix="Write a number such as 0.07, or leave it empty.",
            field="pixel_size",
        ) from None


@router.post("/{case_id}/reread")
def reread(request: Request, user: Reviewer, case_id: str, database: Db) -> Response:
    """Have the model that is served now read the case again; what others said stays."""
    with database.begin() as session:
        jobs.order(session, user, "reread", case_id, access.settings(request))
    request.app.state.jobs.wake()
    return seen(f"/cases/{case_id}/images")


@router.get("/{case_id}/review")
def review(request: Request, user: Viewer, case_id: str, database: Db) -> Response:
    """The screen of review; its cells are fetched by its scripts."""
    with database.read() as session:
        context = _about(request, session, case_id)
        classes = cases.classes(session, context["case"])
    contract = context["model"].contract
    return page(
        request, "review.html", user, tab="review", classes=classes, keys=keys_of(classes),
        extra=[name for name in cases.EXTRA_LABELS if name not in classes],
        names={name: spelled(name) for name in classes},
        editable=context["case"].state == "open" and user.role != "viewer",
        heat_maps=contract["model"]["heat_maps"], **context,
    )  # fmt: skip


@router.get("/{case_id}/report")
def report(
    request: Request,
    user: Viewer,
    case_id: str,
    database: Db,
    version: Annotated[int | None, Query()] = None,
) -> Response:
    """What the case says: to be signed, signed, or an earlier version of it."""
    return _report(request, user, database, case_id, version)


def _report(
    request: Request,
    user: User,
    database: Database,
    case_id: str,
    version: int | None = None,
    problem: LeukoscopeError | None = None,
) -> Response:
    with database.read() as session:
        context = _about(request, session, case_id)
        found: Case = context["case"]
        signed = signing.signatures(session, case_id)
        content = (
            signing.content(session, found)
            if version is None or version == found.version
            else signing.signature(session, case_id, version).content
        )
        context["busy"] = _progress(session, case_id)["busy"]
    looked_at = [c for c in content["cells"] if c["label"] is not None]
    left = [c for c in content["cells"] if c["flag"] and c["label"] is None]
    corrected = [c for c in looked_at if c["label"] != c["predicted"]]
    agreed = differential.agreement(
        [c["predicted"] for c in looked_at], [c["label"] for c in looked_at]
    )
    return page(
        request, "report.html", user, problem=problem, tab="report", content=content,
        signatures=signed, looked_at=looked_at, left=left, corrected=corrected, agreed=vars(agreed),
        earlier=content["case"]["version"] != found.version,
        intact=content["signed"] is None
        or signing.hash_of(content) == content["signed"]["sha256"],
        **context,
    )  # fmt: skip


@router.post("/{case_id}/sign")
@aside("passwords")
def sign(
    request: Request,
    user: Annotated[User, Depends(needs("reviewer", "session"))],
    case_id: str,
    database: Db,
    revision: Annotated[int, Form()],
    password: Text = "",
) -> Response:
    """Sign what was seen."""
    try:
        signing.sign(database, user, case_id, revision, password)
    except LeukoscopeError as problem:
        return _report(request, user, database, case_id, problem=problem)
    return seen(f"/cases/{case_id}/report")


@router.post("/{case_id}/amend")
def amend(
    request: Request, user: Reviewer, case_id: str, database: Db, reason: Text = ""
) -> Response:
    """Begin the next version."""
    try:
        with database.begin() as session:
            signing.amend(session, user, case_id, reason)
    except LeukoscopeError as problem:
        return _report(request, user, database, case_id, problem=problem)
    return seen(f"/cases/{case_id}/review")


@router.get("/{case_id}/log")
def log(
    request: Request,
    user: Viewer,
    case_id: str,
    database: Db,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    """The lines of the audit log that are of this case."""
    return _log(request, user, database, case_id, before)


def _log(
    request: Request,
    user: User,
    database: Database,
    case_id: str,
    before: int | None = None,
    problem: LeukoscopeError | None = None,
) -> Response:
    with database.read() as session:
        context = _about(request, session, case_id)
        lines = audit.entries(session, context["case"].id, before, PAGE + 1)
    template = "log_rows.html" if "hx-request" in request.headers else "case_log.html"
    return page(
        request, template, user, problem=problem, tab="log", lines=lines[:PAGE],
        more=len(lines) > PAGE, names={}, **context,
    )  # fmt: skip


@router.post("/{case_id}/erase")
@aside("long")
def erase(
    request: Request,
    user: Administrator,
    case_id: str,
    database: Db,
    pseudonym: Text = "",
    reason: Text = "",
) -> Response:
    """Erase the case for good; what it is called is typed again, since nothing takes it back."""
    try:
        with database.read() as session:
            called = cases.find(session, case_id).pseudonym
        if pseudonym.strip() != called:
            raise InputError(
                f"The case is called {called!r}, not {pseudonym.strip()[:128]!r}",
                fix="Type what it is called, to be sure that it is this one.",
                field="pseudonym",
            )
        erasure.erase(database, request.app.state.blobs, user, case_id, reason)
    except LeukoscopeError as problem:
        return _log(request, user, database, case_id, problem=problem)
    return seen("/cases")
