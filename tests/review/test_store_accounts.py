"""Accounts: invitations, log-in and lock-out, sessions, roles, tokens."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select, text
from store import PASSWORD, Lab, person

from leukoscope.errors import InputError, LeukoscopeError, UnknownNameError
from leukoscope.review import accounts, audit
from leukoscope.review.database import Database
from leukoscope.review.problems import Conflict, Forbidden, NotFound, Unauthenticated
from leukoscope.review.schema import ApiToken, Login, User

MINUTE = datetime.timedelta(minutes=1)


@contextmanager
def later(monkeypatch: pytest.MonkeyPatch, by: datetime.timedelta) -> Iterator[None]:
    """The clock of accounts, put forward."""
    with monkeypatch.context() as patch:
        patch.setattr(accounts, "now", lambda: datetime.datetime.now(datetime.UTC) + by)
        yield


def log_in(lab: Lab, name: str = "anna", password: str = PASSWORD) -> str:
    return accounts.log_in(lab.database, name, password, "127.0.0.1")


# --- invitations ----------------------------------------------------------------------------------


def test_first_run_makes_an_administrator_once(database: Database) -> None:
    with database.begin() as session:
        old = accounts.invite(session, "administrator")
        token = accounts.invite(session, "administrator")
    # A second start ends the first one's link.
    with database.read() as session, pytest.raises(NotFound):
        accounts.invitation(session, old)
    user = accounts.accept(database, token, " ada ", PASSWORD)
    assert (user.name, user.role) == ("ada", "administrator")
    assert PASSWORD not in user.password
    assert user.password.startswith("$argon2id$")
    with pytest.raises(NotFound):
        accounts.accept(database, token, "eve", PASSWORD)
    with database.begin() as session, pytest.raises(Forbidden):
        accounts.invite(session, "administrator")


def test_a_link_ends(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.database.begin() as session:
        token = accounts.invite(session, "viewer", lab.ada, hours=2)
        with later(monkeypatch, 119 * MINUTE):
            assert accounts.invitation(session, token).role == "viewer"
    with later(monkeypatch, 121 * MINUTE), pytest.raises(NotFound):
        accounts.accept(lab.database, token, "eve", PASSWORD)


def test_weak_passwords_and_bad_names_are_refused(lab: Lab) -> None:
    with lab.database.begin() as session:
        token = accounts.invite(session, "viewer", lab.ada)
    for name, password, words in (
        ("eve", "short", "12 to 256"),
        ("eve", "x" * 257, "12 to 256"),
        ("evelyn miller", "Evelyn Miller", "little more than the name"),
        ("", PASSWORD, "1 to 64"),
        ("x" * 65, PASSWORD, "1 to 64"),
        ("e\x00ve", PASSWORD, "can't be printed"),
        ("ANNA", PASSWORD, "taken"),
    ):
        with pytest.raises(InputError, match=words):
            accounts.accept(lab.database, token, name, password)
    accounts.accept(lab.database, token, "eve", PASSWORD)  # the link still works


def test_an_administrator_lets_somebody_choose_a_new_password(lab: Lab) -> None:
    old = log_in(lab)
    with lab.database.begin() as session:
        token = accounts.invite(session, "viewer", lab.ada, user_id=lab.anna.id)
    with pytest.raises(InputError, match="another account"):
        accounts.accept(lab.database, token, "boris", "another good password")
    user = accounts.accept(lab.database, token, "Anna", "another good password")
    assert (user.id, user.role) == (lab.anna.id, "reviewer")
    with lab.database.read() as session:
        assert accounts.user_of(session, old) is None
    assert log_in(lab, password="another good password")


# --- log-in ---------------------------------------------------------------------------------------


def test_log_in_gives_a_session(lab: Lab) -> None:
    token = log_in(lab, " Anna")
    with lab.database.read() as session:
        visit = accounts.user_of(session, token)
        stored = session.scalars(select(Login.token_hash)).all()
    assert visit is not None
    assert (visit.user.name, visit.due) == ("anna", False)
    assert token not in stored


def test_wrong_name_and_wrong_password_get_the_same_answer(lab: Lab) -> None:
    for name in ("anna", "nobody", "", "a\x00b", "\ud800"):
        with pytest.raises(Unauthenticated) as caught:
            log_in(lab, name, "wrong \ud800 password")
        assert caught.value.message == "Name or password is wrong"
        with lab.database.read() as session:
            line = audit.entries(session, limit=1)[0]
        assert line.action == "refused password"
        assert line.user == ("anna" if name == "anna" else "nobody")
        assert "127.0.0.1" in line.details


def test_unknown_names_cost_a_hash_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    right = accounts._verified
    monkeypatch.setattr(accounts, "_verified", lambda *a: asked.append(a) or right(*a))
    for name in ("anna", "nobody"):
        with pytest.raises(Unauthenticated):
            log_in(lab, name, "wrong password")
    hashes = [hashed.rsplit("$", 2)[0] for hashed, _ in asked]
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]  # the same algorithm at the same cost


def test_five_failures_lock_for_a_quarter_of_an_hour(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            log_in(lab, password="wrong password")
    with pytest.raises(Unauthenticated):
        log_in(lab)
    with later(monkeypatch, 14 * MINUTE), pytest.raises(Unauthenticated):
        log_in(lab)
    with later(monkeypatch, 16 * MINUTE):
        assert log_in(lab)
    with lab.database.read() as session:
        assert session.get_one(User, lab.anna.id).failures == 0
        whys = [e.details for e in audit.entries(session) if e.action == "refused password"]
    assert sum("wrong password" in why for why in whys) == 5
    assert sum("locked" in why for why in whys) == 2
    assert log_in(lab, "boris")


def test_after_a_lock_five_more_failures_lock_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            log_in(lab, password="wrong password")
    with later(monkeypatch, 16 * MINUTE):
        for _ in range(4):
            with pytest.raises(Unauthenticated):
                log_in(lab, password="wrong password")
        assert log_in(lab)
        for _ in range(5):
            with pytest.raises(Unauthenticated):
                log_in(lab, password="wrong password")
        with pytest.raises(Unauthenticated):
            log_in(lab)


def test_sessions_end_unused_or_after_twelve_hours(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = log_in(lab)
    with lab.database.read() as session, later(monkeypatch, 29 * MINUTE):
        visit = accounts.user_of(session, token)
        assert visit is not None
        assert visit.due
    with lab.database.read() as session, later(monkeypatch, 31 * MINUTE):
        assert accounts.user_of(session, token) is None
    for minutes in range(20, 12 * 60, 20):
        with later(monkeypatch, minutes * MINUTE):
            with lab.database.begin() as session:
                accounts.touch(session, token)
            with lab.database.read() as session:
                assert accounts.user_of(session, token) is not None
    with lab.database.read() as session, later(monkeypatch, 12 * 60 * MINUTE):
        assert accounts.user_of(session, token) is None


def test_log_out_and_other_ends_of_a_session(lab: Lab) -> None:
    first, second, third = log_in(lab), log_in(lab), log_in(lab, "boris")
    with lab.database.begin() as session:
        accounts.log_out(session, first)
        accounts.log_out(session, "unknown")
        assert accounts.user_of(session, first) is None
        assert accounts.user_of(session, second) is not None
    accounts.change_password(lab.database, lab.anna, PASSWORD, "another good password")
    with lab.database.begin() as session:
        assert accounts.user_of(session, second) is None
        accounts.deactivate(session, lab.ada, lab.boris.id)
        assert accounts.user_of(session, third) is None
    with pytest.raises(Unauthenticated):
        log_in(lab)
    with pytest.raises(Unauthenticated):
        log_in(lab, "boris")
    assert log_in(lab, password="another good password")


def test_a_wrong_old_password_counts(lab: Lab) -> None:
    with pytest.raises(Unauthenticated):
        accounts.change_password(lab.database, lab.anna, "wrong password", "another good password")
    with lab.database.read() as session:
        assert session.get_one(User, lab.anna.id).failures == 1
    assert log_in(lab)


# --- roles ----------------------------------------------------------------------------------------


def test_each_role_may_what_those_before_may(lab: Lab) -> None:
    may = {
        user.name: [role for role in accounts.ROLES if accounts.allowed(user, role)]
        for user in (lab.vera, lab.anna, lab.ada)
    }
    assert may == {
        "vera": ["viewer"],
        "anna": ["viewer", "reviewer"],
        "ada": ["viewer", "reviewer", "administrator"],
    }


ADMINISTRATION = {
    "invite": lambda s, by, _: accounts.invite(s, "viewer", by),
    "set_role": lambda s, by, lab: accounts.set_role(s, by, lab.vera.id, "reviewer"),
    "deactivate": lambda s, by, lab: accounts.deactivate(s, by, lab.vera.id),
    "activate": lambda s, by, lab: accounts.activate(s, by, lab.vera.id),
}


def test_people_are_an_administrators_business(lab: Lab) -> None:
    with lab.database.begin() as session:
        for act in ADMINISTRATION.values():
            for by in (lab.vera, lab.anna):
                with pytest.raises(Forbidden, match="administrator"):
                    act(session, by, lab)
        for act in ADMINISTRATION.values():
            act(session, lab.ada, lab)


def test_the_role_counts_as_it_stands_now(lab: Lab) -> None:
    second = person(lab.database, "eva", "administrator", lab.ada)
    with lab.database.begin() as session:
        accounts.set_role(session, second, lab.ada.id, "viewer")
    assert lab.ada.role == "administrator"  # what an old page still believes
    with lab.database.begin() as session, pytest.raises(Forbidden, match="ada is viewer"):
        accounts.set_role(session, lab.ada, second.id, "viewer")


def test_the_last_administrator_stays(lab: Lab) -> None:
    with lab.database.begin() as session:
        with pytest.raises(Conflict, match="last administrator"):
            accounts.set_role(session, lab.ada, lab.ada.id, "viewer")
        with pytest.raises(Conflict, match="last administrator"):
            accounts.deactivate(session, lab.ada, lab.ada.id)
        accounts.set_role(session, lab.ada, lab.anna.id, "administrator")
        accounts.deactivate(session, lab.ada, lab.ada.id)
        with pytest.raises(Conflict, match="last administrator"):
            accounts.deactivate(session, lab.anna, lab.anna.id)


def test_unknown_roles_and_people(lab: Lab) -> None:
    with lab.database.begin() as session:
        with pytest.raises(UnknownNameError, match="reviewer"):
            accounts.set_role(session, lab.ada, lab.anna.id, "reviewr")
        with pytest.raises(UnknownNameError):
            accounts.invite(session, "god", lab.ada)
        for number in (0, -1, 999, 2**40, 2**80):
            with pytest.raises(NotFound):
                accounts.deactivate(session, lab.ada, number)
        assert [user.name for user in accounts.users(session)] == ["ada", "anna", "boris", "vera"]


# --- tokens of programs ---------------------------------------------------------------------------


def test_a_token_works_until_it_is_revoked_or_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.database.begin() as session:
        token = accounts.make_token(session, lab.anna, "robot", ["write", "read"], 10)
    with lab.database.read() as session:
        found = accounts.user_of_token(session, token)
        assert found is not None
        assert (found[0].name, found[1]) == ("anna", ("read", "write"))
        assert accounts.user_of_token(session, token + "x") is None
        with later(monkeypatch, datetime.timedelta(days=11)):
            assert accounts.user_of_token(session, token) is None
        row = session.scalars(select(ApiToken)).one()
        assert token not in (row.token_hash, row.name)
    with lab.database.begin() as session:
        for stranger in (lab.boris, lab.vera):
            with pytest.raises(NotFound):
                accounts.revoke_token(session, stranger, row.id)
            assert accounts.tokens(session, stranger) == []
        assert len(accounts.tokens(session, lab.ada)) == 1
        accounts.revoke_token(session, lab.anna, row.id)
        assert accounts.tokens(session, lab.anna) == []
        assert accounts.user_of_token(session, token) is None


def test_a_token_never_does_more_than_its_owner(lab: Lab) -> None:
    with lab.database.begin() as session:
        for user, scopes in ((lab.vera, ["write"]), (lab.anna, ["admin"])):
            with pytest.raises(Forbidden):
                accounts.make_token(session, user, "robot", scopes)
        token = accounts.make_token(session, lab.anna, "robot", ["read", "write"])
        accounts.set_role(session, lab.ada, lab.anna.id, "viewer")
        found = accounts.user_of_token(session, token)
        assert found is not None
        assert found[1] == ("read",)
        accounts.deactivate(session, lab.ada, lab.anna.id)
        assert accounts.user_of_token(session, token) is None


def test_bad_tokens_are_refused(lab: Lab) -> None:
    with lab.database.begin() as session:
        for wrong in ({"days": 0}, {"days": 400}, {"scopes": []}, {"scopes": ["all"]}):
            with pytest.raises(LeukoscopeError):
                accounts.make_token(session, lab.anna, "x", **{"scopes": ["read"], **wrong})


def test_every_act_on_accounts_is_in_the_audit_log(lab: Lab) -> None:
    token = log_in(lab)
    with lab.database.begin() as session:
        accounts.log_out(session, token)
        accounts.make_token(session, lab.anna, "robot", ["read"])
        accounts.revoke_token(session, lab.anna, session.scalars(select(ApiToken.id)).one())
    accounts.change_password(lab.database, lab.anna, PASSWORD, "another good password")
    with lab.database.begin() as session:
        accounts.set_role(session, lab.ada, lab.anna.id, "viewer")
        accounts.deactivate(session, lab.ada, lab.anna.id)
        accounts.activate(session, lab.ada, lab.anna.id)
    with lab.database.read() as session:
        actions = [(line.user, line.action) for line in audit.entries(session, limit=8)][::-1]
        everything = session.execute(text("SELECT details FROM audit")).scalars().all()
    assert actions == [
        ("anna", "log in"),
        ("anna", "log out"),
        ("anna", "make token"),
        ("anna", "revoke token"),
        ("anna", "change password"),
        ("ada", "set role"),
        ("ada", "deactivate"),
        ("ada", "activate"),
    ]
    assert not any("good password" in line or token in line for line in everything)


@pytest.mark.parametrize("how", ["deactivate", "reviewer", "viewer"])
def test_a_new_password_ends_tokens_and_who_no_longer_invites_leaves_no_open_invitation(
    lab: Lab, how: str
) -> None:
    with lab.database.begin() as session:
        token = accounts.make_token(session, lab.anna, "robot", ["read"])
    accounts.change_password(lab.database, lab.anna, PASSWORD, "another horse battery")
    with lab.database.begin() as session:
        assert accounts.user_of_token(session, token) is None
        accounts.set_role(session, lab.ada, lab.boris.id, "administrator")
        link = accounts.invite(session, "administrator", lab.boris)
        other = accounts.invite(session, "viewer", lab.ada)
        accounts.set_role(session, lab.ada, lab.boris.id, "administrator")
        assert accounts.invitation(session, link).role == "administrator"
        if how == "deactivate":
            accounts.deactivate(session, lab.ada, lab.boris.id)
        else:
            accounts.set_role(session, lab.ada, lab.boris.id, how)
        assert accounts.invitation(session, other).role == "viewer"
        with pytest.raises(NotFound):
            accounts.invitation(session, link)
