"""Accounts: invitations, passwords, sessions of browsers, tokens of programs, roles.

Tokens are random (256 bits) and stored as SHA-256 only; passwords as argon2id. A wrong name, a
wrong password and a locked account get the same answer in the same time, so nobody learns from
outside which names exist.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.review import audit
from leukoscope.review.database import Database
from leukoscope.review.problems import (
    Conflict,
    Forbidden,
    NotFound,
    Unauthenticated,
    text,
)
from leukoscope.review.schema import ROLES, ApiToken, Invitation, Login, Role, User, now

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
FAILURES, LOCKED = 5, datetime.timedelta(minutes=15)
IDLE, LONGEST = datetime.timedelta(minutes=30), datetime.timedelta(hours=12)
RENEW_AFTER = datetime.timedelta(seconds=60)
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 256
ADMINISTRATOR: Role = "administrator"

_hasher = PasswordHasher()


@dataclass(frozen=True)
class Compared:
    """A password that was compared with the hash of an account, `hashed`, in no transaction: that
    takes long, and whoever writes makes all others wait. renewed: its hash as one is made now."""

    hashed: str
    right: bool
    renewed: str = ""


@dataclass(frozen=True)
class Visit:
    """Whose session it is. due: the last `touch` was a while ago."""

    user: User
    due: bool


def allowed(user: User, role: str) -> bool:
    """Whether the account is active and may do what `role` may."""
    return user.active and ROLES.index(user.role) >= ROLES.index(role)


def acting(session: Session, by: User, role: str) -> User:
    """The account as it stands now; Forbidden where it may not do what `role` may."""
    present = session.get(User, by.id)
    if present is None or not allowed(present, role):
        raise Forbidden(
            f"This needs the role {role}; {by.name} "
            + (f"is {present.role}" if present and present.active else "is no active account"),
            fix="Ask an administrator.",
        )
    return present


# --- invitations and passwords --------------------------------------------------------------------


def invite(
    session: Session,
    role: str,
    by: User | None = None,
    hours: float = 24,
    user_id: int | None = None,
) -> str:
    """The token of a one-time link for a new account, or a new password for `user_id`.

    Only an administrator may; without `by` only while there is no account at all (the first run),
    and then earlier links of that kind end.
    """
    if role not in ROLES:
        raise UnknownNameError("role", role, ROLES)
    if by is not None:
        by = acting(session, by, ADMINISTRATOR)
    elif session.scalar(select(func.count()).select_from(User)):
        raise Forbidden("There are accounts already", fix="Ask an administrator for a link.")
    else:
        session.execute(delete(Invitation))
    if not 0 < hours <= 24 * 30:
        raise InputError(f"A link for {hours} hours; allowed: up to 720", field="hours")
    user = None if user_id is None else find_user(session, user_id)
    token = secrets.token_urlsafe(32)
    session.add(
        Invitation(
            token_hash=_hashed(token),
            role=user.role if user else role,
            user_id=user_id,
            made_by=by.id if by else None,
            expires=now() + datetime.timedelta(hours=hours),
        )
    )
    audit.record(
        session,
        by or "first run",
        "invite",
        role=user.role if user else role,
        of=user.name if user else None,
    )
    return token


def invitation(session: Session, token: str) -> Invitation:
    """The open invitation with this token; NotFound where it is used, over or never was."""
    found = session.get(Invitation, _hashed(token))
    if found is None or found.used is not None or found.expires <= now():
        raise NotFound(
            "This link isn't valid: it was used, is over, or was cut off",
            fix="Ask an administrator for a new one.",
            field="token",
        )
    return found


def accept(database: Database, token: str, name: str, password: str) -> User:
    """Make the account of an invitation, or give a new password; the link ends with it.

    InputError where the name is taken or the password too weak. For a new password `name` is only
    compared: the link belongs to one account.
    """
    with database.read() as session:
        invitation(session, token)  # before anything is hashed for a stranger
    name = text(name, "name", least=1, most=64)
    hashed = _new_password(name, password)
    with database.begin() as session:
        return _accept(session, token, name, hashed)


def _accept(session: Session, token: str, name: str, hashed: str) -> User:
    link = invitation(session, token)
    if link.user_id is None:
        if _by_name(session, name) is not None:
            raise Conflict(f"The name {name!r} is taken", fix="Choose another name.", field="name")
        user = User(name=name, password=hashed, role=link.role, failures=0)
        session.add(user)
    else:
        user = find_user(session, link.user_id)
        if _key(user.name) != _key(name):
            raise InputError("This link is for another account", field="name")
        user.password, user.failures, user.locked_until = hashed, 0, None
        _end_sessions(session, user)
        _end_tokens(session, user)
    link.used = now()
    session.flush()
    audit.record(session, user, "accept invitation", role=user.role)
    return user


def compare(database: Database, who: User | str, password: str) -> Compared:
    """Compare a password with that of an account or name; an unknown name takes as long.

    Call it outside of any transaction.
    """
    with database.read() as session:
        user = _by_name(session, who) if isinstance(who, str) else session.get(User, who.id)
    hashed = user.password if user else _no_password()
    right = _verified(hashed, password)
    renew = right and _hasher.check_needs_rehash(hashed)
    return Compared(hashed, right, _hash(password) if renew else "")


def check_password(session: Session, user: User | None, found: Compared, address: str = "") -> None:
    """Raise Unauthenticated unless the password is right; counts failures and locks the account.

    The refusal is kept (`Unauthenticated.recorded`). user None: an unknown name.
    """
    # Another password may have been set since.
    right = found.right and user is not None and user.password == found.hashed
    locked = user is not None and user.locked_until is not None and user.locked_until > now()
    if user is not None and user.active and right and not locked:
        user.failures, user.locked_until = 0, None
        return
    if user is not None and not locked:
        user.failures = 1 if user.locked_until else user.failures + 1
        user.locked_until = now() + LOCKED if user.failures >= FAILURES else None
    why = "unknown" if user is None else "locked" if locked else "inactive"
    if user is not None and user.active and not locked:
        why = "wrong password"
    audit.record(session, user or "nobody", "refused password", why=why, address=address[:64])
    raise Unauthenticated(
        "Name or password is wrong",
        fix=f"After {FAILURES} wrong passwords an account is locked for "
        f"{LOCKED.seconds // 60} minutes.",
        recorded=True,
    )


def change_password(database: Database, by: User, old: str, new: str) -> None:
    """Replace the own password; all sessions and tokens of the account end."""
    found = compare(database, by, old)
    hashed = _new_password(by.name, new) if found.right else ""
    with database.begin() as session:
        user = acting(session, by, "viewer")
        check_password(session, user, found)
        user.password = hashed
        _end_sessions(session, user)
        _end_tokens(session, user)
        audit.record(session, user, "change password")


# --- sessions -------------------------------------------------------------------------------------


def log_in(database: Database, name: str, password: str, address: str = "") -> str:
    """The token of a new session; Unauthenticated where name or password is wrong, or locked."""
    found = compare(database, name, password)
    token = secrets.token_urlsafe(32)
    with database.begin() as session:
        user = _by_name(session, name)
        # The name isn't kept where it is unknown: it may be a password typed into the wrong field.
        check_password(session, user, found, address)
        assert user is not None  # or check_password had raised
        user.password = found.renewed or user.password
        session.execute(delete(Login).where(Login.expires <= now()))
        session.add(Login(token_hash=_hashed(token), user_id=user.id, expires=now() + LONGEST))
        audit.record(session, user, "log in", address=address[:64])
    return token


def user_of(session: Session, token: str) -> Visit | None:
    """Whose session this is, or None where it is over: 30 min unused, 12 h after log-in.

    Only reads. `touch` keeps a session alive; what asks by itself (polling) shouldn't.
    """
    found = session.execute(
        select(User, Login.seen, Login.expires)
        .join(Login, User.id == Login.user_id)
        .where(Login.token_hash == _hashed(token), User.active)
    ).one_or_none()
    if found is None:
        return None
    user, seen, expires = found
    moment = now()
    if moment >= min(expires, seen + IDLE):
        return None
    return Visit(user, due=moment - seen > RENEW_AFTER)


def touch(session: Session, token: str) -> None:
    """The session was used just now."""
    session.execute(update(Login).where(Login.token_hash == _hashed(token)).values(seen=now()))


def log_out(session: Session, token: str) -> None:
    """End the session; nothing where there is none."""
    visit = user_of(session, token)
    session.execute(delete(Login).where(Login.token_hash == _hashed(token)))
    if visit is not None:
        audit.record(session, visit.user, "log out")


# --- people ---------------------------------------------------------------------------------------


def users(session: Session) -> list[User]:
    """All accounts, by name."""
    return sorted(session.scalars(select(User)), key=lambda user: _key(user.name))


def find_user(session: Session, user_id: int) -> User:
    """The account with this number; NotFound otherwise."""
    user = session.get(User, user_id) if 0 < user_id < 2**31 else None
    if user is None:
        raise NotFound(f"There is no account {user_id}", fix="Look into the list of people.")
    return user


def set_role(session: Session, by: User, user_id: int, role: str) -> User:
    """Give an account another role; Conflict for the last active administrator.

    Who no longer administers leaves no open invitation behind.
    """
    by = acting(session, by, ADMINISTRATOR)
    if role not in ROLES:
        raise UnknownNameError("role", role, ROLES)
    user = find_user(session, user_id)
    if role != ADMINISTRATOR:
        _keep_one_administrator(session, user)
        _end_invitations(session, user)  # only administrators invite
    was, user.role = user.role, role
    audit.record(session, by, "set role", of=user.name, was=was, role=role)
    return user


def deactivate(session: Session, by: User, user_id: int) -> User:
    """Shut an account: its sessions and open invitations end, its tokens don't work; what it did
    stays."""
    by = acting(session, by, ADMINISTRATOR)
    user = find_user(session, user_id)
    _keep_one_administrator(session, user)
    user.active = False
    _end_sessions(session, user)
    _end_invitations(session, user)
    audit.record(session, by, "deactivate", of=user.name)
    return user


def activate(session: Session, by: User, user_id: int) -> User:
    """Open a shut account again."""
    by = acting(session, by, ADMINISTRATOR)
    user = find_user(session, user_id)
    user.active = True
    audit.record(session, by, "activate", of=user.name)
    return user


def _keep_one_administrator(session: Session, leaving: User) -> None:
    others = select(func.count()).where(
        User.role == ADMINISTRATOR, User.active, User.id != leaving.id
    )
    if leaving.role == ADMINISTRATOR and leaving.active and not session.scalar(others):
        raise Conflict(
            f"{leaving.name} is the last administrator",
            fix="Make somebody else administrator first.",
        )


# --- tokens of programs ---------------------------------------------------------------------------


def scopes_of(user: User) -> tuple[Scope, ...]:
    """What a token of this account may be given at most: read, write, admin by role."""
    return SCOPES[: ROLES.index(user.role) + 1]


def make_token(session: Session, by: User, name: str, scopes: list[str], days: int = 90) -> str:
    """A token of the own account for a program; shown once. days: 1 to 366."""
    user = acting(session, by, "viewer")
    name = text(name, "name", least=1, most=64)
    if not 1 <= days <= 366:
        raise InputError(f"A token for {days} days; allowed: 1 to 366", field="days")
    if not scopes:
        raise InputError(
            "A token without a scope can do nothing",
            fix="Give read, write or admin.",
            field="scopes",
        )
    for scope in scopes:
        if scope not in SCOPES:
            raise UnknownNameError("scope", scope, SCOPES, field="scopes")
        if scope not in scopes_of(user):
            raise Forbidden(f"A token of a {user.role} can't have the scope {scope}")
    token = "lks_" + secrets.token_urlsafe(32)
    session.add(
        ApiToken(
            user_id=user.id,
            name=name,
            token_hash=_hashed(token),
            scopes=[scope for scope in SCOPES if scope in scopes],
            expires=now() + datetime.timedelta(days=days),
        )
    )
    audit.record(session, user, "make token", name=name, scopes=sorted(scopes), days=days)
    return token


def user_of_token(session: Session, token: str) -> tuple[User, tuple[Scope, ...]] | None:
    """Whose token this is and what it may do, never more than the account's role; None if over."""
    found = session.execute(
        select(ApiToken, User)
        .join(User, User.id == ApiToken.user_id)
        .where(ApiToken.token_hash == _hashed(token), ApiToken.revoked.is_(None), User.active)
    ).one_or_none()
    if found is None or (found[0].expires is not None and found[0].expires <= now()):
        return None
    owned, user = found
    return user, tuple(scope for scope in scopes_of(user) if scope in owned.scopes)


