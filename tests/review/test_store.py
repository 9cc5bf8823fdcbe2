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
from leukoscope.review import audit, changes, signing
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


@pytest.mark.parametrize("table", ["audit", "readings", "signatures", "models"])
def test_triggers_refuse_changes_of_what_was_said(lab: Lab, table: str) -> None:
    _signed(lab)
    column = "action" if table == "audit" else "sha256"
    column = "predicted" if table == "readings" else column
    for statement in (f"UPDATE {table} SET {column} = 'x'", f"DELETE FROM {table}"):
        with pytest.raises(DBAPIError, match="append-only"), lab.database.begin() as session:
            session.execute(text(statement))


@pytest.mark.parametrize("table", ["changes", "cases", "cells"])
def test_triggers_refuse_deletion(lab: Lab, table: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"), lab.database.begin() as session:
        session.execute(text(f"DELETE FROM {table}"))


def test_postgresql_refuses_to_truncate(lab: Lab) -> None:
    if lab.database.url.get_backend_name() == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    with pytest.raises(DBAPIError, match="append-only"), lab.database.begin() as session:
        session.execute(text("TRUNCATE audit"))


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


@pytest.mark.parametrize("column", ["at", '"user"', "action", "details", "case_id", "previous"])
def test_a_changed_line_is_found(lab: Lab, column: str) -> None:
    assert _broken_after(lab, f"UPDATE audit SET {column} = 'other' WHERE id = 3") == 3


def test_a_changed_line_with_a_fitting_hash_is_found(lab: Lab) -> None:
    def forge(session: Session) -> None:
        entry = audit.entries(session, before=4, limit=1)[0]
        entry.user = "boris"
        entry.sha256 = audit._hash(entry)

    with _without_triggers(lab.database), lab.database.begin() as session:
        forge(session)
    with lab.database.read() as session:
        assert audit.verify(session).first_broken == 4


def test_a_removed_line_is_found(lab: Lab) -> None:
    assert _broken_after(lab, "DELETE FROM audit WHERE id = 2") == 2


def test_lines_removed_at_the_end_are_found(lab: Lab) -> None:
    with lab.database.read() as session:
        last = audit.verify(session).entries
    assert _broken_after(lab, f"DELETE FROM audit WHERE id > {last - 2}") == last - 1


def test_reordered_lines_are_found(lab: Lab) -> None:
    swap = "UPDATE audit SET id = CASE id WHEN 2 THEN -3 WHEN 3 THEN -2 END WHERE id IN (2, 3)"
    assert _broken_after(lab, swap, "UPDATE audit SET id = -id WHERE id < 0") == 2


def test_an_empty_log_after_work_is_found(lab: Lab) -> None:
    assert _broken_after(lab, "DELETE FROM audit") == 1


def test_a_chain_computed_anew_is_found_by_a_noted_head(lab: Lab) -> None:
    with lab.database.read() as session:
        noted = audit.verify(session).head
    with lab.database.begin() as session:
        audit.record(session, "server", "start")
    with lab.database.read() as session:
        assert audit.verify(session, noted).intact
    with _without_triggers(lab.database), lab.database.begin() as session:
        session.execute(text("DELETE FROM audit"))
        session.execute(text("DELETE FROM audit_head"))
        audit.record(session, "server", "start")
    with lab.database.read() as session:
        assert audit.verify(session).intact
        assert not audit.verify(session, noted).intact


def _signed(lab: Lab) -> None:
    with lab.database.begin() as session:
        seen = changes.relabel(session, lab.anna, lab.case, {lab.cells[0]: 9}, "monocyte").revision
        signing.sign(session, lab.anna, lab.case, seen, PASSWORD)


def _broken_after(lab: Lab, *statements: str) -> int | None:
    with _without_triggers(lab.database), lab.database.begin() as session:
        for statement in statements:
            session.execute(text(statement))
    with lab.database.read() as session:
        verdict = audit.verify(session)
    assert not verdict.intact
    return verdict.first_broken


class _without_triggers:  # noqa: N801  (a context manager, read as a phrase)
    """What somebody does who owns the database and wants to cheat."""

    def __init__(self, database: Database) -> None:
        with database.begin() as session:
            if database.url.get_backend_name() == "sqlite":
                session.execute(text("DROP TRIGGER audit_no_update"))
                session.execute(text("DROP TRIGGER audit_no_delete"))
            else:
                session.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
