"""How many micrometres a pixel of a case's images has; where a model's features put a cell."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add both; what was there before has neither."""
    op.add_column("cases", sa.Column("pixel_size", sa.Double(), nullable=True))
    op.add_column("readings", sa.Column("place", sa.LargeBinary(), nullable=True))