def tokens(session: Session, by: User) -> list[ApiToken]:
    """The tokens that still work: the own ones, all for an administrator."""
    query = select(ApiToken).where(ApiToken.revoked.is_(None)).order_by(ApiToken.id)
    user = acting(session, by, "viewer")
    if not allowed(user, ADMINISTRATOR):
        query = query.where(ApiToken.user_id == user.id)
    return [t for t in session.scalars(query) if t.expires is None or t.expires > now()]


def revoke_token(session: Session, by: User, token_id: int) -> None:
    """End a token: one's own, or as an administrator anybody's."""
    user = acting(session, by, "viewer")
    found = session.get(ApiToken, token_id) if 0 < token_id < 2**31 else None
    mine = found is not None and (found.user_id == user.id or allowed(user, ADMINISTRATOR))
    if found is None or not mine:
        raise NotFound(f"You have no token {token_id}", fix="Look into the list of tokens.")
    found.revoked = found.revoked or now()
    audit.record(session, user, "revoke token", name=found.name)


# --- inside ---------------------------------------------------------------------------------------


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _key(name: str) -> str:
    """Names that differ only in case are one name."""
    return name.casefold()


def _by_name(session: Session, name: str) -> User | None:
    try:
        key = _key(text(name, "name", least=1, most=64))
    except InputError:
        return None
    # Few accounts: lower() of SQLite knows only ASCII.
    return next((user for user in session.scalars(select(User)) if _key(user.name) == key), None)


