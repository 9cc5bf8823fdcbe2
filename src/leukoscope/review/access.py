"""Who asks, and whether they may: FastAPI dependencies of the API and of the pages alike."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Response

from leukoscope.review import accounts, security
from leukoscope.review.database import Database
from leukoscope.review.problems import Forbidden, TooMany, Unauthenticated
from leukoscope.review.schema import Role, User
from leukoscope.review.settings import Settings

COOKIE = "leukoscope_session"
SCOPES: dict[str, str] = {"viewer": "read", "reviewer": "write", "administrator": "admin"}
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
# What a page asks by itself keeps no session alive.
_POLLED = ("/changes", "/jobs")


async def given_database(request: Request) -> Database:
    """The database of this server, as a dependency: async, or it took a thread's time."""
    return database(request)


def database(request: Request) -> Database:
    """The database of this server."""
    found: Database = request.app.state.database
    return found


def settings(request: Request) -> Settings:
    """The settings of this server."""
    found: Settings = request.app.state.settings
    return found


@dataclass(frozen=True)
class Visitor:
    """Who asks, how: `session` is the browser session's token, `scopes` an API token's. due: this
    use of the session is to be noted."""

    user: User
    session: str = ""
    scopes: tuple[str, ...] = ()
    due: bool = False


async def _sent_token(request: Request) -> str:
    """The cross-site token that came with a request, in its header or its form.

    Forms are posted. Nothing else is read before it is known who asks: an upload's PUT is as
    large as it likes.
    """
    header = request.headers.get("x-csrf-token")
    if header is not None or request.method != "POST":
        return header or ""
    if not request.headers.get("content-type", "").startswith(_FORMS):
        return ""
    value = (await request.form()).get("csrf_token")
    return value if isinstance(value, str) else ""


def _visitor(request: Request) -> Visitor | None:
    """Who asks, found once a request."""
    if not hasattr(request.state, "visitor"):
        request.state.visitor = _by_token(request) or _by_cookie(request)
    found: Visitor | None = request.state.visitor
    return found


async def _arrived(request: Request) -> Visitor | None:
    """Who asks, for routes. Where the database is a file this looks on the event loop itself: it
    takes a fraction of a millisecond and waits for no writer, while the turn of a thread would take
    longer and keep that thread from people's acts."""
    if database(request).file is None:
        found = await run_sync(_visitor, request)
    else:
        found = _visitor(request)
    if found and found.due and not request.url.path.endswith(_POLLED):
        await run_sync(_touch, database(request), found.session)
    return found


def _touch(db: Database, token: str) -> None:
    with db.begin() as session:
        accounts.touch(session, token)


def _by_token(request: Request) -> Visitor | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer":  # a proxy's own, Basic say, is none of ours
        return None
    with database(request).read() as session:
        found = accounts.user_of_token(session, token.strip())
    if found is None:
        raise Unauthenticated(
            "The API token isn't valid: unknown, expired or revoked",
            fix="Make a new one on the page of your account.",
        )
    user, scopes = found
    return Visitor(user, scopes=tuple(scopes))


def _by_cookie(request: Request) -> Visitor | None:
    token = request.cookies.get(_cookie(settings(request)))
    if not token:
        return None
    with database(request).read() as session:
        visit = accounts.user_of(session, token)
    return Visitor(visit.user, session=token, due=visit.due) if visit else None


def visitor(request: Request) -> User | None:
    """Who is logged in, or None: for pages that everybody may see."""
    found = _visitor(request)
    return found.user if found else None


@dataclass(frozen=True)
class Needs:
    """A dependency that gives the user, or refuses: see `needs`."""

    role: Role
    scope: str

    async def __call__(
        self, request: Request, sent: Annotated[str, Depends(_sent_token, use_cache=True)]
    ) -> User:
        """The user; Unauthenticated or Forbidden otherwise."""
        found = await _arrived(request)
        if found is None:
            raise Unauthenticated("Nobody is logged in", fix="Log in first.")
        if found.session and request.method not in security.SAFE:
            _refuse_cross_site(request, found.session, sent)
        if not found.session and self.scope not in found.scopes:
            raise Forbidden(
                "This needs a browser's session, not an API token"
                if self.scope == "session"
                else f"This needs an API token with the scope {self.scope}",
                fix="Make one on the page of your account.",
            )
        if not accounts.allowed(found.user, self.role):
            raise Forbidden(
                f"This needs the role {self.role}; {found.user.name} is {found.user.role}",
                fix="Ask an administrator.",
            )
        return found.user


def _refuse_cross_site(request: Request, session: str, sent: str) -> None:
    if not security.is_cross_site_token(request.app.state.secret, session, sent):
        raise Forbidden(
            "The request lacks its page's X-CSRF-Token, or that is of another session",
            fix="Load the page again.",
        )


def needs(role: Role, scope: Literal["read", "write", "admin", "session"] | None = None) -> Needs:
    """The dependency of a route that only `role`, or a higher one, may call.

    An API token needs `scope` too, by default that of the role; `session` admits browsers alone.
    """
    return Needs(role, scope or SCOPES[role])


current_user = needs("viewer")


async def watcher(
    request: Request, sent: Annotated[str, Depends(_sent_token, use_cache=True)]
) -> None:
    """Who may see the metrics: a program with the setting's token, or an administrator."""
    token = settings(request).metrics_token
    given = f"Bearer {token}".encode()
    header = request.headers.get("authorization", "").encode()
    if not token or not secrets.compare_digest(header, given):
        await needs("administrator")(request, sent)


def csrf_token(request: Request) -> str:
    """What a page of this session must carry; empty where nobody is logged in."""
    found = _visitor(request)
    if found is None or not found.session:
        return ""
    return security.cross_site_token(request.app.state.secret, found.session)


def session_token(request: Request) -> str:
    """The token of the browser's session, empty for programs."""
    found = _visitor(request)
    return found.session if found else ""


def log_in(request: Request, name: str, password: str) -> str:
    """The token of a new session; Unauthenticated, or TooMany from one address in a minute."""
    address = request.client.host if request.client else ""
    if not request.app.state.attempts.allowed(address):
        raise TooMany(
            "Too many attempts to log in from this address", fix="Wait a minute.", wait=60
        )
    return accounts.log_in(database(request), name, password, address)


def set_session(request: Request, response: Response, token: str) -> None:
    """Give the browser its session: hidden from scripts and other sites, over TLS if there is."""
    secure = settings(request).behind_tls
    response.set_cookie(
        _cookie(settings(request)), token, httponly=True, samesite="strict", secure=secure, path="/"
    )


def clear_session(request: Request, response: Response) -> None:
    """Take the browser's session away."""
    secure = settings(request).behind_tls
    response.delete_cookie(
        _cookie(settings(request)), httponly=True, samesite="strict", secure=secure, path="/"
    )


def _cookie(given: Settings) -> str:
    # Browsers take a __Host- cookie only from this very host, over TLS.
    return f"__Host-{COOKIE}" if given.behind_tls else COOKIE
