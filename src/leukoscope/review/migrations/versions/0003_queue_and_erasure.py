"""Files that wait are counted whenever one is announced; what somebody typed may be erased.

Lines of the log and signatures still can't be changed, but for being emptied as a whole.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# What a change must leave as it was, and what it must leave behind.
_TABLES = {
    "audit": (
        ("id", "at", "user", "action", "case_id", "model_sha256", "contract_sha256", "previous",
         "sha256"),
        {"details": '{"erased": true}'},
    ),
    "signatures": (
        ("id", "case_id", "version", "user_id", "model_id", "sha256", "at"),
        {"content": "{}", "reason": ""},
    ),
}  # fmt: skip


def upgrade() -> None:
    """An index of files by state and person; triggers that let emptied rows through."""
    op.create_index("uploads_waiting", "uploads", ["state", "created_by"])
    postgresql = op.get_bind().dialect.name == "postgresql"
    for table, (same, emptied) in _TABLES.items():
        kept = [f'NEW."{name}" IS NOT DISTINCT FROM OLD."{name}"' for name in same]
        kept += [f"CAST(NEW.{name} AS TEXT) = '{value}'" for name, value in emptied.items()]
        unless = f"NOT ({' AND '.join(kept)})"
        for statement in _postgresql(table, unless) if postgresql else _sqlite(table, unless):
            op.execute(sa.text(statement.replace(":", "\\:")))


def _sqlite(table: str, unless: str) -> list[str]:
    unless = unless.replace("IS NOT DISTINCT FROM", "IS")  # which SQLite knows since 3.39 only
    return [
        f"DROP TRIGGER {table}_no_update",
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} WHEN {unless} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END",
    ]


def _postgresql(table: str, unless: str) -> list[str]:
    return [
        f"DROP TRIGGER {table}_append_only ON {table}",
        f"CREATE TRIGGER {table}_append_only BEFORE DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION append_only()",
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} FOR EACH ROW "
        f"WHEN ({unless}) EXECUTE FUNCTION append_only()",
    ]
