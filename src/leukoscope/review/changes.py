"""What reviewers do to a case: labels, comments, undo and redo, without losing anybody's work.

Whoever changes a cell says which of its revisions was seen. Where somebody else has changed the
same thing since (the label, or the comment), nothing is done and the answer says who and what.
Each act is one revision of the case, whole or not at all.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.orm import Session

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.review import audit
from leukoscope.review.accounts import acting
from leukoscope.review.cases import CHUNK, EXTRA_LABELS, classes, find, open_case
from leukoscope.review.problems import Conflict, NotFound, text
from leukoscope.review.schema import Case, Cell, Change, Reading, User, now

ACTS = ("label", "comment", "redo")  # what undo takes back
Values = dict[int, dict[str, Any]]  # cell id -> {label} or {comment}
_NEW_CHANGE = insert(Change)


@dataclass(frozen=True)
class Act:
    """One change of a case as others see it: who, what, and the values it left, by cell."""

    revision: int
    kind: str  # label, comment, undo, redo, sign, amend, read, edit
    by: str
    at: datetime.datetime
    after: Values

    @property
    def cells(self) -> list[int]:
        """The cells concerned."""
        return list(self.after)

    @property
    def label(self) -> str | None:
        """The one label that all cells got, None where they got none or several."""
        labels = {value.get("label") for value in self.after.values()}
        return labels.pop() if len(labels) == 1 else None


def relabel(session: Session, by: User, case_id: str, seen: Mapping[int, int], label: str) -> Act:
    """Give cells a class or one of EXTRA_LABELS. seen: cell id -> the revision that was seen.

    UnknownNameError for another label; Conflict where somebody else relabelled a cell since.
    """
    by = acting(session, by, "reviewer")
    case = open_case(session, case_id)
    allowed = [*classes(session, case), *EXTRA_LABELS]
    if label not in allowed:
        raise UnknownNameError("class", label, allowed, field="label")
    after: Values = {cell_id: {"label": label} for cell_id in seen}
    return _act(session, by, case, "label", after, seen)


def confirm(session: Session, by: User, case_id: str, seen: Mapping[int, int]) -> Act:
    """Say that the model is right about these cells: each gets its predicted class as label."""
    by = acting(session, by, "reviewer")
    case = open_case(session, case_id)
    after: Values = {}
    for ids in _chunks(seen):
        query = select(Reading.cell_id, Reading.predicted).where(
            Reading.cell_id.in_(ids), Reading.model_id == case.model_id
        )
        after |= {cell_id: {"label": label} for cell_id, label in session.execute(query)}
    _none_missing(seen, after)
    _refuse_read_again(session, case, seen)
    return _act(session, by, case, "label", after, seen)


def comment(
    session: Session, by: User, case_id: str, cell_id: int, revision_seen: int, words: str
) -> Act:
    """Write, replace or (with "") remove a cell's comment, of up to 2,000 characters."""
    by = acting(session, by, "reviewer")
    case = open_case(session, case_id)
    words = text(words, "comment", most=2000, lines=True)
    after: Values = {cell_id: {"comment": words}}
    return _act(session, by, case, "comment", after, {cell_id: revision_seen})


def undo(session: Session, by: User, case_id: str, seen: int | None = None) -> Act:
    """Take back one's own last act that still stands; Conflict where others built on it.

    seen: the case's revision that was seen. Where one's own undo came after it, that is the answer:
    the request was sent again because the first answer was lost.
    """
    by = acting(session, by, "reviewer")
    case = open_case(session, case_id)
    done = _done_since(session, by, case, "undo", seen)
    return done or _reverse(session, by, case, _to_undo(by, case), "undo")


def redo(session: Session, by: User, case_id: str, seen: int | None = None) -> Act:
    """Do again what one's own last undo took back, unless one did something else since.

    seen: as for `undo`.
    """
    by = acting(session, by, "reviewer")
    case = open_case(session, case_id)
    done = _done_since(session, by, case, "redo", seen)
    return done or _reverse(session, by, case, _to_redo(by, case), "redo")


def can(session: Session, by: User, case: Case) -> tuple[bool, bool]:
    """Whether there is something for this person to undo, and to redo."""
    if case.state != "open":
        return False, False
    undo, redo = (query.with_only_columns(Change.id).scalar_subquery()
                  for query in (_to_undo(by, case), _to_redo(by, case)))  # fmt: skip
    found = session.execute(select(undo, redo)).one()
    return found[0] is not None, found[1] is not None


