"""The audit log: every action of anybody, each line chained to the one before by its hash.

A line that was changed, removed or moved is found by `verify`. Whoever can write the database
file could still compute a whole new chain; who fears that notes `Verdict.head` elsewhere from
time to time and gives it to `verify` later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from leukoscope.review.schema import Case, Entry, Head, Model, User, now

START = "0" * 64  # the hash before the first line
ERASE = "erase case"
ERASED = '{"erased": true}'
"""The details of a line whose own were erased; its hash stays, and a later line of the action ERASE
names it."""

_HASHED = ("id", "at", "user", "action", "case_id", "model_sha256", "contract_sha256", "details",
           "previous")  # fmt: skip
_HASHES = select(Model.sha256, Model.contract_sha256).where(Model.id == bindparam("of"))
_HEAD = select(Head.entries, Head.sha256).where(Head.id == 1)
_NEW_LINE, _NEW_HEAD = insert(Entry), update(Head).where(Head.id == 1)


@dataclass(frozen=True)
class Verdict:
    """entries: lines checked. first_broken: number of the first line that doesn't fit, or None.

    head: the hash of the last line; noted elsewhere, it later proves that nothing was rewritten.
    """

    entries: int
    intact: bool
    first_broken: int | None
    head: str


def record(
    session: Session,
    user: User | str,
    action: str,
    case: Case | None = None,
    model: Model | None = None,
    **details: Any,
) -> None:
    """Write one line. `details` must be JSON; of a case its model's hashes are written too.

    By plain statements: this is in every act, and the unit of work takes three times as long.
    """
    session.flush()
    graph, contract = ("", "") if model is None else (model.sha256, model.contract_sha256)
    if model is None and case is not None:
        graph, contract = session.execute(_HASHES, {"of": case.model_id}).one()
    head = session.execute(_HEAD).one_or_none()
    entries, previous = head or (0, START)
    line = {
        "id": entries + 1,
        "at": now().isoformat(),
        "user": user if isinstance(user, str) else user.name,
        "action": action,
        "case_id": None if case is None else case.id,
        "model_sha256": graph,
        "contract_sha256": contract,
        "details": json.dumps(details, sort_keys=True, ensure_ascii=False),
        "previous": previous,
    }
    line["sha256"] = _hash(line)
    connection = session.connection()
    connection.execute(_NEW_LINE, line)
    last = {"entries": line["id"], "sha256": line["sha256"]}
    if head is None:
        connection.execute(insert(Head), {"id": 1, **last})
    else:
        connection.execute(_NEW_HEAD, last)


def verify(session: Session, noted: str = "") -> Verdict:
    """Read the whole chain again. noted: a head noted earlier, which must still be in it.

    An erased line is taken by its hash, if a whole line says that it was erased.
    """
    previous, count, seen = START, 0, noted in ("", START)
    erased: set[int] = set()
    named: set[int] = set()
    for entry in session.scalars(select(Entry).order_by(Entry.id).execution_options(yield_per=500)):
        fits = entry.id == count + 1 and entry.previous == previous
        whole = entry.sha256 == _hash(vars(entry))
        if not fits or not (whole or entry.details == ERASED):
            return Verdict(count, False, count + 1, previous)
        if not whole:
            erased.add(entry.id)
        elif entry.action == ERASE:
            named |= set(json.loads(entry.details)["lines"])
        previous, count = entry.sha256, entry.id
        seen = seen or previous == noted
        session.expunge(entry)
    if erased - named:
        return Verdict(count, False, min(erased - named), previous)
    head = session.get(Head, 1, populate_existing=True)
    ends = (count, previous) == ((head.entries, head.sha256) if head else (0, START))
    whole = ends and seen
    return Verdict(count, whole, None if whole else count + 1, previous)


def entries(
    session: Session, case_id: str | None = None, before: int | None = None, limit: int = 100
) -> list[Entry]:
    """Lines, newest first; those of one case, those with a number below `before`."""
    query = select(Entry).order_by(Entry.id.desc()).limit(limit)
    if case_id is not None:
        query = query.where(Entry.case_id == case_id)
    if before is not None:
        query = query.where(Entry.id < max(0, min(before, 2**31 - 1)))
    return list(session.scalars(query))


def _hash(line: Mapping[str, Any]) -> str:
    values = [line[name] for name in _HASHED]
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()
