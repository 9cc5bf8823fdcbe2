"""What the review application refuses, one class a kind of answer; and texts from outside."""

# ruff: noqa: N818  (these are answers; an error shape carries the name as its code)

from __future__ import annotations

import unicodedata

from leukoscope.errors import InputError, LeukoscopeError, UnreadableError


class Conflict(InputError):
    """It can't be done in the present state, or somebody was faster (HTTP 409)."""


class NotFound(InputError):
    """There is no such thing (HTTP 404)."""

    @property
    def code(self) -> str:
        """`not_found`."""
        return "not_found"


class Forbidden(LeukoscopeError):
    """This account may not do this (HTTP 403)."""


class Unauthenticated(LeukoscopeError):
    """Nobody is logged in, or name or password is wrong (HTTP 401).

    `recorded`: the refusal itself was counted and written to the audit log, so the transaction
    that raises it is committed, not rolled back (`Database.begin`).
    """

    def __init__(self, message: str, *, fix: str = "", recorded: bool = False) -> None:
        super().__init__(message, fix=fix)
        self.recorded = recorded


class DecoderFailed(UnreadableError):
    """The process that was looking into a file crashed, hung or took too much."""


class TooMany(LeukoscopeError):
    """More than the server takes on now (HTTP 429). wait: seconds until trying again makes sense.

    Nothing of what was asked has been done.
    """

    def __init__(self, message: str, *, fix: str = "", wait: int = 1) -> None:
        super().__init__(message, fix=fix)
        self.wait = wait

    @property
    def code(self) -> str:
        """`too_many`."""
        return "too_many"


def text(value: str, field: str, *, most: int, least: int = 0, lines: bool = False) -> str:
    """`value` normalised (NFC) and stripped; InputError where it is too long, short or unprintable.

    least, most: characters allowed. lines: line breaks and tabs are allowed.
    """
    cleaned = unicodedata.normalize("NFC", value).strip()
    if not least <= len(cleaned) <= most:
        raise InputError(
            f"The {field} has {len(cleaned)} characters; allowed: {least} to {most}",
            fix=f"Give a {field} of that length.",
            field=field,
        )
    allowed = "\n\r\t" if lines else ""
    # Surrogates can't be stored as UTF-8, and PostgreSQL stores no NUL.
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in allowed for c in cleaned):
        raise InputError(
            f"The {field} holds characters that can't be printed",
            fix="Leave control characters out.",
            field=field,
        )
    return cleaned


def clean(name: str) -> str:
    """A name to show: its path without steps upwards, from the end where it is long; without marks
    that turn the writing round, behind which an ending can hide."""
    name = "".join(c for c in name if unicodedata.category(c) != "Cf")
    parts = [p for p in name.replace("\\", "/").split("/") if p.strip(". ")]
    return text("/".join(parts)[-255:], "name", least=1, most=255)
