"""Sign-off: what a case says becomes a signed version that nothing changes any more.

A signature holds everything that was signed and its hash. To correct a signed case it is amended:
it opens again as the next version, and every earlier one stays as it was.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from leukoscope.review import audit, cases, differential
from leukoscope.review.accounts import Compared, acting, check_password, compare
from leukoscope.review.database import Database
from leukoscope.review.problems import Conflict, NotFound, text
from leukoscope.review.schema import Case, Cell, Change, Job, Model, Signature, Upload, User, now

FORMAT = 1


def sign(
    database: Database, by: User, case_id: str, revision_seen: int, password: str
) -> Signature:
    """Sign a case as it was seen; it is locked from then on.

    Unauthenticated where the password is wrong (counted as at log-in). Conflict where the case is
    signed, was changed since `revision_seen`, holds no cells, or is still being read. Signed by
    this very request, whose answer was lost: that signature.
    """
    found = compare(database, by, password)
    with database.begin() as session:
        return _sign(session, by, case_id, revision_seen, found)


def _sign(
    session: Session, by: User, case_id: str, revision_seen: int, found: Compared
) -> Signature:
    by = acting(session, by, "reviewer")
    case = cases.find(session, case_id)
    done = _done(session, by, case, revision_seen)
    if done is None:
        cases.open_case(session, case_id)
    check_password(session, by, found)
    if done is not None:
        return done
    _refuse_unfinished(session, case, revision_seen)
    case.state = "signed"
    case.revision += 1
    moment = now()
    reason = _reason(session, case)
    said = _said(session, case)
    said["signed"] = {"by": by.name, "at": moment.isoformat(), "reason": reason}
    said["signed"]["sha256"] = hash_of(said)
    signature = Signature(
        case_id=case.id,
        version=case.version,
        user_id=by.id,
        model_id=case.model_id,
        reason=reason,
        content=said,
        sha256=said["signed"]["sha256"],
        at=moment,
    )
    session.add(signature)
    _note(session, by, case, "sign", {"version": case.version})
    audit.record(
        session, by, "sign", case, version=case.version, sha256=signature.sha256,
        cells=len(said["cells"]),
    )  # fmt: skip
    return signature


def amend(session: Session, by: User, case_id: str, reason: str) -> Case:
    """Open a signed case again as its next version, for a reason of 3 to 1,000 characters.

    Again, with the same reason and nothing done since, is harmless.
    """
    by = acting(session, by, "reviewer")
    case = cases.find(session, case_id)
    reason = text(reason, "reason", least=3, most=1000, lines=True)
    if case.state != "signed":
        if _amended_last(session, by, case, reason):
            return case
        raise Conflict("The case isn't signed", fix="Change it as it is.", field="state")
    case.state = "open"
    case.version += 1
    case.revision += 1
    _note(session, by, case, "amend", {"version": case.version, "reason": reason})
    audit.record(session, by, "amend", case, version=case.version, reason=reason)
    return case


def signatures(session: Session, case_id: str) -> list[Signature]:
    """The signed versions of a case, the first one first."""
    case = cases.find(session, case_id)
    query = select(Signature).where(Signature.case_id == case.id).order_by(Signature.version)
    return list(session.scalars(query))


def signature(session: Session, case_id: str, version: int) -> Signature:
    """One signed version; NotFound where that one wasn't signed."""
    for found in signatures(session, case_id):
        if found.version == version:
            return found
    raise NotFound(f"Version {version} of this case isn't signed", field="version")


