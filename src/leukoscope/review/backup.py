"""Back-up and restore: one zip of all tables and images, the same for SQLite and PostgreSQL.

`tables/NAME.ndjson` has a line a row, `blobs/SHA256` an image each, and `manifest.json`, written
last, says what must be there. The tables are read in one transaction, which sees one moment also
while the server works; images are never changed once stored, so they are copied afterwards.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    Connection,
    DateTime,
    LargeBinary,
    MetaData,
    Select,
    Table,
    func,
    select,
    text,
)
from sqlalchemy.orm import Session

import leukoscope
from leukoscope.errors import InputError, some
from leukoscope.files import atomic, sha256_of
from leukoscope.progress import track
from leukoscope.review import audit, cases, signing
from leukoscope.review.blobs import Blobs
from leukoscope.review.database import NEWEST, Database, migrate, version
from leukoscope.review.schema import Base, Case, Signature, now
from leukoscope.tables import Table as Strict

FORMAT = 1
MANIFEST = "manifest.json"
LEFT_OUT = ("alembic_version", "logins")  # after a restore everybody logs in anew
NAMING = ("uploads", "cells")  # the tables whose `sha256` is an image's
CHUNK = 1_000  # rows


class Contents(Strict):
    """A table: rows, and the SHA-256 of its lines."""

    rows: int
    sha256: str


class Manifest(Strict):
    """What a back-up holds. revision: of the tables; missing: images that weren't there whole."""

    format: int
    leukoscope: str
    created: str
    database: str
    revision: str
    tables: dict[str, Contents]
    images: int
    missing: list[str]
    audit: audit.Verdict

    @property
    def damage(self) -> list[str]:
        """What was wrong with the data themselves, a sentence each."""
        found = []
        if self.missing:
            found.append(
                f"{len(self.missing)} images are missing or damaged in the folder: "
                f"{some([name[:12] for name in self.missing])}"
            )
        if not self.audit.intact:
            found.append(f"The audit log is broken at line {self.audit.first_broken}")
        return found


# --- back-up --------------------------------------------------------------------------------------


def backup(folder: Path, url: str, out: Path) -> Manifest:
    """Write the back-up of a folder and its database, also while a server works with them.

    What is damaged stands in the manifest and doesn't keep the rest from being saved. InputError
    where there is nothing to back up, or `out` exists.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists already", fix="Choose another name.", field="output")
    if not (folder / "blobs").is_dir():
        raise InputError(
            f"{folder} is no folder of the review application",
            fix="Give the one of `leukoscope serve` with --folder.",
            field="folder",
        )
    blobs, database = Blobs(folder), Database(url)
    if database.file is not None and not database.file.is_file():
        raise InputError(
            f"There is no database {database.file}",
            fix="Give the one of `leukoscope serve` with --database.",
            field="database",
        )
    try:
        with (
            atomic(out, mode=0o600) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            return _write(archive, database, blobs)
    finally:
        database.close()


def _write(archive: zipfile.ZipFile, database: Database, blobs: Blobs) -> Manifest:
    with database.asked(), database.read() as session:
        connection = session.connection()
        revision = version(connection)
        if revision is None:
            raise InputError("The database is empty", fix="Start `leukoscope serve` first.")
        tables = {
            table.name: _write_table(archive, connection, table) for table in _tables(connection)
        }
        images = {sha256 for name in NAMING for sha256 in _named(connection, name)}
        verdict = audit.verify(session)
    missing = [
        sha256
        for sha256 in track(sorted(images), "Copying images", len(images))
        if not _write_image(archive, blobs, sha256)
    ]
    manifest = Manifest(
        format=FORMAT, leukoscope=leukoscope.__version__, created=now().isoformat(),
        database=database.url.get_backend_name(), revision=revision, tables=tables,
        images=len(images) - len(missing), missing=missing, audit=verdict,
    )  # fmt: skip
    archive.writestr(MANIFEST, manifest.model_dump_json(indent=2))
    return manifest


def _tables(connection: Connection) -> list[Table]:
    """The tables as they are in the database, those first that others refer to."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name not in LEFT_OUT]


