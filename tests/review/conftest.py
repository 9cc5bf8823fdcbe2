"""Databases for the tests of the review application: each test its own, migrated once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Postgres, postgres_server, postgres_url  # noqa: F401  (fixtures)
from store import Lab, furnished

from leukoscope.review.database import Database


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("database") / "template.db"
    migrated = Database(f"sqlite:///{path}")
    migrated.upgrade()
    migrated.close()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Postgres) -> str:  # noqa: F811
    """The name of a migrated PostgreSQL database to copy."""
    name = postgres_server.fresh()
    migrated = Database(postgres_server.url(name))
    migrated.upgrade()
    migrated.close()
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a migrated database of the test's own, once on each kind."""
    if request.param == "sqlite":
        path = tmp_path / "review.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    template = request.getfixturevalue("postgres_template")
    server: Postgres = request.getfixturevalue("postgres_server")
    name = server.fresh(template)
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The open database."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def lab(database: Database) -> Lab:
    """A database with people and a case of twelve cells that a model has read."""
    return furnished(database)


@pytest.fixture(autouse=True)
def _cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 with little memory: tests hash hundreds of passwords."""
    from argon2 import PasswordHasher

    from leukoscope.review import accounts

    monkeypatch.setattr(accounts, "_hasher", PasswordHasher(time_cost=1, memory_cost=64))
    accounts._no_password.cache_clear()
