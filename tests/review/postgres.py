"""A real PostgreSQL for tests: a server of its own in a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

ACCOUNT = "postgres"  # whom the server runs as where the tests run as root, which it refuses
READY_WITHIN = 30.0  # seconds
# Nothing outlives the tests, so nothing need survive a power cut.
CARELESS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=60")
CAREFUL = ("max_connections=60",)  # where the server itself is killed


@dataclass
class Postgres:
    """A running server on 127.0.0.1 with one superuser, who has a password."""

    port: int
    password: str
    programs: Path
    folder: Path
    settings: Sequence[str]
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql+pg8000://{ACCOUNT}:{self.password}@127.0.0.1:{self.port}/{database}"

    def fresh(self, template: str = "template1") -> str:
        """The name of a new database: empty, or a copy of `template`, which nobody may be using."""
        name = f"test_{secrets.token_hex(6)}"
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop(self, name: str) -> None:
        """Remove a database, connections that are still open with it."""
        self.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def run(self, statement: str, database: str = "postgres") -> Any:
        """The rows of one SQL statement."""
        with contextlib.closing(
            pg8000.native.Connection(
                ACCOUNT, "127.0.0.1", database, self.port, self.password, timeout=10
            )
        ) as connection:
            return connection.run(statement)

    def start(self) -> None:
        """Start it and wait until it answers."""
        given = [part for setting in self.settings for part in ("-c", setting)]
        command = [
            str(self.programs / "postgres"), "-D", str(self.folder / "data"), "-h", "127.0.0.1",
            "-p", str(self.port), "-k", str(self.folder), *given,
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, **_as_account()
            )
        _wait(self, self.process, self.folder / "log")

    def kill(self) -> None:
        """kill -9 of the server and all its processes."""
        assert self.process is not None
        for pid in (self.process.pid, *_children(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for the session; skips loudly where PostgreSQL isn't installed."""
    with running(installed()) as server:
        yield server


def installed() -> Path:
    """Where PostgreSQL is; skips loudly where it isn't, or can't run."""
    programs = _programs()
    if programs is None:
        pytest.skip("POSTGRESQL ABSENT: initdb not found (Debian: apt-get install postgresql)")
    if os.geteuid() == 0 and not _account_exists():
        pytest.skip(f"POSTGRESQL CAN'T RUN: tests run as root and there is no user {ACCOUNT}")
    return programs


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    name = postgres_server.fresh()
    yield postgres_server.url(name)
    postgres_server.drop(name)


@contextlib.contextmanager
def running(programs: Path, settings: Sequence[str] = CARELESS) -> Iterator[Postgres]:
    """Make a cluster in a temporary folder, start its server, stop it and remove the folder."""
    folder = Path(tempfile.mkdtemp(prefix="leukoscope-pg-"))
    server = None
    try:
        password = secrets.token_hex(16)
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            shutil.chown(folder, ACCOUNT)
            shutil.chown(folder / "password", ACCOUNT)
        _initialise(programs, folder)
        server = Postgres(_free_port(), password, programs, folder, settings)
        server.start()
        yield server
    finally:
        if server is not None and server.process is not None:
            server.process.send_signal(signal.SIGINT)  # its fast shutdown: open sessions are ended
            server.process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them off the path, one folder a version."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    on_path = shutil.which("initdb")
    places = [*reversed(debian), *([Path(on_path).resolve().parent] if on_path else [])]
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


def _account_exists() -> bool:
    return any(entry.pw_name == ACCOUNT for entry in pwd.getpwall())


def _as_account() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(ACCOUNT)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _initialise(programs: Path, folder: Path) -> None:
    command = [
        str(programs / "initdb"), "--no-sync", "--no-instructions", "--auth=scram-sha-256",
        f"--username={ACCOUNT}", f"--pwfile={folder / 'password'}", "--encoding=UTF8",
        "--locale=C", f"--pgdata={folder / 'data'}",
    ]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True, cwd=folder, **_as_account())
    assert made.returncode == 0, made.stderr


def _children(pid: int) -> list[int]:
    """The processes that this one started, on Linux."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def _wait(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers; a failure shows its log."""
    end = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < end:
        try:
            server.run("SELECT 1")
        except (pg8000.native.InterfaceError, pg8000.native.DatabaseError):
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