def changes(session: Session, case_id: str, since: int = -1) -> list[Act]:
    """Everything that happened to a case after revision `since`, in order."""
    case = find(session, case_id)
    query = (
        select(Change, User.name)
        .join(User, User.id == Change.user_id)
        .where(Change.case_id == case.id, Change.revision > max(-1, min(since, 2**31 - 1)))
        .order_by(Change.revision)
    )
    return [_as_act(change, name) for change, name in session.execute(query)]


# --- inside ---------------------------------------------------------------------------------------


def _act(
    session: Session, by: User, case: Case, kind: str, after: Values, seen: Mapping[int, int]
) -> Act:
    if not after:
        raise InputError("No cell was named", fix="Choose at least one cell.", field="cells")
    present = _present(session, case, after)
    done = _done_last(session, by, case, kind, after, present)
    if done is not None:
        return done
    newer = {i for i, cell in present.items() if cell.revision > seen[i]}
    if newer:
        oldest = min(seen[i] for i in newer)
        later = _others_acts(session, by, case, oldest, ("label", "comment", "undo", "redo"))
        for change in later:
            for cell_id in newer & set(_values(change.after)):
                touched = _values(change.after)[cell_id]
                if change.revision > seen[cell_id] and touched.keys() & after[cell_id].keys():
                    raise _overtaken(session, change, cell_id)
    return _write(session, by, case, kind, present, after)


def _done_last(
    session: Session, by: User, case: Case, kind: str, after: Values, present: Mapping[int, Any]
) -> Act | None:
    """One's own last act where it is this one and still stands: to say it again says nothing new.

    So a request that was sent again, since its answer was lost, isn't a second act.
    """
    last = session.scalar(_own(by, case).where(Change.kind != "read"))
    if last is None or last.kind != kind or _values(last.after) != after:
        return None
    if any(
        getattr(present[i], name) != value
        for i, values in after.items()
        for name, value in values.items()
    ):
        return None
    return _as_act(last, by.name)


def _done_since(session: Session, by: User, case: Case, kind: str, seen: int | None) -> Act | None:
    if seen is None:
        return None
    own = _own(by, case).where(Change.kind == kind, Change.revision > seen)
    found = session.scalar(own)
    return _as_act(found, by.name) if found else None


def _refuse_read_again(session: Session, case: Case, seen: Mapping[int, int]) -> None:
    """Who says that the model is right must have seen what this model says."""
    oldest = min([*seen.values(), 2**31 - 1])
    query = select(Change.revision, Change.after).where(
        Change.case_id == case.id, Change.kind == "read", Change.revision > oldest
    )
    for revision, after in session.execute(query):
        for cell_id in seen.keys() & _values(after).keys():
            if revision > seen[cell_id]:
                raise Conflict(
                    f"Another model has read cell {cell_id} since you saw it",
                    fix="Look at what it says, then decide.",
                    field="cells",
                )


def _reverse(session: Session, by: User, case: Case, query: Select[Any], kind: str) -> Act:
    target = session.scalar(query)
    if target is None:
        raise Conflict(f"You have nothing to {kind} in this case", field=kind)
    after = _values(target.before)
    left = _values(target.after)
    present = _present(session, case, after)
    for change in _others_acts(session, by, case, target.revision, ACTS):
        for cell_id in after.keys() & _values(change.after).keys():
            touched = _values(change.after)[cell_id]
            if change.undone is None and touched.keys() & after[cell_id].keys():
                raise _overtaken(session, change, cell_id)
    for cell_id, values in left.items():
        if any(getattr(present[cell_id], name) != value for name, value in values.items()):
            raise Conflict(
                f"Cell {cell_id} has changed since", fix="Look at it again.", field="cells"
            )
    target.undone = now()
    return _write(session, by, case, kind, present, after)


