"""What reviewers do: labels, comments, undo and redo, several people at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from store import CLASSES, Lab, new_cell, reading, upload

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.review import audit, cases, changes
from leukoscope.review.changes import Act
from leukoscope.review.problems import Conflict, Forbidden, NotFound
from leukoscope.review.schema import Change, User

ROUNDS = 3


def do(lab: Lab, act: Callable[..., Any], *given: Any) -> Any:
    """One act in a transaction of its own."""
    with lab.database.begin() as session:
        return act(session, *given)


def relabel(lab: Lab, by: User, cells: list[int], label: str) -> Act:
    """A label given to cells as they are now."""
    with lab.database.begin() as session:
        seen = {c: cases.find_cell(session, c).revision for c in cells}
        return changes.relabel(session, by, lab.case, seen, label)


def at_once(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own; what one raises is raised here."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def labels(lab: Lab) -> list[str | None]:
    with lab.database.read() as session:
        by_id = {view.id: view.label for view in cases.cells(session, lab.case)}
    return [by_id[cell] for cell in lab.cells]


# --- labels and comments --------------------------------------------------------------------------


def test_a_label_is_one_revision_and_says_who_and_what(lab: Lab) -> None:
    act = relabel(lab, lab.anna, lab.cells[:2], "monocyte")
    assert (act.revision, act.kind, act.by, act.label) == (2, "label", "anna", "monocyte")
    assert act.cells == lab.cells[:2]
    with lab.database.read() as session:
        assert [a.revision for a in changes.changes(session, lab.case)] == [1, 2]
        assert [a.by for a in changes.changes(session, lab.case, since=1)] == ["anna"]
        new = cases.cells(session, lab.case, since=1)
        line = audit.entries(session, limit=1)[0]
    assert {view.id for view in new} == set(lab.cells[:2])
    assert {(view.label, view.shown, view.revision) for view in new} == {("monocyte",) * 2 + (2,)}
    assert (line.action, line.user, line.case_id) == ("label", "anna", lab.case)
    assert "monocyte" in line.details


def test_labels_are_classes_or_artefact_or_unclassifiable(lab: Lab) -> None:
    for label in (*CLASSES, *cases.EXTRA_LABELS):
        assert relabel(lab, lab.anna, lab.cells[:1], label).label == label


def test_other_labels_and_cells_are_refused(lab: Lab) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'monocyte'"):
        relabel(lab, lab.anna, lab.cells[:1], "monocytes")
    with lab.database.begin() as session:
        with pytest.raises(InputError, match="No cell"):
            changes.relabel(session, lab.anna, lab.case, {}, "monocyte")
        for cell in (0, -1, 10_000, 2**31, 2**80):
            with pytest.raises(NotFound):
                changes.relabel(session, lab.anna, lab.case, {cell: 1}, "monocyte")
            with pytest.raises(NotFound):
                changes.confirm(session, lab.anna, lab.case, {cell: 1})
            with pytest.raises(NotFound):
                changes.comment(session, lab.anna, lab.case, cell, 1, "x")
        for case in ("", "0" * 16, "\x00", "a b", "é", "x" * 999):
            with pytest.raises(NotFound):
                changes.relabel(session, lab.anna, case, {lab.cells[0]: 1}, "monocyte")
    assert labels(lab) == [None] * 12


def test_a_cell_of_another_case_is_not_there(lab: Lab) -> None:
    with lab.database.begin() as session:
        other = cases.create(session, lab.anna, "P-002", lab.model.id)
        with pytest.raises(NotFound):
            changes.relabel(session, lab.anna, other.id, {lab.cells[0]: 1}, "monocyte")


def test_confirm_takes_each_cells_prediction(lab: Lab) -> None:
    act = do(lab, changes.confirm, lab.anna, lab.case, dict.fromkeys(lab.cells[:3], 1))
    assert act.label is None
    assert labels(lab)[:4] == ["neutrophil", "lymphocyte", "monocyte", None]


def test_comments(lab: Lab) -> None:
    cell = lab.cells[0]
    do(lab, changes.comment, lab.anna, lab.case, cell, 1, "  Auer rod?\nSee slide 2. ")
    with lab.database.read() as session:
        assert cases.find_cell(session, cell).comment == "Auer rod?\nSee slide 2."
    for wrong in ("x" * 2001, "\x00", "\ud800"):
        with pytest.raises(InputError):
            do(lab, changes.comment, lab.anna, lab.case, cell, 2, wrong)
    do(lab, changes.comment, lab.anna, lab.case, cell, 2, "")
    with lab.database.read() as session:
        assert cases.find_cell(session, cell).comment == ""


def test_only_reviewers_change_anything(lab: Lab) -> None:
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    seen = {lab.cells[0]: 2}
    acts: dict[str, Callable[[Session], Any]] = {
        "relabel": lambda s: changes.relabel(s, lab.vera, lab.case, seen, "monocyte"),
        "confirm": lambda s: changes.confirm(s, lab.vera, lab.case, seen),
        "comment": lambda s: changes.comment(s, lab.vera, lab.case, lab.cells[0], 2, "x"),
        "undo": lambda s: changes.undo(s, lab.vera, lab.case),
        "redo": lambda s: changes.redo(s, lab.vera, lab.case),
    }
    for act in acts.values():
        with lab.database.begin() as session, pytest.raises(Forbidden, match="role reviewer"):
            act(session)


# --- optimistic concurrency -----------------------------------------------------------------------


def test_a_conflict_names_the_other_and_the_label(lab: Lab) -> None:
    relabel(lab, lab.boris, lab.cells[1:2], "monocyte")
    with pytest.raises(Conflict, match="boris labelled it 'monocyte'"):
        do(lab, changes.relabel, lab.anna, lab.case, dict.fromkeys(lab.cells[:3], 1), "neutrophil")
    assert labels(lab)[:3] == [None, "monocyte", None]  # whole or not at all
    seen = {lab.cells[0]: 1, lab.cells[1]: 2, lab.cells[2]: 1}
    do(lab, changes.relabel, lab.anna, lab.case, seen, "neutrophil")
    assert labels(lab)[:3] == ["neutrophil"] * 3


def test_ones_own_later_change_is_no_conflict(lab: Lab) -> None:
    # Two keys pressed faster than the answer to the first one came.
    for label in ("monocyte", "neutrophil"):
        do(lab, changes.relabel, lab.anna, lab.case, {lab.cells[0]: 1}, label)
    assert labels(lab)[0] == "neutrophil"


def test_anothers_change_under_ones_own_later_one_is_a_conflict(lab: Lab) -> None:
    relabel(lab, lab.boris, lab.cells[:1], "monocyte")
    relabel(lab, lab.anna, lab.cells[:1], "neutrophil")
    with pytest.raises(Conflict, match="boris"):
        do(lab, changes.relabel, lab.anna, lab.case, {lab.cells[0]: 1}, "lymphocyte")


def test_label_and_comment_do_not_disturb_each_other(lab: Lab) -> None:
    cell = lab.cells[0]
    do(lab, changes.comment, lab.boris, lab.case, cell, 1, "look here")
    do(lab, changes.relabel, lab.anna, lab.case, {cell: 1}, "monocyte")
    with pytest.raises(Conflict, match="boris commented"):
        do(lab, changes.comment, lab.anna, lab.case, cell, 1, "mine")
    with lab.database.read() as session:
        found = cases.find_cell(session, cell)
    assert (found.label, found.comment) == ("monocyte", "look here")


def test_new_cells_do_not_disturb_a_reviewer(lab: Lab) -> None:
    with lab.database.begin() as session:
        late = upload(session, lab.case, lab.boris, "late.png")
        cases.add_cells(
            session, lab.boris, lab.case, lab.model.id, [new_cell(late, reading("monocyte"))]
        )
    do(lab, changes.relabel, lab.anna, lab.case, {lab.cells[0]: 1}, "monocyte")


def insist(
    lab: Lab,
    user: User,
    mine: list[str],
    start: threading.Barrier,
    told: list[tuple[int, int, str]],
) -> None:
    """Relabel each cell as last seen, again on conflict; note what was acknowledged."""
    start.wait()
    for turn in range(ROUNDS):
        for cell in lab.cells:
            act = None
            while act is None:
                with lab.database.read() as session:
                    seen = cases.find_cell(session, cell).revision
                with contextlib.suppress(Conflict):
                    act = do(lab, changes.relabel, user, lab.case, {cell: seen}, mine[turn % 2])
            told.append((act.revision, cell, mine[turn % 2]))


def test_two_reviewers_at_once_lose_no_update(lab: Lab) -> None:
    told: list[tuple[int, int, str]] = []  # revision, cell, label
    start = threading.Barrier(2)
    at_once(
        lambda: insist(lab, lab.anna, ["neutrophil", "lymphocyte"], start, told),
        lambda: insist(lab, lab.boris, ["monocyte", "artefact"], start, told),
    )
    everything = 2 * ROUNDS * len(lab.cells)
    # Each revision acknowledged once, none missing, none doubled.
    assert sorted(revision for revision, _, _ in told) == list(range(2, everything + 2))
    last: dict[str, str | None] = {str(cell): None for cell in lab.cells}
    stored = set()
    with lab.database.read() as session:
        for row in session.scalars(
            select(Change).where(Change.kind == "label").order_by(Change.revision)
        ):
            ((cell, after),) = row.after.items()
            # It began where the one before had ended: nothing was overwritten unseen.
            assert row.before[cell]["label"] == last[cell]
            last[cell] = after["label"]
            stored.add((row.revision, int(cell), after["label"]))
        assert cases.find(session, lab.case).revision == everything + 1
        assert audit.verify(session).intact
    assert stored == set(told)
    assert labels(lab) == [last[str(cell)] for cell in lab.cells]


def test_of_two_who_saw_the_same_one_wins_and_one_is_told(lab: Lab) -> None:
    results: list[Act | Conflict] = []
    start = threading.Barrier(2)

    def work(user: User, label: str) -> None:
        start.wait()
        for cell in lab.cells:
            try:
                results.append(do(lab, changes.relabel, user, lab.case, {cell: 1}, label))
            except Conflict as problem:
                results.append(problem)

    at_once(lambda: work(lab.anna, "neutrophil"), lambda: work(lab.boris, "monocyte"))
    assert sum(isinstance(r, Act) for r in results) == len(lab.cells)
    assert sum(isinstance(r, Conflict) for r in results) == len(lab.cells)
    winners = {r.cells[0]: r.label for r in results if isinstance(r, Act)}
    assert labels(lab) == [winners[cell] for cell in lab.cells]


# --- undo and redo --------------------------------------------------------------------------------


def test_undo_and_redo_walk_through_ones_own_acts(lab: Lab) -> None:
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    relabel(lab, lab.anna, lab.cells[:1], "artefact")
    do(lab, changes.comment, lab.anna, lab.case, lab.cells[0], 3, "dust")
    seen = []
    for step in (changes.undo,) * 3 + (changes.redo,) * 3 + (changes.undo,) * 2 + (changes.redo,):
        do(lab, step, lab.anna, lab.case)
        with lab.database.read() as session:
            cell = cases.find_cell(session, lab.cells[0])
        seen.append((cell.label, cell.comment))
    assert seen == [
        ("artefact", ""), ("monocyte", ""), (None, ""),
        ("monocyte", ""), ("artefact", ""), ("artefact", "dust"),
        ("artefact", ""), ("monocyte", ""), ("artefact", ""),
    ]  # fmt: skip
    with lab.database.read() as session:
        kinds = [act.kind for act in changes.changes(session, lab.case)]
        revisions = [act.revision for act in changes.changes(session, lab.case)]
        assert audit.verify(session).intact
    assert kinds == ["read", "label", "label", "comment", *["undo"] * 3, *["redo"] * 3,
                     "undo", "undo", "redo"]  # fmt: skip
    assert revisions == list(range(1, 14))


def test_nothing_to_undo_or_redo(lab: Lab) -> None:
    for step in (changes.undo, changes.redo):
        with pytest.raises(Conflict, match="nothing to"):
            do(lab, step, lab.anna, lab.case)
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    with pytest.raises(Conflict, match="nothing to undo"):
        do(lab, changes.undo, lab.boris, lab.case)  # it is anna's
    with lab.database.read() as session:
        assert changes.can(session, lab.anna, cases.find(session, lab.case)) == (True, False)
        assert changes.can(session, lab.boris, cases.find(session, lab.case)) == (False, False)
    do(lab, changes.undo, lab.anna, lab.case)
    with lab.database.read() as session:
        assert changes.can(session, lab.anna, cases.find(session, lab.case)) == (False, True)


def test_a_new_act_ends_redo(lab: Lab) -> None:
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    do(lab, changes.undo, lab.anna, lab.case)
    relabel(lab, lab.anna, lab.cells[1:2], "monocyte")
    with pytest.raises(Conflict, match="nothing to redo"):
        do(lab, changes.redo, lab.anna, lab.case)


def test_many_cells_come_back_as_each_was(lab: Lab) -> None:
    do(lab, changes.confirm, lab.anna, lab.case, dict.fromkeys(lab.cells[:6], 1))
    before = labels(lab)
    relabel(lab, lab.anna, lab.cells, "artefact")
    act = do(lab, changes.undo, lab.anna, lab.case)
    assert set(act.cells) == set(lab.cells)
    assert labels(lab) == before
    do(lab, changes.redo, lab.anna, lab.case)
    assert labels(lab) == ["artefact"] * 12


def test_undo_keeps_what_another_did_later(lab: Lab) -> None:
    relabel(lab, lab.anna, lab.cells[:3], "monocyte")
    relabel(lab, lab.boris, lab.cells[2:4], "artefact")
    with pytest.raises(Conflict, match=r"boris changed cell .* 'artefact'"):
        do(lab, changes.undo, lab.anna, lab.case)
    assert labels(lab)[:4] == ["monocyte", "monocyte", "artefact", "artefact"]
    do(lab, changes.undo, lab.boris, lab.case)
    do(lab, changes.undo, lab.anna, lab.case)
    assert labels(lab) == [None] * 12


def test_undo_refuses_even_where_the_other_said_the_same(lab: Lab) -> None:
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    relabel(lab, lab.boris, lab.cells[:1], "monocyte")
    with pytest.raises(Conflict, match="boris"):
        do(lab, changes.undo, lab.anna, lab.case)


def test_undo_of_a_label_keeps_anothers_comment(lab: Lab) -> None:
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    do(lab, changes.comment, lab.boris, lab.case, lab.cells[0], 2, "agreed")
    do(lab, changes.undo, lab.anna, lab.case)
    with lab.database.read() as session:
        found = cases.find_cell(session, lab.cells[0])
    assert (found.label, found.comment) == (None, "agreed")


def test_redo_keeps_what_another_did_later(lab: Lab) -> None:
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    do(lab, changes.undo, lab.anna, lab.case)
    relabel(lab, lab.boris, lab.cells[:1], "artefact")
    with pytest.raises(Conflict, match="boris"):
        do(lab, changes.redo, lab.anna, lab.case)


def test_redo_notices_anothers_undo(lab: Lab) -> None:
    relabel(lab, lab.boris, lab.cells[:1], "lymphocyte")
    relabel(lab, lab.anna, lab.cells[:1], "monocyte")
    do(lab, changes.undo, lab.anna, lab.case)
    do(lab, changes.undo, lab.boris, lab.case)
    with pytest.raises(Conflict, match="has changed since"):
        do(lab, changes.redo, lab.anna, lab.case)
    assert labels(lab)[0] is None


def test_an_act_of_more_cells_than_a_statement_may_name(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "CHUNK", 5)
    do(lab, changes.confirm, lab.anna, lab.case, dict.fromkeys(lab.cells, 1))
    before = labels(lab)
    relabel(lab, lab.anna, lab.cells, "artefact")
    assert labels(lab) == ["artefact"] * 12
    do(lab, changes.undo, lab.anna, lab.case)
    assert labels(lab) == before
