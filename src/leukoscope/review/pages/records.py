"""What is kept and what is known: the audit log, quality over time, the model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from leukoscope.review import audit, quality
from leukoscope.review.api.common import Administrator, Db, Text, Viewer
from leukoscope.review.limits import aside
from leukoscope.review.pages.charts import charts
from leukoscope.review.pages.render import page
from leukoscope.review.schema import Case, Entry, Model

router = APIRouter()
Before = Annotated[int | None, Query(ge=1, le=2**31 - 1)]
PAGE = 100


@router.get("/audit")
def log(request: Request, user: Administrator, database: Db, before: Before = None) -> Response:
    """Every action of anybody, newest first; for htmx only further lines."""
    with database.read() as session:
        lines = audit.entries(session, None, before, PAGE + 1)
        names = _pseudonyms(session, lines)
    template = "log_rows.html" if "hx-request" in request.headers else "audit.html"
    return page(request, template, user, lines=lines[:PAGE], more=len(lines) > PAGE, names=names)


def _pseudonyms(session: Session, lines: list[Entry]) -> dict[str, str]:
    ids = {line.case_id for line in lines if line.case_id}
    rows = session.execute(select(Case.id, Case.pseudonym).where(Case.id.in_(ids)))
    return {row.id: row.pseudonym for row in rows}


@router.post("/audit/verify")
@aside("long")
def verify(request: Request, user: Administrator, database: Db, noted: Text = "") -> Response:
    """Check the whole chain."""
    with database.read() as session:
        verdict = audit.verify(session, noted.strip())
    return page(request, "verdict.html", user, verdict=verdict, noted=noted.strip())


@router.get("/about")
def about(request: Request, user: Viewer, database: Db) -> Response:
    """The model that is served, and those that were."""
    with database.read() as session:
        models = list(session.scalars(select(Model).order_by(Model.id.desc())))
    served = next(m for m in models if m.id == request.app.state.model_id)
    said = served.contract["validation"]
    figures = (
        [
            ("Images", f"{said['n']}"),
            ("Confidence", f"{100 * said['mean_confidence']:.0f} % on average"),
        ]
        if "mean_confidence" in said
        else []
    )
    return page(request, "about.html", user, models=models, model=served, figures=figures)


@router.get("/quality")
@aside("long")
def over_time(
    request: Request, user: Viewer, database: Db, unit: quality.Unit = "week"
) -> Response:
    """Volumes, agreement and drift of the model that is served."""
    state = request.app.state
    with database.read() as session:
        periods = quality.history(session, state.model_id, unit=unit)
        model = session.get_one(Model, state.model_id)
    return page(
        request, "quality.html", user, model=model, unit=unit, periods=periods,
        charts=charts(periods), rule=quality.RULE, fewest=quality.FEWEST_CASES,
        alarms=[(p.start, sentence) for p in reversed(periods) for sentence in p.alarms],
    )  # fmt: skip
