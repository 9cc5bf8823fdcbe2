"""The database: one writer at a time, every act whole or not at all, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.orm import Session

from leukoscope.errors import InputError, LeukoscopeError

MIGRATIONS = Path(__file__).parent / "migrations"
NEWEST = "0004"  # the last revision in migrations/versions
WRITER_LOCK = 0x6C65756B  # the number of our advisory lock in PostgreSQL: "leuk"
BUSY_MS = 30_000


@final
class Database:
    """The database at `url`: `sqlite:///file` or `postgresql://user:password@host/name`."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        sqlite = self.url.get_backend_name() == "sqlite"
        # More connections than requests have threads; what a statement was given is never logged.
        self.engine: Engine = create_engine(
            self.url, pool_pre_ping=not sqlite, pool_size=10, max_overflow=10, hide_parameters=True
        )
        # Threads of this process wait here, in turn, rather than by asking SQLite again and again.
        self._turn = threading.RLock()
        if sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "connect", _prepare_postgresql)
            event.listen(self.engine, "begin", _begin_postgresql)
        self._writing = self.engine.execution_options(leukoscope_writes=True)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A writing transaction, committed at the end, rolled back where anything is raised.

        Writers wait for each other on both databases: the chain of the audit log needs one order,
        and no two locks can ever be taken in the wrong one. Keep it short: read files and run
        models outside. A refused password is committed all the same (`Unauthenticated.recorded`).
        """
        with (
            self._turn,
            self._reached(),
            Session(self._writing, expire_on_commit=False) as session,
        ):
            try:
                yield session
            except LeukoscopeError as problem:
                if getattr(problem, "recorded", False):
                    session.commit()
                raise
            session.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A reading transaction: all its queries see the same moment; nothing is ever written."""
        with (
            self._reached(),
            Session(self.engine, expire_on_commit=False, autoflush=False) as session,
        ):
            yield session

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn all that says that the database is away into one error, OperationalError.

        pg8000 calls it a programmer's error that PostgreSQL stops, starts or has no room, and some
        of what a broken connection raises never meets SQLAlchemy.
        """
        try:
            yield
        except (ConnectionError, self.engine.dialect.loaded_dbapi.Error) as problem:
            raise OperationalError(None, None, problem) from problem
        except ProgrammingError as problem:
            said = problem.orig.args[0] if problem.orig and problem.orig.args else ""
            code = said.get("C", "") if isinstance(said, dict) else ""
            if not code.startswith(("08", "53", "57P")):
                raise
            raise OperationalError(problem.statement, problem.params, problem) from problem

    def upgrade(self) -> None:
        """Bring the tables to the newest version; InputError where the database can't be used."""
        with self.asked(), self._writing.begin() as connection:
            if version(connection) != NEWEST:
                migrate(connection)

    @property
    def name(self) -> str:
        """The address without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The file of SQLite."""
        sqlite = self.url.get_backend_name() == "sqlite"
        return Path(str(self.url.database)) if sqlite else None

    def exists(self) -> bool:
        """Whether there is anything in it already; asking makes no file."""
        if self.file is not None:
            return self.file.exists()
        return bool(inspect(self.engine).get_table_names())

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Turn what the database refuses into one sentence with the fix (InputError)."""
        try:
            with self._reached():
                yield
        except DBAPIError as problem:
            raise InputError(
                f"Can't use the database {self.name}: {_words(problem)}",
                fix="Check the address, that the server runs and that the folder is writable.",
                field="database",
            ) from problem

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _checked(url: str) -> URL:
    allowed = "allowed: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
    fix = "Give the address of a database with --database."
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+pg8000")
        backend = parsed.drivername
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise InputError(f"Not a database: {url!r}; {allowed}", fix=fix, field="database") from None
    if backend not in ("sqlite", "postgresql+pg8000"):
        raise InputError(
            f"Not a database for this: {backend}; {allowed}", fix=fix, field="database"
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError(f"A database in memory is lost; {allowed}", fix=fix, field="database")
    return parsed


def version(connection: Connection) -> str | None:
    """The revision of the tables, None where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the tables to a revision."""
    # A server starts often and migrates hardly ever: half a second of imports only where needed.
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.attributes["connection"] = connection
    command.upgrade(settings, revision)


def _words(problem: DBAPIError) -> str:
    """The driver's own words; pg8000 gives a dictionary with the message under `M`."""
    first: Any = problem.orig.args[0] if problem.orig and problem.orig.args else problem
    return str(first.get("M", first) if isinstance(first, dict) else first)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, see _begin_sqlite
    for pragma in (
        f"busy_timeout = {BUSY_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    # A server whose machine lost its power can't say so: its lock is to be free after a minute,
    # not after the two hours of TCP.
    connection.autocommit = True
    for name, seconds in (("idle", 30), ("interval", 10), ("count", 3)):
        connection.cursor().execute(f"SET tcp_keepalives_{name} = {seconds}")
    connection.autocommit = False


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("leukoscope_writes")
    # A writer that began as a reader could find the file changed and fail half-way.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("leukoscope_writes"):
        connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})"))
    else:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
