"""Files that wait are counted whenever one is announced."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0001"


def upgrade() -> None:
    """An index of files by state and person."""
    op.create_index("uploads_waiting", "uploads", ["state", "created_by"])