def hash_of(content: dict[str, Any]) -> str:
    """SHA-256 of a signed content as sorted JSON, without the hash itself: anybody can check it."""
    signed = {name: value for name, value in content["signed"].items() if name != "sha256"}
    line = json.dumps({**content, "signed": signed}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(line.encode()).hexdigest()


def content(session: Session, case: Case) -> dict[str, Any]:
    """All that a report needs: of a signed case what was signed, of an open one what it says now.

    {format, case, model, signed (None while open), cells, differential: {model, reviewer},
    agreement}; plain JSON. Cells that nobody changed count as agreed: who signs accepts them.
    """
    if case.state == "signed":
        return signature(session, case.id, case.version).content
    return {**_said(session, case), "signed": None}


# --- inside ---------------------------------------------------------------------------------------


def _done(session: Session, by: User, case: Case, revision_seen: int) -> Signature | None:
    """The signature that this person gave to what was seen, if it stands."""
    if case.state != "signed" or case.revision != revision_seen + 1:
        return None
    found = signature(session, case.id, case.version)
    return found if found.user_id == by.id else None


def _amended_last(session: Session, by: User, case: Case, reason: str) -> bool:
    own = select(Change).where(
        Change.case_id == case.id, Change.user_id == by.id, Change.kind != "read"
    )
    last = session.scalars(own.order_by(Change.revision.desc()).limit(1)).first()
    told = {"version": case.version, "reason": reason}
    return last is not None and last.kind == "amend" and last.after == told


def _refuse_unfinished(session: Session, case: Case, revision_seen: int) -> None:
    if revision_seen != case.revision:
        raise Conflict(
            "The case was changed since you looked at it",
            fix="Look at it again, then sign.",
            field="revision",
        )
    coming = session.scalar(
        select(func.count()).where(
            Upload.case_id == case.id, Upload.state.in_(("receiving", "received"))
        )
    )
    working = session.scalar(
        select(func.count()).where(Job.case_id == case.id, Job.state.in_(("waiting", "running")))
    )
    if coming or working or cases.unread(session, case.id, case.model_id):
        raise Conflict(
            f"The case isn't read yet: {coming} files and {working} jobs are on their way",
            fix="Wait until they are done, or cancel the files that won't come.",
            field="case",
        )
    if not session.scalar(select(exists().where(Cell.case_id == case.id))):
        raise Conflict("The case holds no cells", fix="Upload images first.", field="case")


def _said(session: Session, case: Case) -> dict[str, Any]:
    model = session.get_one(Model, case.model_id)
    names = model.contract["classes"]
    views = cases.cells(session, case.id)
    predicted, shown = [v.predicted for v in views], [v.shown for v in views]
    changed = _last_changes(session, case)
    return {
        "format": FORMAT,
        "case": {
            "id": case.id,
            "pseudonym": case.pseudonym,
            "slide": case.slide,
            "stain": case.stain,
            "notes": case.notes,
            "pixel_size": case.pixel_size,
            "version": case.version,
            "state": case.state,
            "created": case.created.isoformat(),
        },
        "model": {
            "name": model.name,
            "version": model.version,
            "sha256": model.sha256,
            "contract_sha256": model.contract_sha256,
            "classes": names,
            "data": model.contract["origin"]["data"],
            "synthetic": model.contract["origin"]["synthetic"],
        },
        "cells": [_cell(view, changed.get(view.id, (None, None))) for view in views],
        "differential": {
            "model": [asdict(share) for share in differential.count(predicted, names)],
            "reviewer": [asdict(share) for share in differential.count(shown, names)],
        },
        "agreement": asdict(differential.agreement(predicted, shown)),
    }


def _cell(view: cases.CellView, changed: tuple[str | None, str | None]) -> dict[str, Any]:
    return {
        "id": view.id,
        "image": view.field_name,
        "field": view.field_name if view.x is not None else None,
        "x": view.x,
        "y": view.y,
        "box_width": view.box_width,
        "box_height": view.box_height,
        "sha256": view.sha256,
        "predicted": view.predicted,
        "confidence": view.confidence,
        "prediction_set": view.prediction_set,
        "novelty": view.novelty,
        "flag": view.flag,
        "quality": view.quality,
        "label": view.label,
        "comment": view.comment,
        "changed_by": changed[0],
        "changed_at": changed[1],
    }


def _last_changes(session: Session, case: Case) -> dict[int, tuple[str, str]]:
    """Of each cell that somebody changed: who did so last, and when."""
    query = (
        select(Change.after, User.name, Change.at)
        .join(User, User.id == Change.user_id)
        .where(Change.case_id == case.id, Change.kind.in_(("label", "comment", "undo", "redo")))
        .order_by(Change.revision)
    )
    return {
        int(cell_id): (name, at.isoformat())
        for after, name, at in session.execute(query)
        for cell_id in after
    }


def _reason(session: Session, case: Case) -> str:
    """Why this version was begun, "" for the first."""
    amended = (
        select(Change.after)
        .where(Change.case_id == case.id, Change.kind == "amend")
        .order_by(Change.revision.desc())
        .limit(1)
    )
    after = session.scalar(amended)
    return after["reason"] if after else ""


def _note(session: Session, by: User, case: Case, kind: str, after: dict[str, Any]) -> None:
    session.add(
        Change(case_id=case.id, revision=case.revision, kind=kind, user_id=by.id,
               before={}, after=after)
    )  # fmt: skip
    session.flush()
