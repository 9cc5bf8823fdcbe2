"""Log-in, accounts, invitations, API tokens."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from leukoscope.review import access, accounts
from leukoscope.review.api.common import Administrator, Db, InBrowser, Viewer
from leukoscope.review.api.errors import documented
from leukoscope.review.api.models import (
    Credentials,
    Invited,
    MadeToken,
    Me,
    NewInvitation,
    NewPassword,
    NewToken,
    Person,
    PersonChange,
    Token,
)
from leukoscope.review.limits import aside
from leukoscope.review.schema import ApiToken, User
from leukoscope.review.security import cross_site_token

router = APIRouter(tags=["people"])


@router.post("/session", response_model=Me)
@aside("passwords")
def log_in(given: Credentials, request: Request, response: Response, db: Db) -> dict[str, object]:
    """Log in: sets the session's cookie."""
    token = access.log_in(request, given.name, given.password)
    access.set_session(request, response, token)
    with db.read() as session:
        visit = accounts.user_of(session, token)
    assert visit is not None  # it began a moment ago
    csrf = cross_site_token(request.app.state.secret, token)
    return {"user": visit.user, "csrf_token": csrf}


@router.get("/session", response_model=Me)
def me(by: Viewer, request: Request) -> dict[str, object]:
    """Who is logged in."""
    return {"user": by, "csrf_token": access.csrf_token(request)}


@router.delete("/session", status_code=204)
def log_out(by: InBrowser, request: Request, response: Response, db: Db) -> None:  # noqa: ARG001
    """Log out."""
    with db.begin() as session:
        accounts.log_out(session, access.session_token(request))
    access.clear_session(request, response)


@router.put("/session/password", status_code=204)
@aside("passwords")
def change_password(by: InBrowser, given: NewPassword, db: Db) -> None:
    """Change the own password; all own sessions end."""
    accounts.change_password(db, by, given.old, given.new)


@router.get("/users", response_model=list[Person])
def users(by: Administrator, db: Db) -> list[User]:  # noqa: ARG001
    """All accounts."""
    with db.read() as session:
        return accounts.users(session)


@router.patch("/users/{user_id}", response_model=Person, responses=documented(404, 409))
def change_user(user_id: int, given: PersonChange, by: Administrator, db: Db) -> User:
    """Give an account another role, shut it, or open it again."""
    with db.begin() as session:
        user = accounts.find_user(session, user_id)
        if given.role is not None:
            user = accounts.set_role(session, by, user_id, given.role)
        if given.active is not None:
            switch = accounts.activate if given.active else accounts.deactivate
            user = switch(session, by, user_id)
        return user


@router.post("/invitations", status_code=201, response_model=Invited, responses=documented(404))
def invite(given: NewInvitation, by: Administrator, request: Request, db: Db) -> dict[str, str]:
    """A one-time link for a new account, or for a new password of one."""
    with db.begin() as session:
        token = accounts.invite(session, given.role, by, given.hours, given.user_id)
    return {"token": token, "url": f"{access.settings(request).address}/welcome/{token}"}


@router.post(
    "/invitations/{token}", status_code=201, response_model=Person, responses=documented(404, 409)
)
@aside("passwords")
def accept(token: str, given: Credentials, db: Db) -> User:
    """Make the account that a one-time link is for. Needs no log-in: the link is the key."""
    return accounts.accept(db, token, given.name, given.password)


@router.get("/tokens", response_model=list[Token])
def tokens(by: Viewer, db: Db) -> list[ApiToken]:
    """The own API tokens; an administrator sees all."""
    with db.read() as session:
        return accounts.tokens(session, by)


@router.post("/tokens", status_code=201, response_model=MadeToken)
def make_token(given: NewToken, by: InBrowser, db: Db) -> dict[str, str]:
    """A token for a program; shown once."""
    with db.begin() as session:
        token = accounts.make_token(session, by, given.name, list(given.scopes), given.days)
    return {"token": token}


@router.delete("/tokens/{token_id}", status_code=204, responses=documented(404))
def revoke_token(token_id: int, by: InBrowser, db: Db) -> None:
    """End a token."""
    with db.begin() as session:
        accounts.revoke_token(session, by, token_id)
