"""A request whose answer was lost is sent again: nothing is done twice. What a kill leaves is
cleared away, and no file that isn't to blame is given up."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import bundle
import pytest
from fastapi.testclient import TestClient
from serving import Served, new_case, send, serving, settled, uploads
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from store import PASSWORD, person

from leukoscope import files
from leukoscope.errors import InputError
from leukoscope.review import jobs, work, worker
from leukoscope.review.api import PREFIX
from leukoscope.review.blobs import Blobs
from leukoscope.review.database import Database
from leukoscope.review.schema import Change, Job, Upload, User


def twice(client: TestClient, method: str, path: str, **given: Any) -> Any:
    """The answer to a request that is sent two times; both must be the same."""
    first, second = (client.request(method, PREFIX + path, **given) for _ in range(2))
    assert first.status_code == second.status_code < 300, second.text
    assert first.json() == second.json()
    return second.json()


def test_acts_that_are_sent_again_are_done_once(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    (cell,) = settled(anna, case)
    seen, path = {str(cell["id"]): cell["revision"]}, f"/cases/{case}"
    label = {"label": "monocyte", "cells": seen}
    first = twice(anna, "POST", f"{path}/labels", json=label)["revision"]
    words = {"text": "odd", "revision_seen": first}
    second = twice(anna, "POST", f"/cells/{cell['id']}/comment", json=words)["revision"]
    assert second == first + 1
    undone = twice(anna, "POST", f"{path}/undo", params={"seen": second})
    assert undone["change"]["kind"] == "undo" and undone["redo"]
    assert undone["cells"][0]["label"] == "monocyte", "only the comment was taken back"
    twice(anna, "POST", f"{path}/redo", params={"seen": undone["revision"]})
    twice(anna, "PATCH", path, json={"slide": "S-2", "revision_seen": undone["revision"]})
    confirmed = twice(anna, "POST", f"{path}/confirm", json={"cells": {str(cell["id"]): 99}})
    signed = {"revision_seen": confirmed["revision"], "password": PASSWORD}
    twice(anna, "POST", f"{path}/sign", json=signed)
    wrong = anna.post(f"{PREFIX}{path}/sign", json=signed | {"password": "wrong" * 4})
    assert wrong.status_code == 401, "a signature that stands still asks for the password"
    other = served.browser("boris").post(f"{PREFIX}{path}/sign", json=signed)
    assert other.status_code == 409, "who didn't sign isn't told that he did"
    twice(anna, "POST", f"{path}/amend", json={"reason": "a wrong slide"})
    other = served.browser("boris").post(f"{PREFIX}{path}/amend", json={"reason": "a wrong slide"})
    assert other.status_code == 409
    with served.app.state.database.read() as session:
        kinds = session.scalars(select(Change.kind).order_by(Change.revision)).all()
    assert kinds == ["read", "label", "comment", "undo", "redo", "edit", "label", "sign", "amend"]


def test_the_same_said_later_is_an_act_of_its_own(served: Served) -> None:
    anna, boris = served.browser("anna"), served.browser("boris")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    (cell,) = settled(anna, case)
    path = f"{PREFIX}/cases/{case}"

    def label(client: TestClient, name: str, seen: int) -> int:
        given = {"label": name, "cells": {str(cell["id"]): seen}}
        return int(client.post(f"{path}/labels", json=given).json()["revision"])

    first = label(anna, "monocyte", cell["revision"])
    undone = anna.post(f"{path}/undo").json()["revision"]
    again = label(anna, "monocyte", undone)
    assert again == undone + 1 > first
    assert label(boris, "monocyte", again) == again + 1, "another person's word is another act"
    between = label(boris, "lymphocyte", again + 1)
    assert label(anna, "monocyte", between) == between + 1
    stale = {"label": "lymphocyte", "cells": {str(cell["id"]): first}}
    assert anna.post(f"{path}/labels", json=stale).status_code == 409


def test_what_is_made_by_a_key_is_made_once(served: Served) -> None:
    anna, key = served.browser("anna"), {"Idempotency-Key": "f3a1"}
    case = twice(anna, "POST", "/cases", json={"pseudonym": "P-1"}, headers=key)["id"]
    other = anna.post(f"{PREFIX}/cases", json={"pseudonym": "P-2"}, headers=key)
    assert other.status_code == 409 and "Idempotency-Key" in other.json()["error"]["message"]
    assert new_case(anna) != case and new_case(served.browser("boris"), "P-1") != case
    data = bundle.cell()
    given = {"name": "a.png", "size": len(data)}
    upload = twice(anna, "POST", f"/cases/{case}/uploads", json=given, headers=key)["id"]
    other = anna.post(
        f"{PREFIX}/cases/{case}/uploads", json=given | {"size": 5}, headers=key
    )  # fmt: skip
    assert other.status_code == 409
    without = [anna.post(f"{PREFIX}/cases/{case}/uploads", json=given).json() for _ in range(2)]
    assert len({upload, *(each["id"] for each in without)}) == 3
    anna.put(f"{PREFIX}/uploads/{upload}", params={"offset": 0}, content=data)
    assert twice(anna, "POST", f"/uploads/{upload}/finish")["state"] in ("received", "done")
    late = anna.post(f"{PREFIX}/cases/{case}/uploads", json=given, headers=key).json()
    assert late["id"] == upload and late["received"] == len(data)


def test_a_start_clears_away_what_a_kill_left(
    small_bundle: Path, migrated_sqlite: Path, tmp_path: Path
) -> None:
    copy, folder = tmp_path / "copy.db", tmp_path / "f"
    copy.write_bytes(migrated_sqlite.read_bytes())
    with serving(small_bundle, f"sqlite:///{copy}", folder) as made:
        person(made.app.state.database, "ada", "administrator", None)
        ada = made.browser("ada")
        case, data = new_case(ada), bundle.cell()
        given = {"name": "a.png", "size": len(data)}
        upload = ada.post(f"{PREFIX}/cases/{case}/uploads", json=given).json()["id"]
        ada.put(f"{PREFIX}/uploads/{upload}", params={"offset": 0}, content=data[:50])
    for name in ("0" * 32, ".part-x.png", "report.pdf"):
        (folder / "incoming" / name).write_bytes(b"half")
    with serving(small_bundle, f"sqlite:///{copy}", folder) as made:
        assert [path.name for path in (folder / "incoming").iterdir()] == [upload]
        ada = made.browser("ada")
        path = f"{PREFIX}/uploads/{upload}"
        assert ada.put(path, params={"offset": 50}, content=data[50:]).status_code == 200
        assert ada.post(f"{path}/finish").status_code == 200
        settled(ada, case)


def test_one_server_holds_a_folder_until_it_dies(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from leukoscope.files import sole;"
        "sole(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="Another server"):
            files.sole(tmp_path)
        other.kill()
    files.sole(tmp_path)


def died(database: Database, at: str | None = None) -> None:
    """A server takes up the job, with the file `at` in its hands, and dies."""
    with database.begin() as session:
        job = jobs.begin(session, {})
        assert job is not None
        if at and job.arguments["attempts"] > work.PATIENT:
            jobs.suspect(session, job, session.get_one(Upload, at))


def test_the_file_that_servers_die_of_is_given_up_and_no_other(served: Served) -> None:
    state, anna = served.app.state, served.browser("anna")
    state.jobs.stop()
    case = new_case(anna)
    sent = [send(anna, case, f"{n}.png", bundle.cell(seed=n)) for n in range(3)]
    for _ in range(worker.ATTEMPTS):
        died(state.database, sent[0]["id"])
    state.jobs.start()
    cells = settled(anna, case)
    assert len(cells) == 2
    found = uploads(anna, case)
    assert [found[f"{n}.png"]["state"] for n in range(3)] == ["failed", "done", "done"]
    # It can be sent once more.
    assert send(anna, case, "again.png", bundle.cell(seed=0))["state"] == "received"
    assert len(settled(anna, case)) == 3


class DiedError(Exception):
    """The server was killed."""


def test_a_job_that_gets_on_is_never_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, anna, count = served.app.state, served.browser("anna"), 2 * worker.ATTEMPTS
    state.jobs.stop()
    case = new_case(anna)
    for n in range(count):
        send(anna, case, f"{n}.png", bundle.cell(seed=n))
    monkeypatch.setattr(work, "TOGETHER", 1)
    monkeypatch.setattr(work, "DEPTH", 1)
    for _ in range(count - 1):
        written = one_more_file(state, anna, case)
    assert written == count - 1
    state.jobs.start()
    assert len(settled(anna, case)) == count


def one_more_file(state: Any, anna: TestClient, case: str) -> int:
    """Take up the job and die as soon as another cell is written; the cells there are then."""

    def there() -> int:
        return len(anna.get(f"{PREFIX}/cases/{case}/cells").json()["cells"])

    def check() -> None:
        if there() > before:
            raise DiedError

    before = there()
    with state.database.begin() as session:
        job = jobs.begin(session, {})
        assert job is not None and job.arguments["attempts"] <= work.PATIENT
        by = session.get_one(User, job.user_id)
    with pytest.raises(DiedError):
        work.take_in(dataclasses.replace(state.jobs.tools, check=check), job, by)
    return there()


def test_a_blob_that_was_cut_short_is_stored_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, synced = Blobs(tmp_path), []
    monkeypatch.setattr(files, "sync_folder", lambda folder: synced.append(folder))
    sha256 = blobs.put(b"picture")
    place = blobs.path(sha256)
    assert {place.parent, blobs.folder} <= set(synced), "its name survives a power cut, too"
    place.write_bytes(b"pic")
    assert blobs.put(b"picture") == sha256 and place.read_bytes() == b"picture"
    place.write_bytes(b"")
    (tmp_path / "file").write_bytes(b"picture")
    assert blobs.take(tmp_path / "file") == sha256 and place.read_bytes() == b"picture"
    assert not list(blobs.incoming.iterdir())


@pytest.mark.parametrize("problem", [ConnectionResetError, BrokenPipeError])
def test_a_database_that_goes_away_is_said_to_be_away(
    database: Database, problem: type[Exception]
) -> None:
    for moment in (database.read, database.begin):
        with pytest.raises(OperationalError), moment() as session:
            session.scalars(select(Job)).all()
            raise problem
