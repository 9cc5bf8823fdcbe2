"""The database itself: migrations, transactions, triggers, the audit chain."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from store import PASSWORD, Lab

from leukoscope.errors import InputError
from leukoscope.review import audit, cases, changes, signing
from leukoscope.review import database as module
from leukoscope.review.database import Database
from leukoscope.review.schema import Base, User


def test_migrations_agree_with_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade_knows_the_newest_revision_and_can_be_done_again(database: Database) -> None:
    assert ScriptDirectory(str(module.MIGRATIONS)).get_heads() == [module.NEWEST]
    database.upgrade()


def test_upgrade_of_an_empty_postgresql(postgres_url: str) -> None:
    # The plain address, as laboratories write it.
    opened = Database(postgres_url.replace("+pg8000", ""))
    opened.upgrade()
    opened.upgrade()
    with opened.read() as session:
        assert audit.verify(session).entries == 0
    opened.close()


def test_an_older_database_with_cases_is_brought_up_to_date(lab: Lab) -> None:
    later = [
        "DROP TRIGGER audit_no_update ON audit",
        "DROP TRIGGER signatures_no_update ON signatures",
    ]
    with lab.database.begin() as session:
        for statement in (
            "ALTER TABLE cases DROP COLUMN pixel_size",
            "ALTER TABLE readings DROP COLUMN place",
            "DROP INDEX uploads_waiting",
            "DROP INDEX changes_by_kind",
            "DROP INDEX changes_by_person",
            *(later if session.get_bind().dialect.name == "postgresql" else []),
            "UPDATE alembic_version SET version_num = '0001'",
        ):
            session.execute(text(statement))
    lab.database.upgrade()
    with lab.database.read() as session:
        assert cases.find(session, lab.case).pixel_size is None
        assert len(cases.cells(session, lab.case)) == len(lab.cells)
        assert audit.verify(session).intact
    test_triggers_refuse_changes_of_what_was_said(lab)


def test_migrations_lie_in_the_package() -> None:
    folder = importlib.resources.files("leukoscope.review") / "migrations"
    assert (folder / "env.py").is_file()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/name", "sqlite://", "sqlite:///:memory:", "oracle://x"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="allowed: sqlite:///FILE or postgresql://"):
        Database(url)


def test_an_unusable_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("This is no database at all. " * 100)
    for url in (
        f"sqlite:///{tmp_path}/absent/x.db",
        f"sqlite:///{tmp_path}/no.db",
        "postgresql://nobody:secret@127.0.0.1:1/none",
    ):
        with pytest.raises(InputError, match="Can't use the database") as caught:
            Database(url).upgrade()
        assert "secret" not in str(caught.value)


def test_what_raises_leaves_nothing(lab: Lab) -> None:
    with pytest.raises(RuntimeError), lab.database.begin() as session:
        changes.relabel(session, lab.anna, lab.case, {lab.cells[0]: 9}, "monocyte")
        raise RuntimeError
    with lab.database.read() as session:
        assert [act.kind for act in changes.changes(session, lab.case)] == ["read"]


def test_reading_writes_nothing(lab: Lab) -> None:
    with lab.database.read() as session:
        session.get_one(User, lab.anna.id).name = "somebody"
    with lab.database.read() as session:
        assert session.get_one(User, lab.anna.id).name == "anna"


def test_triggers_refuse_changes_of_what_was_said(lab: Lab) -> None:
    _signed(lab)
    for table, column in {
        "audit": "action",
        "readings": "predicted",
        "signatures": "sha256",
        "models": "sha256",
    }.items():
        _refused(lab, f"UPDATE {table} SET {column} = 'x'")


def test_triggers_refuse_deletion(lab: Lab) -> None:
    _signed(lab)
    for table in ("audit", "readings", "signatures", "models", "changes", "cases", "cells"):
        _refused(lab, f"DELETE FROM {table}")
    if lab.database.url.get_backend_name() == "postgresql":
        _refused(lab, "TRUNCATE audit")


# --- the audit chain ------------------------------------------------------------------------------


def test_the_chain_of_an_ordinary_day_is_intact(lab: Lab) -> None:
    _signed(lab)
    with lab.database.read() as session:
        verdict = audit.verify(session)
        lines = audit.entries(session, limit=1000)
    assert verdict.intact
    assert verdict.first_broken is None
    assert verdict.entries == len(lines)
    assert verdict.head == lines[0].sha256


def test_lines_of_a_case_carry_user_time_and_model(lab: Lab) -> None:
    _signed(lab)
    with lab.database.read() as session:
        lines = audit.entries(session, lab.case)
        older = audit.entries(session, lab.case, before=lines[0].id, limit=1)
    assert [line.action for line in lines] == ["sign", "label", "read cells", "create case"]
    assert {line.user for line in lines} == {"anna"}
    assert {line.contract_sha256 for line in lines} == {lab.model.contract_sha256}
    assert {line.model_sha256 for line in lines} == {lab.model.sha256}
    assert all(line.at.endswith("+00:00") for line in lines)
    assert older[0].id == lines[1].id


MOVED = "UPDATE audit SET id = CASE id WHEN 2 THEN -3 WHEN 3 THEN -2 END WHERE id IN (2, 3)"
TAMPERED = {
    "time changed": (["UPDATE audit SET at = 'other' WHERE id = 3"], 3),
    "user changed": (["UPDATE audit SET \"user\" = 'other' WHERE id = 3"], 3),
    "action changed": (["UPDATE audit SET action = 'other' WHERE id = 3"], 3),
    "details changed": (["UPDATE audit SET details = '{}' WHERE id = 3"], 3),
    "case changed": (["UPDATE audit SET case_id = 'other' WHERE id = 3"], 3),
    "model changed": (["UPDATE audit SET contract_sha256 = 'other' WHERE id = 3"], 3),
    "hash changed": (["UPDATE audit SET sha256 = 'other' WHERE id = 3"], 3),
    "line removed": (["DELETE FROM audit WHERE id = 2"], 2),
    "first line removed": (["DELETE FROM audit WHERE id = 1"], 1),
    "all removed": (["DELETE FROM audit"], 1),
    "lines changed places": ([MOVED, "UPDATE audit SET id = -id WHERE id < 0"], 2),
    "numbers closed up": (
        ["DELETE FROM audit WHERE id = 2", "UPDATE audit SET id = 2 WHERE id = 3"],
        2,
    ),
}


def test_tampering_is_found(lab: Lab) -> None:
    with lab.database.read() as session:
        last = audit.verify(session).entries
    removed_at_the_end = ([f"DELETE FROM audit WHERE id > {last - 2}"], last - 1)
    for what, (statements, broken) in {**TAMPERED, "end removed": removed_at_the_end}.items():
        with pytest.raises(_Undone), lab.database.begin() as session:
            _drop_triggers(session)
            for statement in statements:
                session.execute(text(statement))
            verdict = audit.verify(session)
            assert (verdict.intact, verdict.first_broken) == (False, broken), what
            raise _Undone
    with lab.database.read() as session:
        assert audit.verify(session).intact


def test_a_changed_line_with_a_fitting_hash_is_found(lab: Lab) -> None:
    with lab.database.begin() as session:
        _drop_triggers(session)
        entry = audit.entries(session, before=4, limit=1)[0]
        entry.user = "boris"
        entry.sha256 = audit._hash(vars(entry))
    with lab.database.read() as session:
        assert audit.verify(session).first_broken == 4


def test_a_chain_computed_anew_is_found_by_a_noted_head(lab: Lab) -> None:
    with lab.database.read() as session:
        noted = audit.verify(session).head
    with lab.database.begin() as session:
        audit.record(session, "server", "start")
    with lab.database.read() as session:
        assert audit.verify(session, noted).intact
    with lab.database.begin() as session:
        _drop_triggers(session)
        session.execute(text("DELETE FROM audit"))
        session.execute(text("DELETE FROM audit_head"))
        audit.record(session, "server", "start")
    with lab.database.read() as session:
        assert audit.verify(session).intact
        assert not audit.verify(session, noted).intact


def _signed(lab: Lab) -> None:
    with lab.database.begin() as session:
        seen = changes.relabel(session, lab.anna, lab.case, {lab.cells[0]: 9}, "monocyte").revision
    signing.sign(lab.database, lab.anna, lab.case, seen, PASSWORD)


def _refused(lab: Lab, statement: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"), lab.database.begin() as session:
        session.execute(text(statement))


def _drop_triggers(session: Session) -> None:
    """What somebody does who owns the database and wants to cheat."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("DROP TRIGGER audit_no_update"))
        session.execute(text("DROP TRIGGER audit_no_delete"))
    else:
        session.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))


class _Undone(Exception):  # noqa: N818
    """Rolls a transaction back."""
