"""Long work as rows of a table, so that it survives a restart: waiting, running, done, failed."""

from __future__ import annotations

import secrets
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from leukoscope.review import audit, cases
from leukoscope.review.accounts import acting
from leukoscope.review.problems import NotFound
from leukoscope.review.schema import Job, Upload, User

Kind = Literal["intake", "reread"]


def order(session: Session, by: User, kind: Kind, case_id: str) -> Job:
    """The case's job of that kind that waits or runs, or a new one.

    A running one takes what was ordered meanwhile, too: it ends only where nothing is left.
    """
    by = acting(session, by, "reviewer")
    case = cases.open_case(session, case_id)
    going_on = Job.state.in_(("waiting", "running"))
    query = select(Job).where(Job.case_id == case.id, Job.kind == kind, going_on)
    found = session.scalars(query).first()
    if found is None:
        found = Job(
            id=secrets.token_hex(16), kind=kind, case_id=case.id, user_id=by.id, arguments={}
        )
        session.add(found)
        session.flush()
        if kind == "reread":  # of an intake its uploads are logged
            audit.record(session, by, "order reread", case, job=found.id)
    return found


def find(session: Session, job_id: str) -> Job:
    """The job; NotFound otherwise."""
    known = job_id.isalnum() and job_id.isascii()
    found = session.get(Job, job_id) if known else None
    if found is None:
        raise NotFound("There is no such job", field="job")
    return found


def of_case(session: Session, case_id: str, most: int = 50) -> list[Job]:
    """The jobs of a case, the latest first."""
    case = cases.find(session, case_id)
    query = select(Job).where(Job.case_id == case.id).order_by(Job.created.desc(), Job.id)
    return list(session.scalars(query.limit(most)))


def begin(session: Session) -> Job | None:
    """The job that has waited longest, running from now on; `arguments` count the `attempts`.

    There is one worker, so what runs already was interrupted, by a crash or because the database
    was away: it is begun anew, which is harmless. Who gets on forgets the attempts (`got_on`).
    """
    query = select(Job).where(Job.state.in_(("waiting", "running")))
    found = session.scalars(query.order_by(Job.created, Job.id).limit(1)).first()
    if found is not None:
        found.state = "running"
        attempts = found.arguments.get("attempts", 0) + 1
        found.arguments = found.arguments | {"attempts": attempts}
    return found


def got_on(session: Session, job: Job, steps: int) -> None:
    """So many steps of a job are through, now that this transaction is."""
    present = session.get_one(Job, job.id)
    present.done += steps
    present.arguments = {}


def suspect(session: Session, job: Job, upload: Upload) -> None:
    """Note the file at hand: where the server dies with it again and again, it is to blame."""
    present = session.get_one(Job, job.id)
    present.arguments = {"attempts": 1} | present.arguments | {"at": upload.id}
