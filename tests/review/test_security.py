"""Who may do what, on every route; cross-site requests; headers and cookies."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from fastapi import Request
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from serving import Served, new_case, serving
from sqlalchemy.exc import OperationalError
from store import PASSWORD, person

from leukoscope.errors import InputError
from leukoscope.review import accounts, security
from leukoscope.review import pages as html
from leukoscope.review.access import Needs
from leukoscope.review.api import PREFIX
from leukoscope.review.database import Database
from leukoscope.review.schema import now
from leukoscope.review.security import Attempts
from leukoscope.review.settings import settings_of

OPEN = {  # what needs no log-in
    ("POST", "/session"),
    ("POST", "/invitations/{token}"),
}
OWN = {  # what a viewer may change: what is the viewer's own
    ("DELETE", "/session"),
    ("PUT", "/session/password"),
    ("POST", "/tokens"),
    ("DELETE", "/tokens/{token_id}"),
}
ADMINISTRATORS = {("GET", "/users"), ("PATCH", "/users/{user_id}"), ("POST", "/invitations"),
                  ("GET", "/audit"), ("GET", "/audit/verify"),
                  ("POST", "/cases/{case_id}/erase")}  # fmt: skip


def operations(served: Served) -> Iterator[tuple[str, str, Any]]:
    """Method, path and description of every operation of the API."""
    for path, methods in served.app.openapi()["paths"].items():
        for method, operation in methods.items():
            if path.startswith(PREFIX):
                yield method.upper(), path.removeprefix(PREFIX), operation


def call(client: TestClient, method: str, path: str) -> int:
    """The status of a call with made-up ids and an empty body."""
    for name in ("case_id", "upload_id", "job_id", "token", "label", "kind"):
        path = path.replace(f"{{{name}}}", "pdf" if name == "kind" else "x1")
    for name in ("cell_id", "user_id", "token_id", "number", "version"):
        path = path.replace(f"{{{name}}}", "1")
    assert "{" not in path
    return client.request(method, PREFIX + path, json={}, follow_redirects=False).status_code


def test_every_route_by_role(served: Served) -> None:
    viewer, reviewer = served.browser("vera"), served.browser("anna")
    reading = served.program("anna", "read")
    writing = served.program("vera", "read")
    checked = 0
    for method, path, operation in operations(served):
        key, who = (method, path), f"{method} {path}"
        checked += 1
        if key in OPEN:
            assert call(served.anonymous, method, path) not in {401, 403}, who
            continue
        assert call(served.anonymous, method, path) == 401, who
        assert {"401", "403"} <= set(operation["responses"]), who
        changes = method not in security.SAFE
        if key in OWN:
            assert call(reading, method, path) == 403, who  # a token isn't a browser
            continue
        may = not changes and key not in ADMINISTRATORS
        assert (call(viewer, method, path) != 403) == may, who
        assert (call(writing, method, path) != 403) == may, who
        assert (call(reading, method, path) != 403) == may, who
        assert (call(reviewer, method, path) == 403) == (key in ADMINISTRATORS), who
    assert checked > 35


def pages(routes: Any) -> Iterator[APIRoute]:
    """Every route, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from pages(inner.routes)
        elif isinstance(route, APIRoute):
            yield route


def test_every_page_by_role(served: Served) -> None:
    viewer = served.browser("vera")
    found = list(pages(html.router.routes))
    assert len(found) > 15
    for route in found:
        needs = [d.call for d in _all(route.dependant) if isinstance(d.call, Needs)]
        who = f"{route.methods} {route.path}"
        if not needs:
            assert route.path in {"/", "/login", "/logout"} or "welcome" in route.path, who
            continue
        path = route.path
        for name in ("case_id", "version", "user_id", "token_id", "cell_id"):
            path = path.replace(f"{{{name}}}", "1")
        for method in route.methods:
            answer = served.anonymous.request(method, path, follow_redirects=False)
            assert answer.status_code in {303, 401}, who
            allowed = all(need.role == "viewer" for need in needs)
            if path == "/logout":
                continue
            assert (viewer.request(method, path).status_code != 403) == allowed, who
            if route.path.startswith("/audit"):
                assert served.browser("anna").request(method, path).status_code == 403, who