def _new_password(name: str, password: str) -> str:
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InputError(
            f"The password has {len(password)} characters; "
            f"allowed: {SHORTEST_PASSWORD} to {LONGEST_PASSWORD}",
            fix="Several words make a good one.",
            field="password",
        )
    if _key(name) in _key(password) and len(password) - len(name) < SHORTEST_PASSWORD // 2:
        raise InputError(
            "The password is little more than the name", fix="Choose another.", field="password"
        )
    return _hash(password)


def _hash(password: str) -> str:
    return _hasher.hash(password.encode(errors="replace"))


def _verified(hashed: str, password: str) -> bool:
    try:
        return _hasher.verify(hashed, password[:LONGEST_PASSWORD].encode(errors="replace"))
    except VerifyMismatchError:
        return False


@cache
def _no_password() -> str:
    return _hasher.hash(secrets.token_urlsafe(32))


def _end_sessions(session: Session, user: User) -> None:
    session.execute(delete(Login).where(Login.user_id == user.id))


def _end_invitations(session: Session, by: User) -> None:
    session.execute(
        delete(Invitation).where(Invitation.made_by == by.id, Invitation.used.is_(None))
    )


def _end_tokens(session: Session, user: User) -> None:
    own = update(ApiToken).where(ApiToken.user_id == user.id, ApiToken.revoked.is_(None))
    session.execute(own.values(revoked=now()))
