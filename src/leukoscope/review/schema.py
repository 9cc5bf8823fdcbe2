"""The tables of the review application. Times are UTC; hashes are SHA-256 in hexadecimal.

What a reviewer did is never overwritten: a cell's present label stands in `cells`, every change of
it in `changes`, every signed version in `signatures`, and every action of anybody in `audit`.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Role = Literal["viewer", "reviewer", "administrator"]
ROLES: tuple[Role, ...] = ("viewer", "reviewer", "administrator")  # each may do what those before


def now() -> datetime.datetime:
    """This moment in UTC."""
    return datetime.datetime.now(datetime.UTC)


class Moment(TypeDecorator[datetime.datetime]):
    """A time that comes back in UTC also from SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(
        self,
        value: datetime.datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime.datetime | None:
        """The time with its zone."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=datetime.UTC)


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {
        datetime.datetime: Moment,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class User(Base):
    """An account. `failures` counts wrong passwords since the last right one."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    password: Mapped[str] = mapped_column(String(256))  # argon2id
    role: Mapped[str] = mapped_column(String(16))
    active: Mapped[bool] = mapped_column(default=True)
    failures: Mapped[int] = mapped_column(default=0)
    locked_until: Mapped[datetime.datetime | None]
    created: Mapped[datetime.datetime] = mapped_column(default=now)


class Invitation(Base):
    """A one-time link that makes an account, or gives a new password to the account `user_id`.

    The first one is printed at the first start.
    """

    __tablename__ = "invitations"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    made_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    expires: Mapped[datetime.datetime]
    used: Mapped[datetime.datetime | None]


class Login(Base):
    """A browser session; the cookie holds the token, this table its hash."""

    __tablename__ = "logins"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    seen: Mapped[datetime.datetime] = mapped_column(default=now)
    expires: Mapped[datetime.datetime]


class ApiToken(Base):
    """A token for programs. `scopes`: read, write, admin; never more than the user's role."""

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(String(64))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    expires: Mapped[datetime.datetime | None]
    revoked: Mapped[datetime.datetime | None]


class Model(Base):
    """A bundle that was ever served: its contract as it was, by the hash of graph and contract."""

    __tablename__ = "models"
    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))  # of the graph
    contract_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(Text)
    contract: Mapped[dict[str, Any]]
    first_served: Mapped[datetime.datetime] = mapped_column(default=now)


class Case(Base):
    """One slide of one patient. `revision` counts changes; `version` counts signatures begun:
    1 until it is signed and amended. `pixel_size`: micrometres a pixel of its images, if known."""

    __tablename__ = "cases"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)  # random, not countable
    pseudonym: Mapped[str] = mapped_column(String(128), index=True)
    slide: Mapped[str] = mapped_column(String(128), default="")
    stain: Mapped[str] = mapped_column(String(64), default="")
    notes: Mapped[str] = mapped_column(Text, default="")
    pixel_size: Mapped[float | None]
    state: Mapped[str] = mapped_column(String(16), default="open")  # open, signed
    version: Mapped[int] = mapped_column(default=1)
    revision: Mapped[int] = mapped_column(default=0)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))  # whose readings are shown
    created_by: Mapped[int] = mapped_column(ForeignKey("users.id"))
    created: Mapped[datetime.datetime] = mapped_column(default=now, index=True)


class Upload(Base):
    """A file on its way in or arrived. `state`: receiving, received, done, failed, duplicate.

    `kind`: cell, field or archive, auto until that is decided. Bytes lie in the blob store under
    `sha256` once received; those of an archive's members too, with the archive as `parent_id`.
    """

    __tablename__ = "uploads"
    __table_args__ = (Index("uploads_waiting", "state", "created_by"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("uploads.id"))
    name: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(16))
    size: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    state: Mapped[str] = mapped_column(String(16), default="receiving")
    width: Mapped[int | None]
    height: Mapped[int | None]
    error: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[int] = mapped_column(ForeignKey("users.id"))
    created: Mapped[datetime.datetime] = mapped_column(default=now)


