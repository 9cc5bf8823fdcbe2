"""A case erased for good: nothing of it is left but the chain of the log."""

from __future__ import annotations

from typing import Any

import bundle
import pytest
from serving import Served, new_case, send, settled
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from store import PASSWORD, Lab

from leukoscope.review import audit
from leukoscope.review.api import PREFIX
from leukoscope.review.database import Database

MARK = "Zz7Marker"


def everything(database: Database) -> str:
    """All that the tables say."""
    said = []
    tables = ("cases", "uploads", "cells", "changes", "signatures", "jobs", "audit")
    with database.read() as session:
        for table in tables:
            said += [str(row) for row in session.execute(text(f"SELECT * FROM {table}"))]
    return "\n".join(said)


def marked(client: Any) -> str:
    """A signed case with a marker wherever something can be typed, of two files; its id."""
    given = dict.fromkeys(("pseudonym", "slide", "stain", "notes"), MARK)
    case = str(client.post(f"{PREFIX}/cases", json=given).json()["id"])
    send(client, case, f"{MARK}.png", bundle.cell())
    send(client, case, f"{MARK}-field.png", bundle.field())
    send(client, case, f"{MARK}.zip", b"PK\x03\x04" + MARK.encode())
    cell = settled(client, case)[0]
    seen = {"text": MARK, "revision_seen": cell["revision"]}
    assert client.post(f"{PREFIX}/cells/{cell['id']}/comment", json=seen).status_code == 200
    change = {"notes": f"{MARK} 2"}
    assert client.patch(f"{PREFIX}/cases/{case}", json=change).status_code == 200
    for reason in (MARK, ""):
        revision = client.get(f"{PREFIX}/cases/{case}").json()["revision"]
        given = {"revision_seen": revision, "password": PASSWORD}
        assert client.post(f"{PREFIX}/cases/{case}/sign", json=given).status_code == 201
        if reason:
            client.post(f"{PREFIX}/cases/{case}/amend", json={"reason": MARK})
    return case


def test_nothing_of_an_erased_case_is_left(served: Served) -> None:
    ada, anna = served.browser("ada"), served.browser("anna")
    database, blobs = served.app.state.database, served.app.state.blobs
    case, other = marked(anna), new_case(anna)
    send(anna, other, "same.png", bundle.cell())  # the same picture as one of the erased case
    (kept,) = settled(anna, other)
    for cell in anna.get(f"{PREFIX}/cases/{case}/cells").json()["cells"]:
        assert anna.get(f"{PREFIX}/cells/{cell['id']}/thumbnail").status_code == 200
    assert MARK in everything(database)
    with database.read() as session:
        noted = audit.verify(session).head

    path, why = f"{PREFIX}/cases/{case}/erase", {"reason": "kept for ten years"}
    assert anna.post(path, json=why).status_code == 403
    assert ada.post(path, json={"reason": ""}).status_code == 422
    assert ada.post(f"{PREFIX}/cases/x1/erase", json=why).status_code == 404
    waiting = anna.post(f"{PREFIX}/cases/{other}/uploads", json={"name": "b.png", "size": 9}).json()
    assert ada.post(path, json=why).status_code == 409
    assert anna.delete(f"{PREFIX}/uploads/{waiting['id']}").status_code == 204
    answer = ada.post(path, json=why)
    assert answer.status_code == 200 and answer.json()["files"] >= 3, answer.text

    assert MARK not in everything(database)
    files = [p for p in blobs.folder.parent.rglob("*") if p.is_file() and len(p.stem) >= 64]
    assert {p.stem[:64] for p in files} == {kept["sha256"]}
    for rest in ("", "/cells", "/signatures", "/uploads", "/exports/pdf", "/audit"):
        assert ada.get(f"{PREFIX}/cases/{case}{rest}").status_code == 404, rest
    assert [c["id"] for c in ada.get(f"{PREFIX}/cases").json()["cases"]] == [other]
    assert ada.get("/audit").status_code == 200 and ada.get("/quality").status_code == 200
    verdict = ada.get(f"{PREFIX}/audit/verify", params={"noted": noted}).json()
    assert verdict["intact"] and verdict["first_broken"] is None
    line = ada.get(f"{PREFIX}/audit").json()["entries"][0]
    assert line["action"] == "erase case" and "kept for ten years" in str(line)
    assert ada.post(path, json=why).json()["files"] == 0  # again is harmless


def test_a_case_is_erased_on_its_page_by_its_name_alone(served: Served) -> None:
    case = marked(served.browser("anna"))
    ada = served.browser("ada")
    page, path = ada.get(f"/cases/{case}/log").text, f"/cases/{case}/erase"
    assert f'action="{path}"' in page
    assert path not in served.browser("anna").get(f"/cases/{case}/log").text
    called = ada.get(f"{PREFIX}/cases/{case}").json()["pseudonym"]
    for given in (
        {"pseudonym": "another", "reason": "kept for ten years"},
        {"pseudonym": called, "reason": "x"},
    ):
        answer = ada.post(path, data=given)
        assert answer.status_code == 422 and 'role="alert"' in answer.text
    assert ada.get(f"/cases/{case}/log").status_code == 200
    right = {"pseudonym": f" {called} ", "reason": "kept for ten years"}
    answer = ada.post(path, data=right, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/cases")
    assert (
        ada.get(f"/cases/{case}/log").status_code == ada.post(path, data=right).status_code == 404
    )


def test_an_emptied_line_that_no_erasure_names_is_found(lab: Lab) -> None:
    with lab.database.begin() as session:
        session.execute(text("UPDATE audit SET details = :d WHERE id = 3"), {"d": audit.ERASED})
    with lab.database.read() as session:
        verdict = audit.verify(session)
    assert not verdict.intact and verdict.first_broken == 3


def test_nothing_but_emptying_is_let_through(lab: Lab) -> None:
    for values in (
        "details = '{}'",
        "details = '{\"erased\": true}', action = 'x'",
        "details = '{\"erased\": true}', case_id = NULL",
    ):
        with pytest.raises(DBAPIError, match="append-only"), lab.database.begin() as session:
            session.connection().exec_driver_sql(f"UPDATE audit SET {values}")
