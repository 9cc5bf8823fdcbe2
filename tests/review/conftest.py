"""Databases for the tests of the review application: each test its own, migrated once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from bundle import small_bundle  # noqa: F401  (fixture)
from postgres import Postgres, postgres_server, postgres_url  # noqa: F401  (fixtures)
from serving import served  # noqa: F401  (fixture)
from store import Lab, furnished

from leukoscope.review import accounts
from leukoscope.review.database import Database

KINDS = ["sqlite", "postgresql"]


@pytest.fixture(scope="session", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    """Argon2 with little memory: tests hash hundreds of passwords."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_hasher", PasswordHasher(time_cost=1, memory_cost=64))
        accounts._no_password.cache_clear()
        yield


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("database") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgres_server: Postgres) -> str:  # noqa: F811
    """The name of a migrated PostgreSQL database to copy."""
    name = postgres_server.fresh()
    _migrate(postgres_server.url(name))
    return name


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a migrated database of the test's own, once on each kind."""
    with _copy(request, request.getfixturevalue(f"migrated_{request.param}"), tmp_path) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The open database."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def furnished_sqlite(migrated_sqlite: Path) -> tuple[Path, Lab]:
    """A SQLite file with people and a case, to copy."""
    path = migrated_sqlite.with_name("furnished.db")
    shutil.copyfile(migrated_sqlite, path)
    return path, _furnish(f"sqlite:///{path}")


@pytest.fixture(scope="session")
def furnished_postgresql(
    postgres_server: Postgres,  # noqa: F811
    migrated_postgresql: str,
) -> tuple[str, Lab]:
    """The name of a PostgreSQL database with people and a case, to copy."""
    name = postgres_server.fresh(migrated_postgresql)
    return name, _furnish(postgres_server.url(name))


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A database of the test's own with people and a case of twelve cells that a model has read."""
    template, made = request.getfixturevalue(f"furnished_{request.param}")
    with _copy(request, template, tmp_path) as url:
        opened = Database(url)
        yield dataclasses.replace(made, database=opened)
        opened.close()


@contextmanager
def _copy(request: pytest.FixtureRequest, template: Path | str, folder: Path) -> Iterator[str]:
    if isinstance(template, Path):
        shutil.copyfile(template, folder / "review.db")
        yield f"sqlite:///{folder / 'review.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres_server")
    name = server.fresh(template)
    yield server.url(name)
    server.drop(name)


def _migrate(url: str) -> None:
    opened = Database(url)
    opened.upgrade()
    opened.close()


def _furnish(url: str) -> Lab:
    opened = Database(url)
    made = furnished(opened)
    opened.close()  # a template must have no connection; SQLite then holds all in one file
    return made
