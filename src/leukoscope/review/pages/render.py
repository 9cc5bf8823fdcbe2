"""Templates to answers: the environment, the words and numbers of pages, and problems as pages."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError

import leukoscope
from leukoscope.errors import LeukoscopeError
from leukoscope.review import access
from leukoscope.review.api.errors import headers_of, status_of
from leukoscope.review.cases import EXTRA_LABELS
from leukoscope.review.problems import Unauthenticated
from leukoscope.review.schema import User
from leukoscope.review.vocabulary import spelled

_DIGITS, _LETTERS = "1234567890", "qwertasdfgiopjlvbm"
_EXTRA_KEYS = {"artefact": "x", "unclassifiable": "u"}
"""Other letters are taken: z undo, y redo, h heat map, c comment, k confirm, n next."""


def keys_of(classes: Sequence[str]) -> dict[str, str]:
    """The key of each class, in the model's order: digits, then letters; "" when they run out."""
    keys = [*_DIGITS, *_LETTERS]
    given = {name: keys[i] if i < len(keys) else "" for i, name in enumerate(classes)}
    return given | {name: _EXTRA_KEYS[name] for name in EXTRA_LABELS if name not in given}


def page(
    request: Request,
    template: str,
    user: User | None,
    *,
    problem: LeukoscopeError | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> Response:
    """A template as an answer. `problem` is shown above the form that it belongs to, and says the
    status."""
    status = status_of(problem) if problem else status
    state = request.app.state
    html = (
        _environment()
        .get_template(template)
        .render(
            user=user,
            path=request.url.path,
            csrf=access.csrf_token(request) if user else "",
            synthetic=state.reader.contract.origin.synthetic,
            problem=problem,
            **context,
        )
    )
    return HTMLResponse(html, status, {**(headers or {}), **headers_of(problem)})


def error_page(
    request: Request, status: int, message: str, fix: str, headers: Mapping[str, str] | None = None
) -> Response:
    """What went wrong as a page; whoever isn't logged in is asked to.

    htmx gets the API's shape instead, and shows it beside what is on the screen.
    """
    partial = "hx-request" in request.headers
    if status == 401:
        back = f"?next={quote(request.url.path)}" if request.method == "GET" else ""
        target = f"/login{back}"
        return (
            Response(status_code=204, headers={"HX-Redirect": target})
            if partial
            else RedirectResponse(target, 303)
        )
    if partial:
        return JSONResponse(
            {"error": {"code": "refused", "message": message, "fix": fix, "field": ""}},
            status, headers,
        )  # fmt: skip
    try:
        user = access.visitor(request) if status < 500 else None
    except (Unauthenticated, SQLAlchemyError):  # no second problem in the page about the first
        user = None
    return page(
        request, "error.html", user, status=status, headers=headers, message=message, fix=fix,
        code=status,
    )  # fmt: skip


def seen(target: str) -> Response:
    """On to another page, after a form was done."""
    return RedirectResponse(target, 303)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("leukoscope.review", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "named": spelled,
        "moment": moment,
    }
    environment.globals["version"] = leukoscope.__version__
    return environment


def percent(share: float | None, digits: int = 1) -> str:
    """0.1234 as 12.3 %; a dash where it is undefined."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def interval(share: dict[str, Any]) -> str:
    """The 95 % interval of a share in percent, "" where it has none."""
    if share["low"] is None:
        return ""
    return f"{100 * share['low']:.0f}–{100 * share['high']:.0f}"


def moment(at: datetime.datetime | str) -> Markup:
    """A time in UTC, which the browser then shows in the reader's zone."""
    when = datetime.datetime.fromisoformat(at) if isinstance(at, str) else at
    stamp = when.isoformat(timespec="seconds")
    words = when.strftime("%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}">{}</time>').format(stamp, words)
