"""The API: the whole story, two reviewers at once, restarts, other models, errors of one shape."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import bundle
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import Served, new_case, send, serving, settled, uploads
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from store import PASSWORD, person

from leukoscope.review import accounts, jobs, worker
from leukoscope.review.api import PREFIX
from leukoscope.review.database import Database
from leukoscope.review.schema import Job, Upload


def test_the_whole_story(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    for place, label in enumerate(bundle.COLOURS):
        send(anna, case, f"{label}.png", bundle.cell(label, place))
    send(anna, case, "field.png", bundle.field())
    cells = settled(anna, case)
    singles = [cell for cell in cells if cell["x"] is None]
    assert {c["field_name"]: c["predicted"] for c in singles} == {
        f"{label}.png": label for label in bundle.COLOURS
    }
    assert len(cells) - len(singles) == 3
    for cell in cells:
        assert sum(cell["probs"].values()) == pytest.approx(1)
        assert cell["confidence"] == max(cell["probs"].values())
        assert cell["predicted"] in cell["prediction_set"] or not cell["prediction_set"]

    one = singles[0]
    base = f"{PREFIX}/cells/{one['id']}"
    for path in ("thumbnail", "thumbnail?size=256", "image", "heatmap", "heatmap?label=monocyte"):
        answer = anna.get(f"{base}/{path}")
        assert answer.status_code == 200, answer.text
        Image.open(io.BytesIO(answer.content)).load()

    seen = anna.get(f"{PREFIX}/cases/{case}").json()["revision"]
    path = f"{PREFIX}/cases/{case}"
    given = {"label": "monocyte", "cells": {one["id"]: seen}}
    acted = anna.post(f"{path}/labels", json=given).json()
    assert [c["shown"] for c in acted["cells"]] == ["monocyte"]
    assert acted["undo"] and not acted["redo"]
    assert anna.post(f"{path}/undo").json()["redo"]
    assert anna.post(f"{path}/redo").json()["cells"][0]["label"] == "monocyte"
    noted = {"text": "two nucleoli", "revision_seen": 99}
    assert anna.post(f"{base}/comment", json=noted).json()["cells"][0]["comment"] == "two nucleoli"
    counted = anna.get(f"{path}/differential").json()
    assert sum(share["count"] for share in counted["reviewer"]) == len(cells)
    assert counted["agreement"]["agreed"] == len(cells) - (one["predicted"] != "monocyte")

    revision = anna.get(path).json()["revision"]
    wrong = {"revision_seen": revision, "password": "not the password"}
    assert anna.post(f"{path}/sign", json=wrong).status_code == 401
    signed = anna.post(f"{path}/sign", json={"revision_seen": revision, "password": PASSWORD})
    assert signed.status_code == 201, signed.text
    assert anna.post(f"{path}/labels", json=given).status_code == 409
    assert anna.post(f"{path}/uploads", json={"name": "x", "size": 1}).status_code == 409
    for kind, start in {"pdf": b"%PDF", "csv": b"PK", "fhir": b"{", "retraining": b"PK"}.items():
        answer = anna.get(f"{path}/exports/{kind}", params={"version": 1})
        assert answer.status_code == 200, answer.text
        assert answer.content.startswith(start)
        assert "attachment" in answer.headers["content-disposition"]
    assert not list(served.app.state.blobs.incoming.iterdir())
    assert anna.post(f"{path}/amend", json={"reason": "second look"}).json()["version"] == 2
    assert anna.get(f"{path}/signatures/1").json()["sha256"] == signed.json()["sha256"]
    assert anna.get(f"{path}/signatures/2").status_code == 404

    ada = served.browser("ada")
    assert ada.get(f"{PREFIX}/audit/verify").json()["intact"]
    actions = {line["action"] for line in anna.get(f"{path}/audit").json()["entries"]}
    assert {"create case", "upload", "read cells", "label", "undo", "sign", "export"} <= actions
    assert ada.get(f"{PREFIX}/quality").json()["periods"][0]["cells"] == len(cells)


def test_two_reviewers_see_each_other_and_lose_nothing(served: Served) -> None:
    anna, boris = served.browser("anna"), served.browser("boris")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    (cell,) = settled(anna, case)
    seen = boris.get(f"{PREFIX}/cases/{case}/cells").json()["revision"]
    given = {"label": "monocyte", "cells": {cell["id"]: cell["revision"]}}
    assert anna.post(f"{PREFIX}/cases/{case}/labels", json=given).status_code == 200
    late = boris.post(f"{PREFIX}/cases/{case}/labels", json=given | {"label": "lymphocyte"})
    assert late.status_code == 409
    assert "anna" in late.json()["error"]["message"]
    news = boris.get(f"{PREFIX}/cases/{case}/changes", params={"since": seen}).json()
    assert [(c["by"], c["label"], c["cells"]) for c in news["changes"]] == [
        ("anna", "monocyte", [cell["id"]])
    ]
    assert news["cells"][0]["shown"] == "monocyte"
    assert not news["undo"]


def test_jobs_survive_a_restart(small_bundle: Path, tmp_path: Path, database_url: str) -> None:
    folder = tmp_path / "served"
    with serving(small_bundle, database_url, folder) as first:
        person(first.app.state.database, "ada", "administrator", None)
        ada = first.browser("ada")
        case = new_case(ada)
        first.app.state.jobs.stop()
        for seed in range(3):
            send(ada, case, f"{seed}.png", bundle.cell(seed=seed))
        # Interrupted after the cell, before the upload was marked: as a crash leaves it.
        with first.app.state.database.begin() as session:
            (job,) = jobs.of_case(session, case)
            job.state = "running"
    with serving(small_bundle, database_url, folder) as second:
        ada = second.browser("ada")
        assert len(settled(ada, case)) == 3
        with second.app.state.database.begin() as session:
            for upload in uploads(ada, case).values():
                session.get_one(Upload, upload["id"]).state = "received"
            session.get_one(Job, job.id).state = "waiting"
        second.app.state.jobs.wake()
        assert len(settled(ada, case)) == 3
        assert {u["state"] for u in uploads(ada, case).values()} == {"done"}


@pytest.mark.parametrize("kind", [OperationalError, IntegrityError])
def test_a_job_waits_for_the_database_but_not_for_ever(
    kind: type[DBAPIError], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def broken(*_: object) -> None:
        tried.append(1)
        raise kind("INSERT", {}, Exception("no"))

    monkeypatch.setattr(worker, "PATIENCE", 0.01)
    monkeypatch.setitem(worker.WORK, "intake", broken)
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    with pytest.raises(AssertionError, match="failed"):
        settled(anna, case)
    assert len(tried) == (1 if kind is IntegrityError else worker.ATTEMPTS)
    assert uploads(anna, case)["a.png"]["state"] == "failed"


def test_another_model_never_overwrites(
    small_bundle: Path, tmp_path: Path, database_url: str
) -> None:
    folder = tmp_path / "served"
    with serving(small_bundle, database_url, folder) as first:
        person(first.app.state.database, "ada", "administrator", None)
        ada = first.browser("ada")
        case = new_case(ada)
        send(ada, case, "a.png", bundle.cell("neutrophil"))
        (cell,) = settled(ada, case)
        given = {"label": "monocyte", "cells": {cell["id"]: cell["revision"]}}
        ada.post(f"{PREFIX}/cases/{case}/labels", json=given)
    other = bundle.make(tmp_path / "other", "other", np.roll(bundle._WEIGHT, 1, axis=1))
    with serving(other, database_url, folder) as second:
        ada = second.browser("ada")
        assert [c["predicted"] for c in settled(ada, case)] == ["neutrophil"]
        refused = ada.post(f"{PREFIX}/cases/{case}/uploads", json={"name": "b", "size": 1})
        assert refused.status_code == 409
        assert ada.get(f"{PREFIX}/cells/{cell['id']}/heatmap").status_code == 409
        assert ada.post(f"{PREFIX}/cases/{case}/reread").status_code == 202
        (again,) = settled(ada, case)
        assert (again["predicted"], again["label"]) == ("lymphocyte", "monocyte")
        said = ada.get(f"{PREFIX}/cells/{cell['id']}/readings").json()["readings"]
        assert [r["predicted"] for r in said] == ["neutrophil", "lymphocyte"]
        models = ada.get(f"{PREFIX}/models").json()["models"]
        assert [(m["name"], m["served"]) for m in models] == [("small", False), ("other", True)]
        assert ada.get(f"{PREFIX}/cells/{cell['id']}/heatmap").status_code == 200


def test_references_come_from_signed_cases_and_a_folder_most_alike_first(
    small_bundle: Path, tmp_path: Path, migrated_sqlite: Path
) -> None:
    own = tmp_path / "references" / "monocyte"
    own.mkdir(parents=True)
    for name, label in (("a", "erythroblast"), ("b", "monocyte"), ("c", "lymphocyte")):
        (own / f"{name}.png").write_bytes(bundle.cell(label, seed=4))
    (own / "d.png").write_bytes(b"no image")
    copy = tmp_path / "r.db"
    copy.write_bytes(migrated_sqlite.read_bytes())
    with serving(
        small_bundle, f"sqlite:///{copy}", tmp_path / "f", references=tmp_path / "references"
    ) as made:
        person(made.app.state.database, "ada", "administrator", None)
        ada = made.browser("ada")
        # All are signed as monocytes; only one looks like the last case's cell.
        signed = {
            pseudonym: _signed_monocyte(ada, pseudonym, colour)
            for pseudonym, colour in (
                ("P-far", "erythroblast"), ("P-like", "monocyte"), ("P-other", "lymphocyte"),
            )
        }  # fmt: skip
        case = new_case(ada)
        send(ada, case, "a.png", bundle.cell("monocyte", seed=9))
        path = f"{PREFIX}/cells/{settled(ada, case)[0]['id']}/references"
        found = ada.get(path, params={"label": "monocyte", "limit": 7}).json()["references"]
        assert found[0]["cell_id"] == signed["P-like"]
        assert found[3]["url"].endswith("/1")  # b.png
        for of_one_kind in (found[:3], found[3:6]):
            distances = [each["distance"] for each in of_one_kind]
            assert distances == sorted(distances)
        assert found[6]["distance"] is None  # d.png, which can't be read
        for each in found[:6]:
            assert ada.get(each["url"]).headers["content-type"] == "image/png"
        assert ada.get(path, params={"label": "lymphocyte"}).json() == {"references": []}
        assert ada.get(f"{PREFIX}/references/monocyte/4").status_code == 404


def _signed_monocyte(ada: TestClient, pseudonym: str, colour: str) -> int:
    case = new_case(ada, pseudonym)
    send(ada, case, "a.png", bundle.cell(colour))
    (cell,) = settled(ada, case)
    path = f"{PREFIX}/cases/{case}"
    given = {"label": "monocyte", "cells": {cell["id"]: cell["revision"]}}
    revision = ada.post(f"{path}/labels", json=given).json()["revision"]
    signature = {"revision_seen": revision, "password": PASSWORD}
    assert ada.post(f"{path}/sign", json=signature).status_code == 201
    return int(cell["id"])


def test_the_size_of_a_pixel_begins_as_the_server_is_set(
    small_bundle: Path, tmp_path: Path, migrated_sqlite: Path
) -> None:
    copy = tmp_path / "r.db"
    copy.write_bytes(migrated_sqlite.read_bytes())
    with serving(small_bundle, f"sqlite:///{copy}", tmp_path / "f", pixel_size=0.07) as made:
        person(made.app.state.database, "ada", "administrator", None)
        ada = made.browser("ada")
        sent: dict[str, float | None]
        for sent, size in (({}, 0.07), ({"pixel_size": None}, None), ({"pixel_size": 0.2}, 0.2)):
            given = {"pseudonym": "P", **sent}
            assert ada.post(f"{PREFIX}/cases", json=given).json()["pixel_size"] == size
        path = f"{PREFIX}/cases/{new_case(ada)}"
        assert ada.patch(path, json={"stain": "W"}).json()["pixel_size"] == 0.07
        assert ada.patch(path, json={"pixel_size": None, "slide": None}).json()["slide"] == ""
        assert ada.get(path).json()["pixel_size"] is None
        assert ada.patch(path, json={"pixel_size": 60}).status_code == 422
        assert 'value="0.07"' in ada.get("/cases/new").text
        form = {"pseudonym": "P"}
        made_by_form = ada.post("/cases/new", data=form | {"pixel_size": "0,1"})
        assert 'value="0.1"' in made_by_form.text
        refused = ada.post("/cases/new", data=form | {"pixel_size": "wide"})
        assert refused.status_code == 422 and "Micrometres a pixel can&#39;t be" in refused.text


def test_errors_have_one_shape(served: Served) -> None:
    anna = served.program("anna", "read", "write")
    for method, path, body, status, code in (
        ("GET", "/nowhere", None, 404, "not_found"),
        ("PUT", "/cases", None, 405, "input"),
        ("GET", "/cases/doesnotexist", None, 404, "not_found"),
        ("POST", "/cases", {"pseudonym": ""}, 422, "input"),
        ("POST", "/cases", {"pseudonym": "x", "unknown": 1}, 422, "input"),
        ("GET", "/cases?limit=0", None, 422, "input"),
        ("GET", "/cells/99999999999999999999/image", None, 404, "not_found"),
        ("POST", "/cases", "no json", 422, "input"),
    ):
        text = body if isinstance(body, str) else json.dumps(body) if body else None
        kind = {"Content-Type": "application/json"}
        answer = anna.request(method, PREFIX + path, content=text, headers=kind)
        assert answer.status_code == status, (path, answer.text)
        (shape,) = answer.json().values()
        assert set(shape) == {"code", "message", "fix", "field"}
        assert shape["code"] == code and shape["message"]


def test_the_first_start_gives_a_link_once(
    small_bundle: Path, tmp_path: Path, database_url: str
) -> None:
    with serving(small_bundle, database_url, tmp_path / "f") as first:
        token = first.app.state.welcome.rpartition("/")[2]
        path = f"{PREFIX}/invitations/{token}"
        given = {"name": "ada", "password": PASSWORD}
        assert first.anonymous.post(path, json=given).json()["role"] == "administrator"
        assert first.anonymous.post(path, json=given).status_code == 404
    with serving(small_bundle, database_url, tmp_path / "f") as second:
        assert second.app.state.welcome is None
        assert second.anonymous.get("/health").json()["status"] == "ok"


def test_an_export_of_an_unsigned_case_says_so(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    settled(anna, case)
    answer = anna.get(f"{PREFIX}/cases/{case}/exports/csv")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert "preliminary" in archive.read(archive.namelist()[0]).decode()
    assert anna.get(f"{PREFIX}/cases/{case}/exports/retraining").status_code == 422


def test_a_database_that_is_away_is_said(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Database) -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(Database, "read", gone)
    answer = served.anonymous.get("/api/v1/cases", headers={"Authorization": "Bearer x"})
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "The database doesn't answer"
    assert served.anonymous.get("/health").json()["status"] == "ok"


def test_an_invitation_can_renew_a_password(served: Served) -> None:
    ada = served.browser("ada")
    with served.app.state.database.read() as session:
        vera = next(u for u in accounts.users(session) if u.name == "vera")
    link = ada.post(f"{PREFIX}/invitations", json={"user_id": vera.id}).json()
    given = {"name": "vera", "password": "another long password"}
    path = f"{PREFIX}/invitations/{link['token']}"
    assert served.anonymous.post(path, json=given).status_code == 201
    assert served.anonymous.post(f"{PREFIX}/session", json=given).status_code == 200