class Cell(Base):
    """One cell of a case. The box is in pixels of its field, null for an image of a single cell.

    `label`: the reviewer's class where it differs from or confirms the model's, null while nobody
    has said anything. `revision`: the case's revision at the last change of this cell.
    """

    __tablename__ = "cells"
    __table_args__ = (
        Index("cells_by_case", "case_id", "id"),
        UniqueConstraint("upload_id", "x", "y", name="one_cell_a_place"),
        # Nulls count as different in a unique constraint, so images of single cells need their own.
        Index(
            "one_cell_an_image",
            "upload_id",
            unique=True,
            sqlite_where=text("x IS NULL"),
            postgresql_where=text("x IS NULL"),
        ),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"))
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    sha256: Mapped[str] = mapped_column(String(64))  # of its image in the blob store
    width: Mapped[int]
    height: Mapped[int]
    x: Mapped[int | None]
    y: Mapped[int | None]
    box_width: Mapped[int | None]
    box_height: Mapped[int | None]
    quality: Mapped[list[Any]]  # what is wrong with the picture, empty where nothing is
    label: Mapped[str | None] = mapped_column(String(128))
    comment: Mapped[str] = mapped_column(Text, default="")
    revision: Mapped[int] = mapped_column(default=0)


class Reading(Base):
    """What one model said of one cell; never changed, never deleted.

    `place`: little-endian 16-bit floats, `novelty.coordinates` of its features, where it has any.
    """

    __tablename__ = "readings"
    __table_args__ = (UniqueConstraint("cell_id", "model_id", name="one_reading_a_model"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    cell_id: Mapped[int] = mapped_column(ForeignKey("cells.id"), index=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), index=True)
    predicted: Mapped[str] = mapped_column(String(128))
    confidence: Mapped[float] = mapped_column(Float)
    probs: Mapped[dict[str, Any]]
    prediction_set: Mapped[list[Any]]
    novelty: Mapped[float | None]
    flag: Mapped[str] = mapped_column(String(16), default="")  # "", doubtful, novel
    place: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    created: Mapped[datetime.datetime] = mapped_column(default=now, index=True)


class Change(Base):
    """One act of one person on a case: what it was before and what after.

    `before` and `after` map the ids of the cells concerned, as text, to what was changed:
    {label} or {comment}; of an edit they are the case's own texts. `undone` is null while it
    stands. `kind`: label, comment, undo, redo, sign, amend, read, edit.
    """

    __tablename__ = "changes"
    __table_args__ = (
        UniqueConstraint("case_id", "revision", name="one_change_a_revision"),
        # The last of a kind, and a person's last, are asked for at every act and glance.
        Index("changes_by_kind", "case_id", "kind", "revision"),
        Index("changes_by_person", "case_id", "user_id", "kind", "revision"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), index=True)
    revision: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    before: Mapped[dict[str, Any]]
    after: Mapped[dict[str, Any]]
    undone: Mapped[datetime.datetime | None]
    at: Mapped[datetime.datetime] = mapped_column(default=now)


class Signature(Base):
    """A signed version of a case: everything it said, and the hash of that."""

    __tablename__ = "signatures"
    __table_args__ = (UniqueConstraint("case_id", "version", name="one_signature_a_version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), index=True)
    version: Mapped[int]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    reason: Mapped[str] = mapped_column(Text, default="")  # why it was amended
    content: Mapped[dict[str, Any]]
    sha256: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime.datetime] = mapped_column(default=now)


class Entry(Base):
    """One line of the audit log; `sha256` is over the line and the hash of the line before."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)  # 1, 2, 3, …
    at: Mapped[str] = mapped_column(String(40))  # ISO 8601, exactly as hashed
    user: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(48), index=True)
    case_id: Mapped[str | None] = mapped_column(String(32), index=True)
    model_sha256: Mapped[str] = mapped_column(String(64), default="")
    contract_sha256: Mapped[str] = mapped_column(String(64), default="")
    details: Mapped[str] = mapped_column(Text)  # JSON text, exactly as hashed
    previous: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))


class Head(Base):
    """The last line of the audit log, so that lines missing at its end are found too."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # always 1
    entries: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))


class Job(Base):
    """Long work with a state that survives a restart: waiting, running, done, failed."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))  # intake, reread
    case_id: Mapped[str | None] = mapped_column(ForeignKey("cases.id"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    arguments: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default="waiting", index=True)
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    error: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    changed: Mapped[datetime.datetime] = mapped_column(default=now, onupdate=now)
