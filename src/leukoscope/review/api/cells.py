"""Cells: what is seen of them, and what reviewers say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from leukoscope.errors import UnknownNameError
from leukoscope.imaging.read import png
from leukoscope.review import cases, changes, differential, reading, references
from leukoscope.review.api import models
from leukoscope.review.api.common import (
    CACHED,
    PREFIX,
    Db,
    Reviewer,
    Seen,
    Viewer,
    documented_file,
    picture,
)
from leukoscope.review.api.errors import answered, documented
from leukoscope.review.cases import EXTRA_LABELS, CellView
from leukoscope.review.changes import Act
from leukoscope.review.database import Database
from leukoscope.review.limits import aside
from leukoscope.review.problems import Conflict
from leukoscope.review.schema import Case, User

router = APIRouter(tags=["cells"])
Since = Annotated[int, Query(ge=-1, le=2**31 - 1)]


def _plain(views: Sequence[CellView]) -> list[dict[str, Any]]:
    # Not through pydantic: a thousand cells would take longer to check than to find.
    return [vars(view) | {"shown": view.shown} for view in views]


def _state(case: Case) -> dict[str, Any]:
    return {"revision": case.revision, "state": case.state, "version": case.version}


def _change(act: Act) -> dict[str, Any]:
    return {"revision": act.revision, "kind": act.kind, "by": act.by, "at": act.at.isoformat(),
            "label": act.label, "cells": act.cells}  # fmt: skip


def _acted(db: Database, by: User, case_id: str, act: Act) -> JSONResponse:
    """The answer, put together after the act is stored: nobody else's has to wait for that.

    What others did meanwhile may be in it already; it comes again with what changed since.
    """
    with db.read() as session:
        case = cases.find(session, case_id)  # held, or each of these would look for it anew
        undo, redo = changes.can(session, by, case)
        now = _plain(cases.cells(session, case.id, since=act.revision - 1))
    return JSONResponse(
        {"revision": act.revision, "undo": undo, "redo": redo, "change": _change(act), "cells": now}
    )


# --- of a case ------------------------------------------------------------------------------------


@router.get(
    "/cases/{case_id}/cells",
    responses=answered(models.Cells) | documented(404),
)
def cells(case_id: str, by: Viewer, db: Db, since: Since = -1) -> JSONResponse:  # noqa: ARG001
    """The cells of a case, or those that changed after revision `since`, in the order to look."""
    with db.read() as session:
        case = cases.find(session, case_id)
        return JSONResponse(_state(case) | {"cells": _plain(cases.cells(session, case.id, since))})


@router.get("/cases/{case_id}/changes", responses=answered(models.Changes) | documented(404))
@aside("glances")
def changed(case_id: str, by: Viewer, db: Db, since: Since = -1) -> JSONResponse:
    """What happened after revision `since`: all that a second browser needs to keep up."""
    with db.read() as session:
        case = cases.find(session, case_id)
        undo, redo = changes.can(session, by, case)
        acts = changes.changes(session, case.id, since) if case.revision > since else []
        views = cases.cells(session, case.id, since) if case.revision > since else []
        return JSONResponse(
            _state(case)
            | {"undo": undo, "redo": redo, "changes": [_change(act) for act in acts]}
            | {"cells": _plain(views)}
        )


@router.get(
    "/cases/{case_id}/differential", response_model=models.Differential, responses=documented(404)
)
@aside("glances")
def count(case_id: str, by: Viewer, db: Db) -> dict[str, Any]:  # noqa: ARG001
    """The differential count of model and reviewer as it stands, and how far they agree."""
    with db.read() as session:
        case = cases.find(session, case_id)
        names = cases.classes(session, case)
        labels = cases.labels(session, case)
    predicted = [model for model, _ in labels]
    shown = [label or model for model, label in labels]
    seen = [(model, label) for model, label in labels if label is not None]
    return {
        "revision": case.revision,
        "model": [vars(share) for share in differential.count(predicted, names)],
        "reviewer": [vars(share) for share in differential.count(shown, names)],
        "agreement": vars(differential.agreement(predicted, shown)),
        "looked_at": vars(
            differential.agreement([model for model, _ in seen], [label for _, label in seen])
        ),
        "apart": {name: shown.count(name) for name in EXTRA_LABELS},
    }


@router.post(
    "/cases/{case_id}/labels",
    responses=answered(models.Acted) | documented(404, 409),
)
def label(case_id: str, given: models.NewLabels, by: Reviewer, db: Db) -> JSONResponse:
    """Give cells a class; refused as a whole where somebody else was faster with one of them."""
    with db.begin() as session:
        act = changes.relabel(session, by, case_id, given.cells, given.label)
    return _acted(db, by, case_id, act)


@router.post(
    "/cases/{case_id}/confirm",
    responses=answered(models.Acted) | documented(404, 409),
)
def confirm(case_id: str, given: models.Confirmed, by: Reviewer, db: Db) -> JSONResponse:
    """Say that the model is right about these cells."""
    with db.begin() as session:
        act = changes.confirm(session, by, case_id, given.cells)
    return _acted(db, by, case_id, act)


@router.post("/cases/{case_id}/undo", responses=answered(models.Acted) | documented(404, 409))
def undo(case_id: str, by: Reviewer, db: Db, seen: Seen = None) -> JSONResponse:
    """Take back one's own last act."""
    with db.begin() as session:
        act = changes.undo(session, by, case_id, seen)
    return _acted(db, by, case_id, act)


