"""Bounds of what is worked on at once: who comes when all is taken is told so, and when to return.

An honest refusal (429 with Retry-After) at once is better than an answer that comes too late.
"""

from __future__ import annotations

import functools
import html
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from leukoscope.review.problems import TooMany

Route = TypeVar("Route", bound=Callable[..., Any])
ALIVE = "/health"
"""Answered however much there is to do."""


class Gate:
    """At most so many inside at once, and so many of one key (final)."""

    def __init__(self, most: int, most_of_one: int, what: str) -> None:
        self.most = most
        self.most_of_one = most_of_one
        self.what = what
        self._lock = threading.Lock()
        self._inside: Counter[object] = Counter()

    @contextmanager
    def inside(self, key: object) -> Iterator[None]:
        """For as long as the work takes; TooMany, at once, where there is no place."""
        with self._lock:
            if self._inside[key] >= self.most_of_one or self._inside.total() >= self.most:
                mine = self._inside[key] >= self.most_of_one
                raise TooMany(
                    f"{'You have' if mine else 'The server has'} "
                    f"{self.most_of_one if mine else self.most} {self.what} under way, "
                    "as many as are allowed at once",
                    fix="Nothing was done; try again in a moment.",
                )
            self._inside[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[key] -= 1
                if not self._inside[key]:
                    del self._inside[key]


THREADS = 6
"""For requests: more would only wait for the interpreter's lock, and make each other wait for it
after every call into the database. Some wait for the database's writer or disk instead."""
# How many of a kind work at once, and how many may wait.
_ASIDE = {
    "pictures": (2, 500),
    "uploads": (1, 500),
    "glances": (2, 500),
    "long": (2, 50),
    "passwords": (2, 16),
}
# Of each event loop its own.
_LIMITERS: dict[str, RunVar[CapacityLimiter]] = {name: RunVar(name) for name in _ASIDE}


Kind = Literal["glances", "pictures", "uploads", "long", "passwords"]


def lane(kind: Kind) -> CapacityLimiter:
    """What lets few of one kind work at once."""
    try:
        return _LIMITERS[kind].get()
    except LookupError:
        limiter = CapacityLimiter(_ASIDE[kind][0])
        _LIMITERS[kind].set(limiter)
        return limiter


def aside(kind: Kind) -> Callable[[Route], Route]:
    """A route whose work is slow waits for others of its kind, not in the way of the rest.

    Corrections would otherwise wait behind the thumbnails of everybody who opens a case, behind
    what pages ask by themselves to keep up (glances), behind files, of which programs send one
    after the other, or behind passwords, each of which takes 64 MiB and every core for a moment.
    TooMany where very many wait.
    """

    def decorated(route: Route) -> Route:
        @functools.wraps(route)
        async def turned(*args: Any, **given: Any) -> Any:
            limiter = lane(kind)
            if limiter.statistics().tasks_waiting >= _ASIDE[kind][1]:
                raise TooMany(
                    "Many people ask for the same at this moment", fix="Try again in a moment.",
                    wait=2,
                )  # fmt: skip
            return await run_sync(functools.partial(route, *args, **given), limiter=limiter)

        return turned  # type: ignore[return-value]  # awaited by FastAPI

    return decorated


class Bounded:
    """Middleware (final): so many requests at once. Uploads, which take long, have their own gate
    (`intake.append`)."""

    def __init__(self, app: ASGIApp, gate: Gate, streams: Iterable[str]) -> None:
        self.app = app
        self.gate = gate
        self.streams = tuple(streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        path = scope.get("path", "")
        streams = scope.get("method") == "PUT" and path.startswith(self.streams)
        if scope["type"] != "http" or path == ALIVE or streams:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Whose it is isn't looked up for this: one session, one token, or nobody.
        whose = headers.get("authorization") or headers.get("cookie") or ""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.gate.inside(whose))
            except TooMany as problem:
                await _refuse(scope["method"], headers, send, problem)
                return
            await self.app(scope, receive, send)


async def _refuse(method: str, headers: Headers, send: Send, problem: TooMany) -> None:
    """The refusal in the API's shape; to a browser that loads a page, as one that tries again."""
    wait = str(problem.wait).encode()
    answer = [(b"retry-after", wait)]
    if "text/html" in headers.get("accept", "") and "hx-request" not in headers:
        said = html.escape(f"{problem.message}. {problem.fix}")
        body = f"<!doctype html><title>Too much at once</title><p>{said}</p>".encode()
        answer.append((b"content-type", b"text/html; charset=utf-8"))
        answer += [(b"refresh", wait)] if method == "GET" else []  # a form isn't sent twice
    else:
        body = json.dumps(problem.as_dict()).encode()
        answer.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": 429, "headers": answer})
    await send({"type": "http.response.body", "body": body})
