"""Long work as rows of a table, so that it survives a restart: waiting, running, done, failed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Literal

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from leukoscope.review import audit, cases
from leukoscope.review.accounts import acting
from leukoscope.review.problems import NotFound, TooMany
from leukoscope.review.schema import Job, Upload, User
from leukoscope.review.settings import Settings

Kind = Literal["intake", "reread"]
GOING_ON = Job.state.in_(("waiting", "running"))
BUSY = 10
"""Seconds after which somebody whose files or cases must wait may ask again."""
Bound = tuple[Select[int], int]
"""What is counted, and how many there may be."""


def order(
    session: Session, by: User, kind: Kind, case_id: str, settings: Settings | None = None
) -> Job:
    """The case's job of that kind that waits or runs, or a new one.

    A running one takes what was ordered meanwhile, too: it ends only where nothing is left. TooMany
    where the `settings` allow no further one; without them it was promised before.
    """
    by = acting(session, by, "reviewer")
    case = cases.open_case(session, case_id)
    query = select(Job).where(Job.case_id == case.id, Job.kind == kind, GOING_ON)
    found = session.scalars(query).first()
    if found is None:
        if settings is not None:
            refuse_too_many(session, by, settings)
        found = Job(
            id=secrets.token_hex(16), kind=kind, case_id=case.id, user_id=by.id, arguments={}
        )
        session.add(found)
        session.flush()
        if kind == "reread":  # of an intake its uploads are logged
            audit.record(session, by, "order reread", case, job=found.id)
    return found


def refuse_too_many(session: Session, by: User, settings: Settings, besides: str = "") -> None:
    """TooMany where so many cases wait to be read that none is taken besides that one."""
    waiting = select(func.count()).where(GOING_ON, Job.case_id != besides)
    refuse_beyond(
        session,
        (waiting.where(Job.user_id == by.id), settings.jobs_per_user),
        (waiting, settings.jobs_waiting),
        said="cases {whose}wait to be read",
        fix="Wait until some of them are read.",
    )


def refuse_beyond(session: Session, mine: Bound, all_: Bound, *, said: str, fix: str) -> None:
    """TooMany where a count has reached its bound, of one person or of everybody."""
    for (query, most), whose in ((mine, "of yours "), (all_, "")):
        count = session.scalar(query) or 0
        if count >= most:
            waits = said.format(whose=whose)
            raise TooMany(f"{count:,} {waits}; allowed: {most:,}", fix=fix, wait=BUSY)


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


def begin(session: Session, served: Mapping[int, float]) -> Job | None:
    """The next job, running from now on; `arguments` count the `attempts`.

    Of all who wait it is the turn of whoever was served longest ago (served: when, by user), and of
    that person's jobs of the one that has waited longest. There is one worker, so what runs already
    was interrupted, by a crash or because the database was away: it is begun anew, which is
    harmless. Who gets on forgets the attempts (`got_on`).
    """
    waiting = session.scalars(select(Job).where(GOING_ON).order_by(Job.created, Job.id))
    found = min(waiting, key=lambda job: served.get(job.user_id, 0.0), default=None)
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


def others_wait(session: Session, user_id: int) -> bool:
    """Whether a job of somebody else waits."""
    query = select(Job.id).where(Job.state == "waiting", Job.user_id != user_id)
    return session.scalar(query.limit(1)) is not None
