"""The pages: HTML over the same functions as the API, nothing decided here."""

from __future__ import annotations

from fastapi import APIRouter

from leukoscope.review.pages import entry, people, records, work
from leukoscope.review.pages.render import error_page

router = APIRouter(include_in_schema=False)
for part in (entry, work, people, records):
    router.include_router(part.router)

__all__ = ["error_page", "router"]
