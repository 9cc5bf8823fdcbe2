"""Bounds and turns under load, and what whoever runs the server sees: health, metrics, logs."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import bundle
import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, new_case, send, serving, settled, uploads
from sqlalchemy.exc import DataError, OperationalError
from store import PASSWORD, person

from leukoscope.review import accounts, limits, logs, work, worker
from leukoscope.review.api import PREFIX
from leukoscope.review.database import Database
from leukoscope.review.limits import Bounded, Gate, aside
from leukoscope.review.metrics import route_of
from leukoscope.review.problems import TooMany

TOKEN = "a-token-for-monitoring"


@pytest.fixture
def small(small_bundle: Path, tmp_path: Path, database_url: str) -> Iterator[Served]:
    """A server that lets little wait; `ada` administers, `anna` reviews."""
    bounds = {"files_per_user": 2, "files_waiting": 3, "jobs_per_user": 1, "jobs_waiting": 2}
    folder = tmp_path / "f"
    with serving(small_bundle, database_url, folder, metrics_token=TOKEN, **bounds) as made:
        ada = person(made.app.state.database, "ada", "administrator", None)
        for name in ("anna", "boris"):
            person(made.app.state.database, name, "reviewer", ada)
        yield made


def refused(answer: httpx.Response, words: str) -> None:
    """429 in the one shape of an error, saying when to try again."""
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    error = answer.json()["error"]
    assert error["code"] == "too_many" and words in error["message"] and error["fix"]


# --- the queue ------------------------------------------------------------------------------------


def announce(client: TestClient, case: str, name: str = "a.png") -> httpx.Response:
    """The answer to an announced file."""
    return client.post(f"{PREFIX}/cases/{case}/uploads", json={"name": name, "size": 10})


def test_files_that_wait_are_bounded_by_person_and_in_all(small: Served) -> None:
    anna, boris = small.browser("anna"), small.browser("boris")
    case, other = new_case(anna), new_case(boris)
    kept = [announce(anna, case).json()["id"] for _ in range(2)]
    refused(announce(anna, case), "2 files of yours are on their way")
    assert announce(boris, other).status_code == 201
    refused(announce(boris, other), "3 files are on their way")
    assert anna.delete(f"{PREFIX}/uploads/{kept[0]}").status_code == 204
    assert announce(anna, case).status_code == 201


def test_cases_that_wait_are_bounded_and_what_was_announced_is_taken(small: Served) -> None:
    small.app.state.jobs.stop()  # so that they wait
    anna, boris = small.browser("anna"), small.browser("boris")
    first, second = new_case(anna), new_case(anna)
    send(anna, first, "a.png", bundle.cell())
    refused(announce(anna, second), "1 cases of yours wait")
    refused(anna.post(f"{PREFIX}/cases/{second}/reread"), "1 cases of yours wait")
    answer = anna.post(f"/cases/{second}/reread", data={"csrf_token": anna.headers["X-CSRF-Token"]})
    assert answer.status_code == 429 and "cases of yours wait" in answer.text
    assert answer.headers["Retry-After"]
    send(anna, first, "b.png", bundle.cell(seed=1))  # its case has its job already
    other = new_case(boris)
    announced = announce(boris, other).json()["id"]  # the third file in all
    small.app.state.settings = small.app.state.settings.model_copy(update={"jobs_waiting": 1})
    path = f"{PREFIX}/uploads/{announced}"
    assert boris.put(path, params={"offset": 0}, content=b"0123456789").status_code == 200
    assert boris.post(f"{path}/finish").status_code == 200  # promised before
    small.app.state.jobs.start()
    assert len(settled(anna, first)) == 2
    settled(boris, other)
    assert announce(anna, second).status_code == 201


def test_everybody_has_their_turn(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TURN", 0.0)
    monkeypatch.setattr(work, "TOGETHER", 1)
    served.app.state.jobs.stop()
    people = {name: served.browser(name) for name in ("anna", "boris")}
    cases = {name: new_case(client) for name, client in people.items()}
    for n in range(8):  # anna was first, with much more
        send(people["anna"], cases["anna"], f"{n}.png", bundle.cell(seed=n))
    for n in range(2):
        send(people["boris"], cases["boris"], f"{n}.png", bundle.cell(seed=n))
    served.app.state.jobs.start()
    ids = {
        name: sorted(cell["id"] for cell in settled(client, cases[name]))
        for name, client in people.items()
    }
    assert len(ids["anna"]) == 8 and len(ids["boris"]) == 2
    assert ids["boris"][1] < ids["anna"][4], ids  # in turn, not after all of anna's
    found = uploads(people["anna"], cases["anna"])
    assert all(upload["state"] == "done" for upload in found.values())
    (job,) = people["anna"].get(f"{PREFIX}/cases/{cases['anna']}/jobs").json()["jobs"]
    assert (job["done"], job["total"]) == (8, 8)


def test_a_gate_counts_by_key_and_in_all() -> None:
    gate = Gate(3, 2, "things")
    with gate.inside("a"), gate.inside("a"):
        with pytest.raises(TooMany, match="You have 2 things"), gate.inside("a"):
            pass
        with gate.inside("b"), pytest.raises(TooMany, match="server has 3"), gate.inside("c"):
            pass
    with gate.inside("a"), gate.inside("a"), gate.inside("c"):
        pass


def test_requests_at_once_are_bounded_but_health_is_answered() -> None:
    async def run() -> None:
        inside, leave = anyio.Event(), anyio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
            if scope["path"] == "/slow":
                inside.set()
                await leave.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})

        app = Bounded(slow, Gate(1, 1, "requests"), ("/streams/",))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.get, "/slow")
                await inside.wait()
                refused(await client.get("/other"), "1 requests under way")
                page = await client.get("/other", headers={"Accept": "text/html"})
                assert page.status_code == 429 and page.headers["refresh"] == "1"
                assert "Nothing was done" in page.text
                form = await client.post("/other", headers={"Accept": "text/html"})
                assert form.status_code == 429 and "refresh" not in form.headers
                assert (await client.get("/health")).text == "ok"
                assert (await client.put("/streams/1")).text == "ok"
                leave.set()
            assert (await client.get("/other")).text == "ok"

    anyio.run(run)


def test_what_is_slow_waits_aside_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits._ASIDE, "long", (1, 2))
    release, running = threading.Event(), threading.Semaphore(0)

    @aside("long")
    def route(number: int) -> int:
        running.release()
        release.wait(10)
        return number

    async def run() -> list[Any]:
        said: list[Any] = []

        async def one(number: int) -> None:
            try:
                said.append(await route(number))
            except TooMany:
                said.append("refused")
                release.set()

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(one, number)
                await anyio.wait_all_tasks_blocked()
        return said

    said = anyio.run(run)
    assert said == ["refused", 0, 1, 2]


def test_streams_of_one_person_are_bounded(served: Served) -> None:
    anna = served.browser("anna")
    case, state = new_case(anna), served.app.state
    upload = announce(anna, case).json()["id"]
    state.streams = Gate(1, 1, "uploads")
    with served.app.state.database.read() as session:
        by = next(u.id for u in accounts.users(session) if u.name == "anna")
    with state.streams.inside(by):
        answer = anna.put(f"{PREFIX}/uploads/{upload}", params={"offset": 0}, content=b"0123456789")
        refused(answer, "1 uploads under way")
    answer = anna.put(f"{PREFIX}/uploads/{upload}", params={"offset": 0}, content=b"0123456789")
    assert answer.status_code == 200


def test_a_silent_upload_is_cut_off_and_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leukoscope.review import intake

    monkeypatch.setattr(intake, "SILENCE", 0.05)
    anna = served.browser("anna")
    upload = announce(anna, new_case(anna)).json()["id"]

    async def chunks() -> Any:
        yield b"01234"
        await anyio.sleep(5)

    async def run() -> None:
        state = served.app.state
        with pytest.raises(TimeoutError):
            await intake.append(state.database, state.blobs, upload, 0, chunks())

    anyio.run(run)
    assert anna.get(f"{PREFIX}/uploads/{upload}").json()["received"] == 5


def test_passwords_are_compared_outside_of_the_writing_transaction(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, free = served.app.state.database, []

    def spied(function: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*given: Any) -> Any:
            def write() -> None:
                with database.begin():
                    free.append(function.__name__)

            other = threading.Thread(target=write)
            other.start()
            other.join(5)
            return function(*given)

        return spy

    for name in ("_verified", "_hash"):
        monkeypatch.setattr(accounts, name, spied(getattr(accounts, name)))
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    settled(anna, case)
    revision = anna.get(f"{PREFIX}/cases/{case}").json()["revision"]
    given = {"revision_seen": revision, "password": PASSWORD}
    assert anna.post(f"{PREFIX}/cases/{case}/sign", json=given).status_code == 201
    given = {"old": PASSWORD, "new": "another long password"}
    assert anna.put(f"{PREFIX}/session/password", json=given).status_code == 204
    person(database, "eve", "viewer", _ada(served))
    assert free == ["_verified"] * 3 + ["_hash"] * 2


def _ada(served: Served) -> Any:
    with served.app.state.database.read() as session:
        return next(u for u in accounts.users(session) if u.name == "ada")


# --- health and metrics ---------------------------------------------------------------------------


def test_ready_says_what_is_wrong(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = served.anonymous
    assert ask.get("/ready").json() == dict.fromkeys(
        ("database", "folder", "model", "worker"), "ok"
    )
    served.app.state.jobs.stop()
    incoming = served.app.state.blobs.incoming
    incoming.rmdir()

    def gone(_: Database) -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(Database, "read", gone)
    answer = ask.get("/ready")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert all(word in message for word in ("database", "folder of images", "worker"))
    assert ask.get("/health").status_code == 200  # alive all the same


def test_the_worker_survives_whatever_fails(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.01)
    real, failed = small.app.state.jobs._work, threading.Event()

    def once() -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("a bug")
        real()

    monkeypatch.setattr(small.app.state.jobs, "_work", once)
    small.app.state.jobs.wake()
    assert failed.wait(5)
    anna = small.browser("anna")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    assert len(settled(anna, case)) == 1
    assert measured(small)["leukoscope_worker_restarts_total"] == 1


def measured(served: Served) -> dict[str, float]:
    """The sum of each metric over its labels."""
    found: dict[str, float] = {}
    for one in text_string_to_metric_families(_metrics(served)):
        for sample in one.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def _metrics(served: Served) -> str:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = served.anonymous.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


def test_metrics(small: Served) -> None:
    anna = small.browser("anna")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    settled(anna, case)
    announce(anna, case, "b.png")
    small.app.state.jobs.tools.metrics.errors.labels("OperationalError").inc()
    found = measured(small)
    assert found["leukoscope_cells_read_total"] == 1
    assert found["leukoscope_worker_alive"] == 1
    assert found["leukoscope_database_errors_total"] == 1
    assert found["leukoscope_files"] == 1
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["leukoscope_request_seconds_count"] == found["leukoscope_requests_total"] > 5
    text = _metrics(small)
    assert 'leukoscope_jobs{state="done"} 1.0' in text
    one = 'method="POST",route="/api/v1/cases/{case_id}/uploads",status="201"'
    assert f"leukoscope_requests_total{{{one}}} 2.0" in text
    assert "anna" not in text and case not in text


def test_who_sees_the_metrics(small: Served) -> None:
    assert small.anonymous.get("/metrics").status_code == 401
    assert small.browser("anna").get("/metrics").status_code == 403
    assert small.browser("ada").get("/metrics").status_code == 200
    for token in ("", "a-token-for-monitorin", "a-token-for-monitoring2"):
        headers = {"Authorization": f"Bearer {token}"}
        assert small.anonymous.get("/metrics", headers=headers).status_code == 401
    assert small.program("ada", "read").get("/metrics").status_code == 403
    state = small.app.state
    state.settings = state.settings.model_copy(update={"metrics_token": ""})
    for token in ("", TOKEN):  # none opens anything then
        headers = {"Authorization": f"Bearer {token}"}
        assert small.anonymous.get("/metrics", headers=headers).status_code == 401


def test_database_errors_are_counted(small: Served) -> None:
    with pytest.raises(Exception, match="no_such"), small.app.state.database.read() as session:
        session.connection().exec_driver_sql("SELECT * FROM no_such")
    assert measured(small)["leukoscope_database_errors_total"] == 1


def test_routes_are_named_by_their_templates(small: Served) -> None:
    for path in ("/api/v1/cases/abc", "/cases/abc/review", "/static/app.css", "/x/y", "/health"):
        small.anonymous.request("BREW", path)
        small.anonymous.get(path)
    routes = {
        sample.labels["route"]
        for family in text_string_to_metric_families(_metrics(small))
        for sample in family.samples
        if sample.name == "leukoscope_requests_total"
    }
    known = {"/api/v1/cases/{case_id}", "/static", "none"}
    assert known <= routes <= known | {"/cases/{case_id}/review", "/health", "/metrics", "/login"}
    assert 'method="other"' in _metrics(small)
    assert route_of({"path": "/a/b"}) == "none"


# --- logs -----------------------------------------------------------------------------------------

MARK = "Zz7Marker"


@pytest.fixture
def written() -> Iterator[list[io.StringIO]]:
    """Everything that is logged, as JSON lines and as text."""
    root, level = logging.getLogger(), logs.requests.level
    handlers = [logging.StreamHandler(io.StringIO()) for _ in range(2)]
    for handler, shape in zip(handlers, (logs._Lines(), logs._Words()), strict=True):
        handler.setFormatter(shape)
        root.addHandler(handler)
    logs.requests.setLevel(logging.INFO)
    yield [handler.stream for handler in handlers]
    logs.requests.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)


def test_no_name_pseudonym_file_comment_or_query_is_logged_or_measured(
    small: Served, written: list[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = _ada(small)
    person(small.app.state.database, f"{MARK} Miller", "reviewer", ada)
    client = small.browser(f"{MARK} Miller")
    given = dict.fromkeys(("pseudonym", "slide", "stain", "notes"), MARK)
    case = client.post(f"{PREFIX}/cases", json=given).json()["id"]
    send(client, case, f"{MARK}.png", bundle.cell())
    send(client, case, f"{MARK}.zip", b"PK\x03\x04 broken")
    (cell,) = settled(client, case)
    seen = {"text": MARK, "revision_seen": cell["revision"]}
    assert client.post(f"{PREFIX}/cells/{cell['id']}/comment", json=seen).status_code == 200
    client.get("/cases", params={"q": MARK})
    client.get(f"/{MARK}/x", params={MARK: MARK})
    client.get(f"{PREFIX}/cases/{MARK}")
    client.post("/login", data={"name": MARK, "password": MARK})
    client.post(f"{PREFIX}/tokens", json={"name": MARK, "scopes": ["read"], "days": 1})
    client.post(f"{PREFIX}/cases/{case}/amend", json={"reason": MARK})
    client.post(f"{PREFIX}/session", json={MARK: MARK})
    _fail(small, client, monkeypatch)
    said, words = (stream.getvalue() for stream in written)
    lines = [json.loads(line) for line in said.splitlines()]
    assert MARK not in said and MARK not in words and MARK not in _metrics(small)
    about = [line for line in lines if line["message"] == "request"]
    assert len(about) > 15
    with small.app.state.database.read() as session:
        user = next(u.id for u in accounts.users(session) if u.name.startswith(MARK))
    one = next(line for line in about if line["route"] == "/api/v1/cases/{case_id}/uploads")
    assert (one["user"], one["method"], one["status"]) == (user, "POST", 201)
    assert one["ms"] > 0 and one["level"] == "info" and one["at"].startswith("20")
    assert len({line["request"] for line in about}) == len(about)
    raised = [line for line in lines if "raised" in line]
    assert len(raised) >= 1 and any("ValueError" in line["raised"][-1] for line in raised)
    assert any("database doesn't answer" in line["message"] for line in lines)
    assert "ValueError" in words


def _fail(small: Served, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures whose words quote what they failed on."""
    quiet = TestClient(small.app, raise_server_exceptions=False, cookies=client.cookies)
    log = logging.getLogger("leukoscope.review")
    try:
        raise ValueError(MARK) from DataError(MARK, {"x": MARK}, Exception(MARK))
    except ValueError:
        log.exception("it failed")
        logging.getLogger("asyncio").error("Task failed: %s", MARK)
    away = OperationalError(MARK, {"name": MARK}, Exception({"C": "57P01", "D": MARK}))

    def gone(_: Database) -> None:
        raise away

    with monkeypatch.context() as patch:
        patch.setattr(Database, "read", gone)
        assert quiet.get(f"{PREFIX}/cases").status_code == 503


def test_every_answer_names_its_request(small: Served, written: list[io.StringIO]) -> None:
    answer = small.anonymous.get(f"{PREFIX}/cases", headers={"X-Request-ID": "mine"})
    assert answer.status_code == 401
    line = json.loads(written[0].getvalue().splitlines()[-1])
    assert line["request"] == answer.headers["X-Request-ID"] != "mine"
    assert line["user"] is None