def _named(connection: Connection, name: str) -> set[str]:
    """The images that a table names; those of cases that were erased are gone."""
    table = Base.metadata.tables[name]
    kept = select(Case.id).where(Case.state != cases.ERASED)
    query = select(table.c.sha256).where(table.c.sha256 != "", table.c.case_id.in_(kept))
    return set(connection.scalars(query.distinct()))


def _write_table(archive: zipfile.ZipFile, connection: Connection, table: Table) -> Contents:
    digest, count = hashlib.sha256(), 0
    rows = connection.execute(_ordered(table), execution_options={"yield_per": CHUNK})
    with archive.open(_member(table.name), "w", force_zip64=True) as member:
        for row in rows.mappings():
            line = json.dumps(dict(row), default=_text, ensure_ascii=False).encode() + b"\n"
            member.write(line)
            digest.update(line)
            count += 1
    return Contents(rows=count, sha256=digest.hexdigest())


def _ordered(table: Table) -> Select[Any]:
    """All rows, those first to which others of the same table refer, otherwise by key."""
    own = [key.parent for key in table.foreign_keys if key.column.table is table]
    return select(table).order_by(*(column.is_not(None) for column in own), *table.primary_key)


def _member(name: str) -> str:
    return f"tables/{name}.ndjson"


def _text(value: Any) -> str:
    """Bytes in base 64; a time in UTC, as SQLite gives it without a zone."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if not isinstance(value, datetime.datetime):
        raise TypeError(f"a {type(value).__name__} can't be backed up")
    known = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    return known.astimezone(datetime.UTC).isoformat()


def _write_image(archive: zipfile.ZipFile, blobs: Blobs, sha256: str) -> bool:
    path = blobs.place(sha256)
    if not path.is_file() or sha256_of(path) != sha256:
        return False
    archive.write(path, f"blobs/{sha256}", zipfile.ZIP_STORED)  # images hardly shrink
    return True


# --- restore --------------------------------------------------------------------------------------


def restore(source: Path, folder: Path, url: str) -> Manifest:
    """Make a new folder and a new database of a back-up, of either kind, at the newest version.

    Every hash, the count of rows, the audit log and the signatures are checked; where something
    doesn't fit nothing is left behind. InputError then, and where folder or database exist.
    """
    database = Database(url)
    try:
        with _opened(source) as archive:
            manifest = _manifest(source, archive)
            _refuse_used(folder, database)
            for name, contents in manifest.tables.items():
                _check_table(source, archive, name, contents)
            with _cleaned(folder, database):
                known = _read_images(source, archive, Blobs(folder), manifest)
                with database.asked(), database.begin() as session:
                    _read_tables(source, session, archive, manifest)
                    _verify(source, session, manifest, known)
            return manifest
    finally:
        database.close()


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"There is no file {source}", fix="Check the path.") from None
    except (zipfile.BadZipFile, EOFError, zlib.error) as problem:
        raise _damaged(source, str(problem)) from None


def _damaged(source: Path, why: str) -> InputError:
    return InputError(
        f"{source} isn't a whole back-up: {why}", fix="Take another one; nothing was restored."
    )


def _manifest(source: Path, archive: zipfile.ZipFile) -> Manifest:
    try:
        found = Manifest.model_validate_json(archive.read(MANIFEST))
    except (KeyError, ValidationError):
        raise _damaged(source, f"it has no {MANIFEST} of this version") from None
    if found.format > FORMAT or found.revision > NEWEST:
        raise InputError(
            f"{source} was made by Leukoscope {found.leukoscope}, this is {leukoscope.__version__}",
            fix="Install that version or a newer one.",
        )
    return found


def _refuse_used(folder: Path, database: Database) -> None:
    with database.asked():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} isn't empty, and nothing is overwritten",
                fix="Give a new folder with --folder.",
                field="folder",
            )
        if database.exists():
            raise InputError(
                f"The database {database.name} holds tables already, and nothing is overwritten",
                fix="Give a new, empty one with --database.",
                field="database",
            )


@contextmanager
def _cleaned(folder: Path, database: Database) -> Iterator[None]:
    """Remove what was made where something goes wrong: the folder was empty before."""
    made = not folder.exists()
    try:
        yield
    except BaseException:
        database.close()
        for name in ("blobs", "derived", "incoming"):
            shutil.rmtree(folder / name, ignore_errors=True)
        if database.file is not None:
            for ending in ("", "-wal", "-shm"):
                Path(f"{database.file}{ending}").unlink(missing_ok=True)
        if made and folder.is_dir():
            folder.rmdir()
        raise


def _read_images(
    source: Path, archive: zipfile.ZipFile, blobs: Blobs, manifest: Manifest
) -> set[str]:
    """Store all images; their hashes."""
    names = [name for name in archive.namelist() if name.startswith("blobs/")]
    if len(names) != manifest.images:
        raise _damaged(source, f"it has {len(names)} images, not {manifest.images}")
    known = set()
    for name in track(names, "Restoring images", len(names)):
        sha256 = name.removeprefix("blobs/")
        with (
            archive.open(name) as member,
            atomic(blobs.place(sha256), durable=False, within=blobs.incoming) as temporary,
        ):
            with temporary.open("wb") as handle:
                shutil.copyfileobj(member, handle)
            if sha256_of(temporary) != sha256:
                raise _damaged(source, f"the image {sha256[:12]} has another hash")
        known.add(sha256)
    if hasattr(os, "sync"):
        os.sync()  # once, not for each of a million files
    return known


def _check_table(source: Path, archive: zipfile.ZipFile, name: str, contents: Contents) -> None:
    digest = hashlib.sha256()
    try:
        with archive.open(_member(name)) as member:
            for line in member:
                digest.update(line)
    except KeyError:
        raise _damaged(source, f"the table {name} is missing") from None
    if digest.hexdigest() != contents.sha256:
        raise _damaged(source, f"the table {name} has another hash")


def _read_tables(
    source: Path, session: Session, archive: zipfile.ZipFile, manifest: Manifest
) -> None:
    """Make the tables as they were, fill them, bring them to the newest version."""
    connection = session.connection()
    migrate(connection, manifest.revision)
    tables = _tables(connection)
    if {table.name for table in tables} != set(manifest.tables):
        raise _damaged(source, "it has other tables than its version")
    for table in tables:
        readers = {
            column.name: read
            for column in table.columns
            for kind, read in READ
            if isinstance(column.type, kind)
        }
        with archive.open(_member(table.name)) as member:
            while rows := [_row(line, readers) for line in islice(member, CHUNK)]:
                connection.execute(table.insert(), rows)
        if connection.dialect.name == "postgresql":
            _count_on(connection, table)
    migrate(connection, "head")


READ = ((DateTime, datetime.datetime.fromisoformat), (LargeBinary, base64.b64decode))
"""What makes a column's values of what `_text` wrote."""


