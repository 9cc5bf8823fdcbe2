"""The one shape of an error, and which status each kind of it has."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from leukoscope.errors import InputError, LeukoscopeError
from leukoscope.review.problems import Conflict, Forbidden, NotFound, TooMany, Unauthenticated

STATUS: tuple[tuple[type[LeukoscopeError], int], ...] = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (TooMany, 429),
    (InputError, 422),
)
_WORDS = {
    400: ("The request can't be read", "Send it as its documentation says."),
    404: ("There is no such page", "Look into /api/v1/openapi.json, or start at the first page."),
    405: ("This address doesn't know that method", "Look into /api/v1/openapi.json."),
}


class Error(BaseModel):
    """What went wrong: a kind, one sentence, what to do, and the field concerned."""

    code: str
    message: str
    fix: str
    field: str


class Problem(BaseModel):
    """The shape of every error."""

    error: Error


_WAIT = {
    "Retry-After": {
        "description": "Seconds after which trying again makes sense; nothing was done yet.",
        "schema": {"type": "integer"},
    }
}
_REFERENCE = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses for a route's OpenAPI description, in the one shape of an error.

    By reference: a model for each status of each route would take a third of the server's start.
    One route must give the model itself (`answered(Problem, 503)`).
    """
    return {
        status: {"description": HTTPStatus(status).phrase, "content": _REFERENCE}
        | ({"headers": _WAIT} if status == HTTPStatus.TOO_MANY_REQUESTS else {})
        for status in statuses
    }


def answered(model: type[BaseModel], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """A route's OpenAPI description where it answers with this model without checking it."""
    return {status: {"model": model}}


def status_of(problem: LeukoscopeError) -> int:
    """The HTTP status of an error; 500 for what is nobody's input."""
    return next((status for kind, status in STATUS if isinstance(problem, kind)), 500)


def headers_of(problem: LeukoscopeError | None) -> dict[str, str]:
    """The headers that belong to an error's answer."""
    if isinstance(problem, TooMany):
        return {"Retry-After": str(problem.wait)}
    return {"WWW-Authenticate": "Bearer"} if isinstance(problem, Unauthenticated) else {}


def of_status(status: int, detail: str) -> LeukoscopeError:
    """The error of a bare HTTP status: its words, or else `detail`."""
    message, fix = _WORDS.get(status, (detail, ""))
    kind = {404: NotFound}.get(status, InputError)
    return kind(message, fix=fix)


def of_validation(errors: Any) -> InputError:
    """The error of a request that doesn't fit its model: the first thing that is wrong."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in {"body", "query", "path", "header"}]
    return InputError(
        f"{' '.join(place) or 'The request'}: {first['msg'][0].lower()}{first['msg'][1:]}",
        fix="Look into /api/v1/openapi.json.",
        field=".".join(place),
    )
