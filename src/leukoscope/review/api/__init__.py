"""The JSON API, `/api/v1/…`: the same functions as the pages, one shape of error."""

from __future__ import annotations

from fastapi import APIRouter

from leukoscope.review.api import cases, cells, oversight, people, signing, uploads
from leukoscope.review.api.common import PREFIX
from leukoscope.review.api.errors import documented

router = APIRouter()
for part in (people, cases, uploads, cells, signing, oversight):
    router.include_router(
        part.router,
        prefix=PREFIX,
        responses=documented(400, 401, 403, 413, 422, 429, 503),
    )
router.include_router(oversight.health)

__all__ = ["PREFIX", "router"]
