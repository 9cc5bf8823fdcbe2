"""The versions of the tables, for Alembic; `Database.upgrade` runs them."""
