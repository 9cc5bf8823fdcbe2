"""What keeps other web sites and other people out: headers, origins, cross-site tokens, limits.

Middleware is plain ASGI, since Starlette's own base class reads whole bodies into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from itsdangerous import Signer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leukoscope.errors import InputError, LeukoscopeError
from leukoscope.files import explain_os_errors
from leukoscope.review.problems import Forbidden

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
BODY_BYTES = 1_000_000
"""The largest body of a request that isn't part of an upload."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def secret_of(folder: Path) -> bytes:
    """The server's secret of 32 bytes, made at the first start, readable by its user alone."""
    path = folder / "secret"
    with explain_os_errors(path):
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(secrets.token_bytes(32))
                handle.flush()
                os.fsync(handle.fileno())
        found = path.read_bytes()
    if len(found) != 32:
        raise InputError(f"{path} is damaged", fix="Delete it; everybody logs in anew.")
    return found


def cross_site_token(secret: bytes, session: str) -> str:
    """What a page of this session must send with every change (HMAC of the session's token)."""
    digest = hashlib.sha256(session.encode()).hexdigest()
    return Signer(secret, salt="cross-site").get_signature(digest).decode()


def is_cross_site_token(secret: bytes, session: str, sent: str) -> bool:
    """Whether `sent` is this session's token, in constant time."""
    return secrets.compare_digest(cross_site_token(secret, session).encode(), sent.encode())


def refuse_cross_site(method: str, headers: Headers, origin: str) -> None:
    """Forbidden where a browser says that another site sends this change.

    Browsers send Origin with every unsafe request; programs send none, and have no cookie to abuse.
    """
    if method in SAFE:
        return
    sent = headers.get("origin")
    if sent is not None:
        allowed = urlsplit(origin).netloc if origin else headers.get("host", "")
        same = urlsplit(sent).netloc == allowed
    else:
        same = headers.get("sec-fetch-site", "none") in {"same-origin", "none"}
    if not same:
        raise Forbidden(
            "This request comes from another web site",
            fix="Open the review application itself; behind a proxy, set its address: "
            "LEUKOSCOPE_REVIEW_ORIGIN.",
        )


class Attempts:
    """Who tried how often (final): at most `most` a minute from one address."""

    def __init__(self, most: int = 30, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.clock = clock
        self._lock = threading.Lock()
        self._tried: dict[str, deque[float]] = {}

    def allowed(self, address: str) -> bool:
        """Count one attempt; whether it may go on."""
        with self._lock:
            moment = self.clock()
            for one, times in list(self._tried.items()):
                while times and times[0] < moment - 60:
                    times.popleft()
                if not times:
                    del self._tried[one]
            times = self._tried.setdefault(address, deque())
            times.append(moment)
            return len(times) <= self.most


class Guard:
    """Middleware (final): security headers on every answer, no cross-site change, no huge body."""

    def __init__(self, app: ASGIApp, origin: str, behind_tls: bool, streams: Iterable[str]) -> None:
        self.app = app
        self.origin = origin
        self.headers = dict(_HEADERS)
        self.streams = tuple(streams)
        if behind_tls:
            self.headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with one of the API's errors."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
                # Scripts and styles may be kept, if asked for changes; what is said of cells not.
                static = scope["path"].startswith("/static/")
                headers.setdefault("cache-control", "no-cache" if static else "no-store")
            await send(message)

        headers = Headers(scope=scope)
        try:
            refuse_cross_site(scope["method"], headers, self.origin)
        except Forbidden as problem:
            await _refuse(guarded, 403, problem)
            return
        if scope["path"].startswith(self.streams) and scope["method"] == "PUT":
            await self.app(scope, receive, guarded)
            return
        body = await _body(receive)
        if body is None:
            large = InputError(
                f"The request has more than {BODY_BYTES:,} bytes", fix="Send files as uploads."
            )
            await _refuse(guarded, 413, large)
            return
        await self.app(scope, _again(body, receive), guarded)


async def _body(receive: Receive) -> list[Message] | None:
    """The messages of a small body, or None where it is too large."""
    messages: list[Message] = []
    size = 0
    while True:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if size > BODY_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return messages


def _again(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def replay() -> Message:
        return next(waiting, None) or await receive()

    return replay


async def _refuse(send: Send, status: int, problem: LeukoscopeError) -> None:
    body = json.dumps(problem.as_dict()).encode()
    start = {"type": "http.response.start", "status": status,
             "headers": [(b"content-type", b"application/json")]}  # fmt: skip
    await send(start)
    await send({"type": "http.response.body", "body": body})
