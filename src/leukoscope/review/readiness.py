"""Whether the server can do its work, and what keeps it from that."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from leukoscope.review import logs

log = logging.getLogger("leukoscope.review")


def wrong(state: Any) -> list[str]:
    """What is wrong, in words; nothing where all is well. state: of the application."""
    found = []
    try:
        with state.database.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as problem:
        log.error("not ready: %s", logs.words_of(problem))
        found.append("the database doesn't answer")
    probe = state.blobs.incoming / f"probe-{secrets.token_hex(8)}"
    try:
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as problem:
        log.error("not ready: the folder of images can't be written: error %s", problem.errno)
        found.append("the folder of images can't be written")
    if not state.jobs.alive:
        found.append("the worker that reads images has stopped")
    return found