def _all(dependant: Any) -> Iterator[Any]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _all(inner)


def test_a_change_needs_the_pages_token(served: Served) -> None:
    anna = served.browser("anna")
    for token in ("", "x", served.browser("anna").headers["X-CSRF-Token"]):  # of another session
        headers = {"X-CSRF-Token": token}
        answer = anna.post(f"{PREFIX}/cases", json={"pseudonym": "x"}, headers=headers)
        assert answer.status_code == 403
    del anna.headers["X-CSRF-Token"]
    assert anna.post(f"{PREFIX}/cases", json={"pseudonym": "x"}).status_code == 403
    assert anna.get(f"{PREFIX}/cases").json()["cases"] == []
    # An API token needs none: no browser sends it by itself.
    program = served.program("anna", "write")
    assert program.post(f"{PREFIX}/cases", json={"pseudonym": "x"}).status_code == 201


def test_another_site_changes_nothing(served: Served) -> None:
    for headers, allowed in (
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://testserver"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({}, True),
    ):
        given = {"name": "anna", "password": PASSWORD}
        for path, body in ((f"{PREFIX}/session", given), ("/login", {})):
            answer = served.anonymous.post(path, json=body, headers=headers)
            assert (answer.status_code != 403) == allowed, headers
        assert served.anonymous.get("/health", headers=headers).status_code == 200


def test_headers_and_cookies(small_bundle: Path, tmp_path: Path, database_url: str) -> None:
    for tls in (False, True):
        with serving(small_bundle, database_url, tmp_path / "f", behind_tls=tls) as made:
            if not tls:
                person(made.app.state.database, "ada", "administrator", None)
            given = {"name": "ada", "password": PASSWORD}
            cookie = made.anonymous.post(f"{PREFIX}/session", json=given).headers["set-cookie"]
            assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
            assert ("Secure" in cookie) == cookie.startswith("__Host-") == tls
            for path in ("/health", "/login", "/nothing", f"{PREFIX}/cases"):
                headers = made.anonymous.get(path).headers
                policy = headers["content-security-policy"]
                assert "unsafe" not in policy and "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["referrer-policy"] in {"no-referrer", "same-origin"}
                assert ("strict-transport-security" in headers) == tls
                assert headers["cache-control"] == "no-store"


def test_a_session_ends(served: Served) -> None:
    anna = served.browser("anna")
    assert anna.get(f"{PREFIX}/session").json()["user"]["name"] == "anna"
    assert anna.delete(f"{PREFIX}/session").status_code == 204
    assert anna.get(f"{PREFIX}/session").status_code == 401


def test_polling_keeps_no_session_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    start = now()

    def after(minutes: float) -> None:
        moment = start + accounts.IDLE * (minutes / 30)
        monkeypatch.setattr(accounts, "now", lambda: moment)

    after(20)
    assert anna.get(f"{PREFIX}/cases/{case}/changes").status_code == 200
    after(31)
    assert anna.get(f"{PREFIX}/cases/{case}/changes").status_code == 401
    after(20)
    assert anna.get(f"{PREFIX}/cases/{case}").status_code == 200
    after(45)
    assert anna.get(f"{PREFIX}/cases/{case}").status_code == 200


def test_tokens_have_scopes_and_end(served: Served) -> None:
    browser = served.browser("anna")
    given = {"name": "robot", "scopes": ["read"], "days": 1}
    token = browser.post(f"{PREFIX}/tokens", json=given).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    robot = TestClient(served.app, headers=headers)
    assert robot.get(f"{PREFIX}/cases").status_code == 200
    assert robot.post(f"{PREFIX}/cases", json={"pseudonym": "x"}).status_code == 403
    assert robot.post(f"{PREFIX}/tokens", json=given).status_code == 403
    forbidden = browser.post(f"{PREFIX}/tokens", json=given | {"scopes": ["admin"]})
    assert forbidden.status_code == 403
    (mine,) = browser.get(f"{PREFIX}/tokens").json()
    assert browser.delete(f"{PREFIX}/tokens/{mine['id']}").status_code == 204
    assert robot.get(f"{PREFIX}/cases").status_code == 401
    assert robot.get(f"{PREFIX}/cases").headers["www-authenticate"] == "Bearer"


