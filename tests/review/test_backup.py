"""Back-up and restore: whole, also while serving, from either database to either."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundle
import pytest
from serving import Served, new_case, send, serving, settled, uploads
from sqlalchemy import func, select
from store import CLASSES, PASSWORD

from conftest import KINDS
from leukoscope import api
from leukoscope.errors import InputError
from leukoscope.review import audit
from leukoscope.review.api import PREFIX
from leukoscope.review.database import Database
from leukoscope.review.schema import Base, Change, Signature


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that is to be restored into."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'restored.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def signed(served: Served) -> Iterator[tuple[Served, str]]:
    """A server with a signed case of pictures, a field and an archive."""
    anna = served.browser("anna")
    case = new_case(anna)
    for name in CLASSES[:2]:
        send(anna, case, f"{name}.png", bundle.cell(name))
    send(anna, case, "field.png", bundle.field(), "field")
    cells = settled(anna, case)
    seen = {str(cells[0]["id"]): cells[0]["revision"]}
    anna.post(f"{PREFIX}/cases/{case}/labels", json={"label": "monocyte", "cells": seen})
    revision = anna.get(f"{PREFIX}/cases/{case}").json()["revision"]
    given = {"revision_seen": revision, "password": PASSWORD}
    assert anna.post(f"{PREFIX}/cases/{case}/sign", json=given).status_code == 201
    yield served, case


def saved(served: Served, out: Path) -> dict[str, Any]:
    settings = served.app.state.settings
    return api.backup(out, folder=settings.folder, database=settings.database)


def rows(url: str) -> dict[str, list[Any]]:
    """All rows of all tables but the sessions."""
    database = Database(url)
    with database.read() as session:
        found = {
            table.name: session.execute(select(table).order_by(*table.primary_key)).all()
            for table in Base.metadata.sorted_tables
            if table.name != "logins"
        }
    database.close()
    return found


def test_everything_comes_back_on_either_database(
    signed: tuple[Served, str], empty_url: str, small_bundle: Path, tmp_path: Path
) -> None:
    served, case = signed
    before = served.browser("vera").get(f"{PREFIX}/cases/{case}/cells").json()
    told = saved(served, tmp_path / "all.zip")
    stored = [path for path in (tmp_path / "served" / "blobs").rglob("*") if path.is_file()]
    assert told["damage"] == [] and told["images"] == len(stored) >= 4
    assert (tmp_path / "all.zip").stat().st_mode & 0o077 == 0, "only its owner may read it"
    again = api.restore(tmp_path / "all.zip", folder=tmp_path / "new", database=empty_url)
    assert again == told
    restored = rows(empty_url)
    for name, found in rows(served.app.state.settings.database_url).items():
        # What logs in since is no part of the back-up.
        assert restored[name] == found[: len(restored[name])], name
    with serving(small_bundle, empty_url, tmp_path / "new") as other:
        anna = other.browser("anna")
        assert anna.get(f"{PREFIX}/cases/{case}/cells").json() == before
        for cell in before["cells"]:
            for kind in ("image", "thumbnail", "heatmap"):
                assert anna.get(f"{PREFIX}/cells/{cell['id']}/{kind}").status_code == 200
        # New rows are numbered after those that are there.
        amended = anna.post(f"{PREFIX}/cases/{case}/amend", json={"reason": "one more cell"})
        assert amended.status_code == 200, amended.text
        send(anna, case, "later.png", bundle.cell("monocyte", seed=7))
        assert len(settled(anna, case)) == len(before["cells"]) + 1


def test_what_was_erased_is_no_damage(
    signed: tuple[Served, str], empty_url: str, tmp_path: Path
) -> None:
    served, case = signed
    why = {"reason": "kept for ten years"}
    erased = served.browser("ada").post(f"{PREFIX}/cases/{case}/erase", json=why)
    assert erased.status_code == 200 and erased.json()["files"] > 0
    told = saved(served, tmp_path / "all.zip")
    assert told["damage"] == [] and told["images"] == 0
    assert api.restore(tmp_path / "all.zip", folder=tmp_path / "new", database=empty_url) == told


def test_a_server_that_works_is_saved_as_of_one_moment(
    served: Served, tmp_path: Path, small_bundle: Path
) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "a.png", bundle.cell())
    (cell,) = settled(anna, case)
    stop, done = threading.Event(), []

    def work() -> None:
        client, revision = served.browser("anna"), cell["revision"]
        while not stop.is_set():
            label = CLASSES[len(done) % 2]
            given = {"label": label, "cells": {str(cell["id"]): revision}}
            revision = client.post(f"{PREFIX}/cases/{case}/labels", json=given).json()["revision"]
            done.append(revision)
            if len(done) % 5 == 0:
                send(client, case, f"{len(done)}.png", bundle.cell(seed=len(done)))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while len(done) < 10:
            stop.wait(0.01)
        known = done[-1]
        told = saved(served, tmp_path / "live.zip")
        at_least = len(done)
    finally:
        stop.set()
        thread.join()
    assert told["damage"] == []
    url = f"sqlite:///{tmp_path / 'live.db'}"
    api.restore(tmp_path / "live.zip", folder=tmp_path / "live", database=url)
    database = Database(url)
    with database.read() as session:
        assert audit.verify(session).intact
        assert known in session.scalars(select(Change.revision)).all()
        labels = select(func.count()).where(Change.kind == "label")
        assert 10 <= session.scalar(labels) <= at_least + 1
    database.close()
    with serving(small_bundle, url, tmp_path / "live") as other:  # what waited is done now
        settled(other.browser("anna"), case)
        present = uploads(other.browser("anna"), case).values()
        assert {one["state"] for one in present} <= {"done", "receiving"}


def test_nothing_is_overwritten(signed: tuple[Served, str], empty_url: str, tmp_path: Path) -> None:
    served, _ = signed
    out, folder = tmp_path / "all.zip", served.app.state.settings.folder
    saved(served, out)
    whole = out.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        saved(served, out)
    assert out.read_bytes() == whole
    with pytest.raises(InputError, match="isn't empty"):
        api.restore(out, folder=folder, database=empty_url)
    url = served.app.state.settings.database
    with pytest.raises(InputError, match="holds tables already"):
        api.restore(out, folder=tmp_path / "new", database=url)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="no folder of the review"):
        api.backup(tmp_path / "b.zip", folder=tmp_path / "wrong", database=url)
    missing = f"sqlite:///{tmp_path / 'wrong.db'}"
    with pytest.raises(InputError, match="no database"):
        api.backup(tmp_path / "b.zip", folder=folder, database=missing)
    assert not [path for path in tmp_path.iterdir() if "wrong" in path.name or path.name == "b.zip"]


def changed(source: Path, out: Path, change: Any) -> Path:
    """A copy of a back-up whose members went through `change(name, bytes)`, left out where None."""
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(out, "w") as made:
        for name in given.namelist():
            data = change(name, given.read(name))
            if data is not None:
                made.writestr(name, data)
    return out


def test_a_damaged_backup_is_refused_whole(
    signed: tuple[Served, str], empty_url: str, tmp_path: Path
) -> None:
    served, _ = signed
    whole = tmp_path / "all.zip"
    saved(served, whole)
    with zipfile.ZipFile(whole) as archive:
        image = next(name for name in archive.namelist() if name.startswith("blobs/"))

    def other_rows(name: str, data: bytes) -> bytes:
        return data.replace(b"monocyte", b"lymphocyte") if "changes" in name else data

    def forged(name: str, data: bytes) -> bytes:
        """The line of the audit log is another, its table's hash fits."""
        import hashlib

        tampered = zipfile.ZipFile(whole).read("tables/audit.ndjson").replace(b"anna", b"boris")
        if name == "tables/audit.ndjson":
            return tampered
        if name != "manifest.json":
            return data
        manifest = json.loads(data)
        manifest["tables"]["audit"]["sha256"] = hashlib.sha256(tampered).hexdigest()
        return json.dumps(manifest).encode()

    cases = {
        "cut": (lambda: whole.read_bytes()[:-300], "whole back-up"),
        "rows": (other_rows, "another hash"),
        "forged": (forged, "audit log"),
        "image": (lambda n, d: b"other" if n == image else d, "image"),
        "lost": (lambda n, d: None if n == image else d, "images, not"),
        "path": (lambda n, d: d if n != image else None, "images"),
        "none": (lambda n, d: None if n == "manifest.json" else d, "manifest"),
    }  # fmt: skip
    for kind, (change, why) in cases.items():
        bad = tmp_path / f"{kind}.zip"
        if kind == "cut":
            bad.write_bytes(change())
        else:
            changed(whole, bad, change)
        with pytest.raises(InputError, match=why):
            api.restore(bad, folder=tmp_path / "new", database=empty_url)
        assert not (tmp_path / "new").exists(), kind
        database = Database(empty_url)
        assert not database.exists(), kind
        database.close()
    api.restore(whole, folder=tmp_path / "new", database=empty_url)


def test_what_is_damaged_is_said_and_the_rest_saved(
    signed: tuple[Served, str], tmp_path: Path
) -> None:
    served, _ = signed
    folder = served.app.state.settings.folder
    gone, spoilt, *_ = sorted(path for path in (folder / "blobs").rglob("*") if path.is_file())
    gone.unlink()
    spoilt.write_bytes(b"spoilt")
    told = saved(served, tmp_path / "all.zip")
    assert gone.name[:12] in told["damage"][0] and spoilt.name[:12] in told["damage"][0]
    url = f"sqlite:///{tmp_path / 'new.db'}"
    again = api.restore(tmp_path / "all.zip", folder=tmp_path / "new", database=url)
    assert again == told and again["images"] >= 2
    database = Database(url)
    with database.read() as session:
        assert session.scalars(select(Signature)).one().version == 1
    database.close()
