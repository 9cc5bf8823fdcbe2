"""Run by Alembic with the connection that `Database.upgrade` opened."""

from __future__ import annotations

from alembic import context

from leukoscope.review.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
)
context.run_migrations()