def test_a_large_body_is_refused_before_it_is_read(served: Served) -> None:
    anna = served.browser("anna")
    body = b"x" * (security.BODY_BYTES + 1)
    for path in (f"{PREFIX}/cases", f"{PREFIX}/session", "/login"):
        assert anna.post(path, content=body).status_code == 413


def test_nothing_of_an_upload_is_read_before_it_is_known_who_sends_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: Request) -> Any:
        raise AssertionError("the body was read")

    anna = served.browser("anna")
    del anna.headers["X-CSRF-Token"]
    monkeypatch.setattr(Request, "form", read)
    monkeypatch.setattr(Request, "stream", read)
    path = f"{PREFIX}/uploads/x1?offset=0"
    assert served.anonymous.put(path, files={"a": b"x" * 100}).status_code == 401
    assert anna.put(path, files={"a": b"x" * 100}).status_code == 403


def test_a_page_of_a_problem_never_raises_another(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("Bearer nothing", "Basic eDp5", "?"):
        answer = served.anonymous.get("/nothing", headers={"Authorization": kind})
        assert answer.status_code == 404 and "no such page" in answer.text
    ada = served.browser("ada")
    assert ada.get("/audit", params={"before": -(10**30)}).status_code == 422
    assert served.anonymous.get("/cases", follow_redirects=False).headers["location"] == (
        "/login?next=/cases"
    )
    answer = served.anonymous.post("/cases/new", follow_redirects=False)
    assert answer.headers["location"] == "/login"

    browser = TestClient(served.app, raise_server_exceptions=False, cookies=ada.cookies)
    for error, status in ((OperationalError("", {}, Exception()), 503), (ValueError(), 500)):
        monkeypatch.setattr(Database, "read", Mock(side_effect=error))
        for path in ("/cases", "/nothing", f"{PREFIX}/cases"):
            answer = browser.get(path)
            assert answer.status_code == (404 if "nothing" in path and status == 503 else status)
            assert "content-security-policy" in answer.headers
            assert answer.headers["cache-control"] == "no-store"


def test_attempts_are_counted_by_address() -> None:
    moment = [0.0]
    attempts = Attempts(most=2, clock=lambda: moment[0])
    assert [attempts.allowed("a") for _ in range(3)] == [True, True, False]
    assert attempts.allowed("b")
    moment[0] = 61
    assert attempts.allowed("a")


def test_too_many_attempts_to_log_in(served: Served) -> None:
    served.app.state.attempts.most = 1
    given = {"name": "anna", "password": "wrong password"}
    assert served.anonymous.post(f"{PREFIX}/session", json=given).status_code == 401
    assert served.anonymous.post(f"{PREFIX}/session", json=given).status_code == 429


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    secret = security.secret_of(tmp_path)
    assert security.secret_of(tmp_path) == secret and len(secret) == 32
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(InputError, match="damaged"):
        security.secret_of(tmp_path)
    token = security.cross_site_token(secret, "session")
    assert security.is_cross_site_token(secret, "session", token)
    assert not security.is_cross_site_token(secret, "session", "é")


def test_settings_come_from_the_environment() -> None:
    environment = {"LEUKOSCOPE_REVIEW_PORT": "9000", "LEUKOSCOPE_REVIEW_BEHIND_TLS": "true"}
    found = settings_of(environment, bundle=Path("b"), host=None, port=None)
    assert (found.port, found.behind_tls, found.host) == (9000, True, "127.0.0.1")
    assert settings_of(environment, bundle=Path("b"), port=1).port == 1
    assert settings_of({}, bundle=Path("b"), origin="https://a.example").behind_tls
    assert not settings_of({}, bundle=Path("b"), origin="http://a.example").behind_tls
    with pytest.raises(InputError, match="port") as problem:
        settings_of({"LEUKOSCOPE_REVIEW_PORT": "many"}, bundle=Path("b"))
    assert problem.value.field == "port"