def _row(line: bytes, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    return row | {name: read(row[name]) for name, read in readers.items() if row[name] is not None}


def _count_on(connection: Connection, table: Table) -> None:
    """Have PostgreSQL number new rows after those that are there."""
    for column in table.primary_key:
        owner = {"name": table.name, "key": column.name}
        sequence = connection.scalar(text("SELECT pg_get_serial_sequence(:name, :key)"), owner)
        if sequence is not None:
            last = connection.scalar(select(func.max(column))) or 0
            connection.execute(select(func.setval(sequence, last + 1, False)))


def _verify(source: Path, session: Session, manifest: Manifest, known: set[str]) -> None:
    """Everything is there and says what was said; otherwise InputError."""
    connection = session.connection()
    for table in _tables(connection):
        if table.name not in manifest.tables:  # newer than the back-up
            continue
        wanted = manifest.tables[table.name].rows
        found = connection.scalar(select(func.count()).select_from(table))
        if found != wanted:
            raise _damaged(source, f"the table {table.name} has {found} rows, not {wanted}")
        if table.name in NAMING:
            lacking = sorted(_named(connection, table.name) - known - set(manifest.missing))
            if lacking:
                raise _damaged(source, f"{len(lacking)} images are missing: {lacking[0][:12]}")
    if audit.verify(session) != manifest.audit:
        raise _damaged(source, "the audit log isn't as it was")
    kept = select(Signature).join(Case, Case.id == Signature.case_id)
    kept = kept.where(Case.state != cases.ERASED)
    for each in session.scalars(kept.execution_options(yield_per=100)):
        if signing.hash_of(each.content) != each.sha256:
            raise _damaged(source, f"the signature {each.id} doesn't fit what was signed")
