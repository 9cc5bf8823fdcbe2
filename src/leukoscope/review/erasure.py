"""Erasing a case for good: images and all that somebody typed go, the chain of the log stays.

What remains says that there was a case, who did what kind of act when, which model read it, and the
hashes of what was signed; no word, name or picture of it. Copies in back-ups aren't reached.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from leukoscope.review import audit, cases
from leukoscope.review.accounts import acting
from leukoscope.review.blobs import Blobs
from leukoscope.review.database import Database
from leukoscope.review.intake import ON_THEIR_WAY
from leukoscope.review.jobs import GOING_ON
from leukoscope.review.problems import Conflict, NotFound, text
from leukoscope.review.schema import Case, Cell, Change, Entry, Job, Signature, Upload, User


def erase(database: Database, blobs: Blobs, by: User, case_id: str, reason: str) -> int:
    """Erase a case, for a reason of 3 to 1,000 characters that names no patient; the number of
    image files deleted. Again is harmless, and deletes images that a failure left.

    Forbidden for all but administrators; Conflict while anybody's files come in or are read: an
    image may be the same as one of theirs.
    """
    reason = text(reason, "reason", least=3, most=1000, lines=True)
    with database.begin() as session:
        by = acting(session, by, "administrator")
        found = session.get(Case, case_id) if case_id.isalnum() and case_id.isascii() else None
        if found is None:
            raise NotFound("There is no such case", field="case")
        _refuse_busy(session)
        if found.state != cases.ERASED:
            _erase(session, by, found, reason)
    # Not before that is stored; and while nobody can note that an image is theirs, too.
    with database.begin() as session:
        _refuse_busy(session)
        files = [path for sha256 in _only_of(session, case_id) for path in _files(blobs, sha256)]
        for path in files:
            path.unlink(missing_ok=True)
    return len(files)


def _refuse_busy(session: Session) -> None:
    coming = select(func.count()).where(ON_THEIR_WAY)
    if session.scalar(coming) or session.scalar(select(func.count()).where(GOING_ON)):
        raise Conflict(
            "Files are on their way or being read",
            fix="Erase when nothing waits; give up files that were cut off.",
            field="state",
        )


def _erase(session: Session, by: User, case: Case, reason: str) -> None:
    case.pseudonym, case.slide, case.stain, case.notes = cases.ERASED, "", "", ""
    case.state = cases.ERASED
    for table, values in (
        (Upload, {"name": cases.ERASED, "error": ""}),
        (Cell, {"comment": ""}),
        (Change, {"before": {}, "after": {}}),
        (Signature, {"content": {}, "reason": ""}),
        (Job, {"error": ""}),
    ):
        session.execute(update(table).where(table.case_id == case.id).values(**values))
    # Of a signature only its version, hash and number of cells are in the log.
    of_case = (Entry.case_id == case.id) & (Entry.action != "sign")
    lines = list(session.scalars(select(Entry.id).where(of_case).order_by(Entry.id)))
    session.execute(update(Entry).where(of_case).values(details=audit.ERASED))
    audit.record(session, by, audit.ERASE, case, reason=reason, lines=lines)


def _only_of(session: Session, case_id: str) -> set[str]:
    """The images of an erased case that no other one shows."""

    def images(mine: bool) -> set[str]:
        found: set[str] = set()
        for table in (Upload, Cell):
            query = select(table.sha256).join(Case, Case.id == table.case_id)
            here = table.case_id == case_id if mine else Case.state != cases.ERASED
            found |= {sha256 for sha256 in session.scalars(query.where(here)) if sha256}
        return found

    return images(True) - images(False)


def _files(blobs: Blobs, sha256: str) -> list[Path]:
    """An image and what was made of it."""
    found = [blobs.place(sha256)]
    found += blobs.derived.glob(f"*/{sha256[:2]}/{sha256}*")
    return [path for path in found if path.is_file()]
