"""The last changes of a case are found at once, however many there were."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Indexes of changes by kind, and by person."""
    op.create_index("changes_by_kind", "changes", ["case_id", "kind", "revision"])
    op.create_index("changes_by_person", "changes", ["case_id", "user_id", "kind", "revision"])
