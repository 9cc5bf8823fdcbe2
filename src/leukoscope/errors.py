"""One tree of exceptions, one sentence each, one exit code a kind.

LeukoscopeError            1   something is wrong with Leukoscope itself
├── InputError             2   what was given can't be used: got, allowed, fix
│   ├── UnknownNameError   2   a name that isn't registered, with its nearest match
│   └── UnreadableError    2   one file that can't be read
└── LeakError              3   the same patient or picture on both sides of a split
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LeukoscopeError(Exception):
    """The root of every exception that Leukoscope raises on purpose.

    `message` is one sentence: what was got and what is allowed. `fix` says what to do about it.
    `field` names the parameter, column or file concerned.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "", field: str = "") -> None:
        message = _sentence(message)
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.field = field

    @property
    def code(self) -> str:
        """The error's kind in snake case, stable across versions (`input`, `leak`, …)."""
        return type(self).__name__.removesuffix("Error").lower()

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.fix}".strip() if self.fix else self.message

    def as_dict(self) -> dict[str, dict[str, str]]:
        """The JSON shape of an error, the same in `--json` output and in the API."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "fix": self.fix,
                "field": self.field,
            }
        }


class InputError(LeukoscopeError):
    """Input or usage that can't work: exit code 2."""

    exit_code = 2


class UnknownNameError(InputError):
    """A name that isn't among the allowed ones; carries the nearest match."""

    def __init__(self, kind: str, got: str, allowed: Iterable[str], *, field: str = "") -> None:
        names = sorted(allowed)
        near = nearest(got, names)
        super().__init__(
            f"Unknown {kind} {got!r}; allowed: {some(names, 24) or 'none'}",
            fix=f"Did you mean {near!r}?"
            if near
            else f"Choose one of these {kind}{'es' if kind.endswith('s') else 's'}.",
            field=field or kind,
        )


class UnreadableError(InputError):
    """A file that can't be read as what it should be; never fatal to a whole folder."""


class LeakError(LeukoscopeError):
    """Patients or duplicate images on both sides of a split: exit code 3."""

    exit_code = 3


def nearest(got: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most similar to `got`, or None where none is similar."""
    found = difflib.get_close_matches(got.lower(), [a.lower() for a in allowed], n=1, cutoff=0.5)
    return next((a for a in allowed if found and a.lower() == found[0]), None)


def _sentence(text: str, most: int = 1000) -> str:
    """The text in one line; its beginning and end where what was got is a book."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"


def some(names: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 12 more`: a list short enough for one sentence."""
    head = ", ".join(map(str, names[:most]))
    return head if len(names) <= most else f"{head} and {len(names) - most} more"
