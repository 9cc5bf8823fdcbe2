"""What the server writes to stderr: never a name, a pseudonym, a file's name, a comment or a query.

Exceptions are written as the places they came through, without their words: a database quotes the
row that it refuses, a decoder the name of the file. Of other libraries' messages only the place is
written, for the same reason.
"""

from __future__ import annotations

import json
import logging
import traceback
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

from sqlalchemy.exc import DBAPIError

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""The id of the request that is answered here, also in its thread; "" elsewhere."""
requests = logging.getLogger("leukoscope.review.requests")
_OWN = ("leukoscope", "uvicorn")
_Raised = tuple[type[BaseException], BaseException, TracebackType | None]


def set_up(shape: Literal["text", "json"]) -> None:
    """Write to stderr: warnings and errors as text, or JSON lines of them and of every request."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines() if shape == "json" else _Words())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    requests.setLevel(logging.INFO if shape == "json" else logging.WARNING)


def words_of(problem: BaseException) -> str:
    """An exception in words that quote nothing: its kind, and the database's code for it."""
    kind = type(problem).__name__
    orig = problem.orig if isinstance(problem, DBAPIError) else None
    if orig is None:
        return kind
    first = orig.args[0] if orig.args else None  # pg8000's: SQLSTATE under C
    code = getattr(orig, "sqlite_errorname", "") or (
        first.get("C") if isinstance(first, dict) else ""
    )
    return f"{kind}: {code or type(orig).__name__}"


class _Words(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s%(request)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several where something was raised."""
        record.request = f" (request {REQUEST.get()})" if REQUEST.get() else ""
        # A copy: other handlers' words of an exception are kept on the record.
        own = logging.makeLogRecord(record.__dict__ | {"exc_text": None, "args": ()})
        own.msg = _said(record)
        return super().format(own)

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """The places, without words."""
        return "".join(_places(ei[1])) if isinstance(ei, tuple) and ei[1] else ""


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line: dict[str, object] = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "message": _said(record),
            "request": REQUEST.get(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["raised"] = _places(record.exc_info[1])
        return json.dumps(line)


def _said(record: logging.LogRecord) -> str:
    if record.name.split(".")[0] in _OWN:
        return record.getMessage().strip()
    return f"{record.name}, line {record.lineno} of {record.filename}"


def _places(problem: BaseException) -> list[str]:
    before = problem.__cause__ or (None if problem.__suppress_context__ else problem.__context__)
    own = [*traceback.format_tb(problem.__traceback__), words_of(problem) + "\n"]
    return [*_places(before), *own] if before else own
