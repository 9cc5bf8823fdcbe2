"""Coming in and going out: invitations, log-in, the own account."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response

from leukoscope.errors import LeukoscopeError
from leukoscope.review import access, accounts
from leukoscope.review.access import visitor
from leukoscope.review.api.common import Db, InBrowser, Text, Viewer
from leukoscope.review.database import Database
from leukoscope.review.limits import aside
from leukoscope.review.pages.render import page, seen
from leukoscope.review.schema import User

router = APIRouter()
Visitor = Annotated[User | None, Depends(visitor)]


@router.get("/")
def first() -> Response:
    """The list of cases is where work begins."""
    return seen("/cases")


@router.get("/welcome/{token}")
def welcome(request: Request, token: str, database: Db) -> Response:
    """The form behind a one-time link; NotFound where that is over."""
    with database.read() as session:
        link = accounts.invitation(session, token)
        owner = accounts.find_user(session, link.user_id) if link.user_id else None
    return _welcome(request, token, link.role, owner.name if owner else "")


def _welcome(
    request: Request, token: str, role: str, owner: str, problem: LeukoscopeError | None = None
) -> Response:
    return page(
        request, "welcome.html", None, problem=problem,
        token=token, role=role, owner=owner, shortest=accounts.SHORTEST_PASSWORD,
    )  # fmt: skip


@router.post("/welcome/{token}")
@aside("passwords")
def accept(
    request: Request, token: str, database: Db, name: Text = "", password: Text = ""
) -> Response:
    """Make the account, and log in with it at once."""
    with database.read() as session:
        link = accounts.invitation(session, token)
        owner = accounts.find_user(session, link.user_id) if link.user_id else None
    try:
        accounts.accept(database, token, name, password)
    except LeukoscopeError as problem:
        return _welcome(request, token, link.role, owner.name if owner else "", problem)
    return _enter(request, name, password, "/cases")


@router.get("/login")
def login(request: Request, who: Visitor) -> Response:
    """The form of log-in; who is logged in goes on."""
    if who is not None:
        return seen("/cases")
    return page(request, "login.html", None, next=_inside(request.query_params.get("next", "")))


@router.post("/login")
@aside("passwords")
def enter(request: Request, name: Text = "", password: Text = "", next: Text = "") -> Response:  # noqa: A002
    """Log in, and on to where the visitor wanted to go."""
    try:
        return _enter(request, name, password, _inside(next))
    except LeukoscopeError as problem:
        return page(request, "login.html", None, problem=problem, next=_inside(next))


def _enter(request: Request, name: str, password: str, target: str) -> Response:
    token = access.log_in(request, name, password)
    answer = seen(target)
    access.set_session(request, answer, token)
    return answer


def _inside(target: str) -> str:
    """A path of this application; never another site, however it is written."""
    plain = target.startswith("/") and not target.startswith(("//", "/\\", "/login"))
    return target if plain and target.isprintable() and "\\" not in target else "/cases"


@router.post("/logout")
def leave(request: Request, _: Viewer, database: Db) -> Response:
    """End the session."""
    with database.begin() as session:
        accounts.log_out(session, access.session_token(request))
    answer = seen("/login")
    access.clear_session(request, answer)
    return answer


@router.get("/account")
def account(request: Request, user: Viewer, database: Db) -> Response:
    """Password and tokens of one's own."""
    return _account(request, user, database)


def _account(
    request: Request,
    user: User,
    database: Database,
    problem: LeukoscopeError | None = None,
    made: str = "",
) -> Response:
    with database.read() as session:
        mine = [t for t in accounts.tokens(session, user) if t.user_id == user.id]
    return page(
        request, "account.html", user, problem=problem,
        tokens=mine, made=made, scopes=accounts.scopes_of(user),
        shortest=accounts.SHORTEST_PASSWORD,
    )  # fmt: skip


@router.post("/account/password")
@aside("passwords")
def password(
    request: Request, user: InBrowser, database: Db, old: Text = "", new: Text = ""
) -> Response:
    """Another password; all sessions end, this one goes on anew."""
    try:
        accounts.change_password(database, user, old, new)
    except LeukoscopeError as problem:
        return _account(request, user, database, problem)
    return _enter(request, user.name, new, "/account")


@router.post("/account/tokens")
def make_token(
    request: Request,
    user: InBrowser,
    database: Db,
    name: Text = "",
    scopes: Annotated[list[str], Form()] = [],  # noqa: B006 - FastAPI copies it
    days: Annotated[int, Form()] = 90,
) -> Response:
    """A token for a program, shown this once."""
    try:
        with database.begin() as session:
            made = accounts.make_token(session, user, name, scopes, days)
    except LeukoscopeError as problem:
        return _account(request, user, database, problem)
    return _account(request, user, database, made=made)


@router.post("/account/tokens/{token_id}/revoke")
def revoke(user: InBrowser, token_id: int, database: Db) -> Response:
    """End a token."""
    with database.begin() as session:
        accounts.revoke_token(session, user, token_id)
    return seen("/account")