@router.post("/cases/{case_id}/redo", responses=answered(models.Acted) | documented(404, 409))
def redo(case_id: str, by: Reviewer, db: Db, seen: Seen = None) -> JSONResponse:
    """Do again what one took back."""
    with db.begin() as session:
        act = changes.redo(session, by, case_id, seen)
    return _acted(db, by, case_id, act)


# --- of one cell ----------------------------------------------------------------------------------


@router.post(
    "/cells/{cell_id}/comment",
    responses=answered(models.Acted) | documented(404, 409),
)
def comment(cell_id: int, given: models.NewComment, by: Reviewer, db: Db) -> JSONResponse:
    """Write, replace or (with an empty text) remove the comment of a cell."""
    with db.begin() as session:
        case_id = cases.find_cell(session, cell_id).case_id
        act = changes.comment(session, by, case_id, cell_id, given.revision_seen, given.text)
    return _acted(db, by, case_id, act)


@router.get("/cells/{cell_id}/readings", response_model=models.Readings, responses=documented(404))
def readings(cell_id: int, by: Viewer, db: Db) -> dict[str, Any]:  # noqa: ARG001
    """Everything that models ever said of a cell, in order."""
    with db.read() as session:
        return {"readings": cases.readings(session, cell_id)}


@router.get(
    "/cells/{cell_id}/thumbnail",
    response_class=FileResponse,
    responses=documented(404) | documented_file("image/webp"),
)
@aside("pictures")
def thumbnail(
    cell_id: int,
    by: Viewer,  # noqa: ARG001
    request: Request,
    db: Db,
    size: Literal["96", "256"] = "96",
) -> Response:
    """A small picture of a cell."""
    with db.read() as session:
        sha256 = cases.find_cell(session, cell_id).sha256
    return picture(request.app.state.blobs.thumbnail(sha256, int(size)), "image/webp")


@router.get(
    "/cells/{cell_id}/image",
    response_class=FileResponse,
    responses=documented(404) | documented_file("image/jpeg", "image/png", "image/gif"),
)
@aside("pictures")
def image(cell_id: int, by: Viewer, request: Request, db: Db) -> Response:  # noqa: ARG001
    """A cell's whole picture."""
    with db.read() as session:
        sha256 = cases.find_cell(session, cell_id).sha256
    return picture(*request.app.state.blobs.shown(sha256))


@router.get(
    "/cells/{cell_id}/heatmap",
    response_class=FileResponse,
    responses=documented(404, 409) | documented_file("image/png"),
)
@aside("long")
def heat_map(
    cell_id: int,
    by: Viewer,  # noqa: ARG001
    request: Request,
    db: Db,
    label: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """Where the served model sees evidence for a class, by default the predicted one."""
    state = request.app.state
    with db.read() as session:
        cell = cases.find_cell(session, cell_id)
        case = cases.find(session, cell.case_id)
        by_model = {each.model_id: each for each in cases.readings(session, cell_id)}
        names = cases.classes(session, case)
        served = cases.find_model(session, state.model_id)
    if case.model_id != state.model_id:
        raise Conflict(
            "The case was read by another model than the one that is served now",
            fix="Read it again with the present model to see its heat maps.",
            field="model",
        )
    wanted = label or by_model[state.model_id].predicted
    if wanted not in names:
        raise UnknownNameError("class", wanted, names, field="label")

    def draw() -> bytes:
        return png(reading.heat_map(state.reader, state.blobs.pixels(cell.sha256), wanted))

    name = f"{cell.sha256}-{served.contract_sha256[:16]}-{names.index(wanted)}"
    return picture(state.blobs.derive("heatmaps", name, ".png", draw), "image/png")


@router.get(
    "/cells/{cell_id}/references", response_model=models.References, responses=documented(404)
)
@aside("pictures")
def reference_cells(
    cell_id: int,
    by: Viewer,  # noqa: ARG001
    request: Request,
    db: Db,
    label: Annotated[str, Query(max_length=128)],
    limit: Annotated[int, Query(ge=1, le=24)] = 6,
) -> dict[str, Any]:
    """What a class looks like: cells of other, signed cases, then the laboratory's own images;
    of each those first that the model finds most like this cell."""
    state = request.app.state
    with db.read() as session:
        case = cases.find(session, cases.find_cell(session, cell_id).case_id)
        place = references.place_of(session, cell_id, case.model_id)
        found = references.signed(session, case, label, limit, place)
    # Of the folder only the served model knows anything.
    there = place if case.model_id == state.model_id else None
    own = state.references.nearest(label, limit - len(found), there)
    nobody = {"cell_id": None, "case_id": None, "pseudonym": None, "confidence": None}
    given = [
        {"cell_id": each.cell_id, "case_id": each.case_id, "pseudonym": each.pseudonym,
         "confidence": each.confidence, "distance": each.distance,
         "url": f"{PREFIX}/cells/{each.cell_id}/image"}
        for each in found
    ]  # fmt: skip
    return {
        "references": given
        + [
            nobody | {"distance": far, "url": f"{PREFIX}/references/{quote(label)}/{n}"}
            for n, far in own
        ]
    }


@router.get(
    "/references/{label}/{number}",
    response_class=Response,
    responses=documented(404) | documented_file("image/png"),
)
@aside("pictures")
def reference_image(label: str, number: int, by: Viewer, request: Request) -> Response:  # noqa: ARG001
    """One of the laboratory's own reference images."""
    data = request.app.state.references.image(label, number)
    return Response(data, media_type="image/png", headers=CACHED)
