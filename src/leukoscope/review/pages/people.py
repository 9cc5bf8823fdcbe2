"""Accounts, roles and invitations, for administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response

from leukoscope.review import access, accounts
from leukoscope.review.access import needs
from leukoscope.review.database import Database
from leukoscope.review.pages.render import page
from leukoscope.review.schema import ROLES, User, now

router = APIRouter(prefix="/people")
Data = Annotated[Database, Depends(access.given_database)]
Administrator = Annotated[User, Depends(needs("administrator"))]


@router.get("")
def people(request: Request, user: Administrator, database: Data) -> Response:
    """All accounts."""
    return _people(request, user, database)


def _people(request: Request, user: User, database: Database, link: str = "") -> Response:
    with database.read() as session:
        found = accounts.users(session)
    return page(request, "people.html", user, people=found, roles=ROLES, link=link, now=now())


@router.post("/invite")
def invite(
    request: Request,
    user: Administrator,
    database: Data,
    role: Annotated[str, Form()],
    of: Annotated[int | None, Form()] = None,
) -> Response:
    """A one-time link for a new account, or for a new password of account `of`."""
    with database.begin() as session:
        token = accounts.invite(session, role, user, user_id=of)
    address = request.app.state.settings.origin.rstrip("/") or str(request.base_url).rstrip("/")
    return _people(request, user, database, f"{address}/welcome/{token}")


@router.post("/{user_id}/role")
def role(
    request: Request,
    user: Administrator,
    user_id: int,
    database: Data,
    role: Annotated[str, Form()],
) -> Response:
    """Give somebody another role."""
    with database.begin() as session:
        accounts.set_role(session, user, user_id, role)
    return _people(request, user, database)


@router.post("/{user_id}/active")
def active(
    request: Request,
    user: Administrator,
    user_id: int,
    database: Data,
    open_it: Annotated[bool, Form()],
) -> Response:
    """Shut an account, or open it again."""
    change = accounts.activate if open_it else accounts.deactivate
    with database.begin() as session:
        change(session, user, user_id)
    return _people(request, user, database)
