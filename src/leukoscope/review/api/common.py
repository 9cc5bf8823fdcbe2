"""What all routes use: who asks, where data lie, and the answers of one kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Form, Header, Query
from fastapi.responses import FileResponse, Response

from leukoscope.review.access import given_database, needs
from leukoscope.review.database import Database
from leukoscope.review.schema import User

PREFIX = "/api/v1"

Db = Annotated[Database, Depends(given_database)]
Viewer = Annotated[User, Depends(needs("viewer"))]
Reviewer = Annotated[User, Depends(needs("reviewer"))]
Administrator = Annotated[User, Depends(needs("administrator"))]
InBrowser = Annotated[User, Depends(needs("viewer", "session"))]
Text = Annotated[str, Form()]

Key = Annotated[
    str,
    Header(
        alias="Idempotency-Key", max_length=128,
        description="A random text for each new thing. Sent again with the same one, since the "
        "answer was lost, a request makes nothing twice.",
    ),
]  # fmt: skip
# Of a request that is sent again since its answer was lost: what had been seen before it.
Seen = Annotated[
    int | None,
    Query(
        ge=0, le=2**31 - 1,
        description="The case's revision that was seen. Where one's own act of this kind came "
        "after it, that is the answer, so that a request can be sent again.",
    ),
]  # fmt: skip

# An image of a given cell never changes; whose browser it is stays private.
CACHED = {"Cache-Control": "private, max-age=86400, immutable"}


WHOLE = 2**20  # bytes


def picture(path: Path, media_type: str) -> Response:
    """An image that a browser may keep.

    Small ones are read here: FileResponse has other threads open, read and close each.
    """
    if path.stat().st_size > WHOLE:
        return FileResponse(path, media_type=media_type, headers=CACHED)
    return Response(path.read_bytes(), media_type=media_type, headers=CACHED)


def documented_file(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """A route's OpenAPI description where it answers with a file."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {200: {"content": content, "description": "The file"}}