def _write(
    session: Session, by: User, case: Case, kind: str, present: Mapping[int, Any], after: Values
) -> Act:
    """Store the act: the cells, the change, the audit line, one revision further."""
    before: Values = {
        i: {name: getattr(present[i], name) for name in values} for i, values in after.items()
    }
    case.revision += 1
    alike: dict[tuple[tuple[str, Any], ...], list[int]] = defaultdict(list)
    for cell_id, values in after.items():
        alike[tuple(values.items())].append(cell_id)
    for pairs, all_ids in alike.items():
        for ids in _chunks(all_ids):
            session.execute(
                update(Cell).where(Cell.id.in_(ids)).values(revision=case.revision, **dict(pairs)),
                execution_options={"synchronize_session": False},
            )
    at = now()
    values = {
        "case_id": case.id,
        "revision": case.revision,
        "kind": kind,
        "user_id": by.id,
        "before": {str(i): values for i, values in before.items()},
        "after": {str(i): values for i, values in after.items()},
        "at": at,
    }
    session.connection().execute(_NEW_CHANGE, values)
    audit.record(session, by, kind, case, revision=case.revision, after=values["after"])
    return Act(case.revision, kind, by.name, at, after)


def _present(session: Session, case: Case, wanted: Iterable[int]) -> dict[int, Any]:
    """(id, label, comment, revision) of these cells of the case; NotFound where one isn't there."""
    found: dict[int, Any] = {}
    for ids in _chunks(wanted):
        query = select(Cell.id, Cell.label, Cell.comment, Cell.revision)
        rows = session.execute(query.where(Cell.id.in_(ids), Cell.case_id == case.id))
        found |= {row.id: row for row in rows}
    _none_missing(wanted, found)
    return found


def _none_missing(wanted: Iterable[int], found: Mapping[int, Any]) -> None:
    missing = [cell_id for cell_id in wanted if cell_id not in found]
    if missing:
        raise NotFound(f"The case has no cell {missing[0]}", field="cells")


def _others_acts(
    session: Session, by: User, case: Case, after: int, kinds: tuple[str, ...]
) -> list[Change]:
    """What others did after a revision, the latest first."""
    query = select(Change).where(
        Change.case_id == case.id,
        Change.user_id != by.id,
        Change.revision > max(-1, after),
        Change.kind.in_(kinds),
    )
    return list(session.scalars(query.order_by(Change.revision.desc())))


def _to_undo(by: User, case: Case) -> Select[Any]:
    return _own(by, case).where(Change.kind.in_(ACTS), Change.undone.is_(None))


def _to_redo(by: User, case: Case) -> Select[Any]:
    newest = (
        select(func.max(Change.revision))
        .where(
            Change.case_id == case.id,
            Change.user_id == by.id,
            Change.kind.in_(("label", "comment")),
        )
        .scalar_subquery()
    )
    undone = _own(by, case).where(Change.kind == "undo", Change.undone.is_(None))
    return undone.where(Change.revision > newest)


def _own(by: User, case: Case) -> Select[Any]:
    """The person's acts in this version of the case, the latest first: a signature ends undoing."""
    signed = (
        select(func.coalesce(func.max(Change.revision), -1))
        .where(Change.case_id == case.id, Change.kind == "sign")
        .scalar_subquery()
    )
    return (
        select(Change)
        .where(Change.case_id == case.id, Change.user_id == by.id, Change.revision > signed)
        .order_by(Change.revision.desc())
        .limit(1)
    )


def _overtaken(session: Session, change: Change, cell_id: int) -> Conflict:
    name = session.get_one(User, change.user_id).name
    value = _values(change.after)[cell_id]
    what = f"labelled it {value['label']!r}" if value.get("label") else "changed it"
    if "comment" in value:
        what = "commented on it"
    return Conflict(
        f"{name} changed cell {cell_id} since you saw it: {name} {what}",
        fix="Look at it again, then decide.",
        field="cells",
    )


def _values(stored: Mapping[str, Any]) -> Values:
    return {int(cell_id): values for cell_id, values in stored.items()}


def _as_act(change: Change, name: str) -> Act:
    per_cell = change.kind in ("label", "comment", "undo", "redo", "read")
    after = _values(change.after) if per_cell else {}
    return Act(change.revision, change.kind, name, change.at, after)


def _chunks(ids: Iterable[int]) -> Iterable[list[int]]:
    """Ids that a database can hold, as many at a time as a statement may name."""
    every = [cell_id for cell_id in ids if 0 < cell_id < 2**31]
    return (every[start : start + CHUNK] for start in range(0, len(every), CHUNK))
