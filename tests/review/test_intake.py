"""Files on their way in: interrupted, doubled, hostile; archives; single cells and fields."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import bundle
import numpy as np
import pytest
from serving import Served, new_case, send, serving, settled, uploads
from sqlalchemy.exc import OperationalError
from store import person

from leukoscope.errors import InputError, UnreadableError
from leukoscope.imaging.cells import Box, crop, find_cells
from leukoscope.imaging.read import read_image
from leukoscope.review import files, intake
from leukoscope.review.api import PREFIX
from leukoscope.review.blobs import Blobs
from leukoscope.review.decoding import Decoder
from leukoscope.review.untrusted import Limits


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[Blobs]:
    limits = Limits(file_bytes=100_000, archive_bytes=300_000, members=5)
    decoder = Decoder(limits, processes=1)
    yield Blobs(tmp_path / "store", decoder)
    decoder.close()


@pytest.fixture
def limited(small_bundle: Path, tmp_path: Path, migrated_sqlite: Path) -> Iterator[Served]:
    """A server that takes little, with one administrator."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(migrated_sqlite.read_bytes())
    limits = {"file_bytes": 50_000, "archive_bytes": 100_000, "cells_per_case": 4}
    with serving(small_bundle, f"sqlite:///{copy}", tmp_path / "f", **limits) as made:
        person(made.app.state.database, "ada", "administrator", None)
        yield made


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def test_an_interrupted_upload_goes_on(served: Served) -> None:
    anna = served.browser("anna")
    case, data = new_case(anna), bundle.cell(size=96)
    given = {"name": "../../etc/a.png", "size": len(data)}
    upload = anna.post(f"{PREFIX}/cases/{case}/uploads", json=given).json()
    assert upload["name"] == "etc/a.png"
    path = f"{PREFIX}/uploads/{upload['id']}"
    assert anna.put(path, params={"offset": 0}, content=data[:100]).json()["received"] == 100
    wrong = anna.put(path, params={"offset": 0}, content=data)
    assert wrong.status_code == 409 and "100" in wrong.json()["error"]["message"]
    assert anna.post(f"{path}/finish").status_code == 409
    too_much = anna.put(path, params={"offset": 100}, content=data)
    assert too_much.status_code == 422

    def broken() -> Iterator[bytes]:
        yield data[100:150]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        anna.put(path, params={"offset": 100}, content=broken())
    received = anna.get(path).json()["received"]
    assert received >= 100
    assert anna.put(path, params={"offset": received}, content=data[received:]).status_code == 200
    assert anna.post(f"{path}/finish").json()["state"] == "received"
    assert anna.post(f"{path}/finish").status_code == 200  # again is harmless
    assert anna.put(path, params={"offset": len(data)}, content=b"").status_code == 409
    (cell,) = settled(anna, case)
    assert (cell["width"], cell["height"]) == (96, 96)


def test_the_same_file_again_is_recognised(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    first = send(anna, case, "a.png", bundle.cell())
    again = send(anna, case, "b.png", bundle.cell())
    assert (again["state"], again["duplicate_of"]) == ("duplicate", first["id"])
    archive = zipped(**{"c.png": bundle.cell(), "d.png": bundle.cell(seed=9)})
    send(anna, case, "both.zip", archive)
    assert len(settled(anna, case)) == 2
    states = {name: upload["state"] for name, upload in uploads(anna, case).items()}
    assert states == {"a.png": "done", "b.png": "duplicate", "both.zip": "done",
                      "c.png": "duplicate", "d.png": "done"}  # fmt: skip
    other = new_case(anna)
    assert send(anna, other, "a.png", bundle.cell())["state"] == "received"


def test_what_cant_be_read_is_said_and_stops_nothing(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "good.png", bundle.cell())
    send(anna, case, "text.png", b"this is text")
    send(anna, case, "half.png", bundle.cell(seed=3)[:300])
    send(anna, case, "broken.zip", b"PK\x03\x04 and no more")
    assert len(settled(anna, case)) == 1
    found = uploads(anna, case)
    assert found["good.png"]["state"] == "done"
    for name, word in (("text.png", "text"), ("half.png", "PNG"), ("broken.zip", "zip")):
        assert found[name]["state"] == "failed" and word in found[name]["error"]
        assert anna.get(f"{PREFIX}/uploads/{found[name]['id']}/image").status_code == 404
    lines = anna.get(f"{PREFIX}/cases/{case}/audit").json()["entries"]
    logged = {json.loads(e["details"])["name"]: e for e in lines if e["action"] == "failed upload"}
    assert set(logged) == {"text.png", "half.png", "broken.zip"}
    for name, line in logged.items():
        assert line["user"] == "anna" and line["model_sha256"]
        assert json.loads(line["details"])["error"] == found[name]["error"]
    assert anna.get(f"{PREFIX}/uploads/{found['good.png']['id']}/image").status_code == 200


def test_a_file_that_is_given_up_no_longer_waits(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    given = {"name": "a.png", "size": 10}
    upload = anna.post(f"{PREFIX}/cases/{case}/uploads", json=given).json()
    path = f"{PREFIX}/uploads/{upload['id']}"
    anna.put(path, params={"offset": 0}, content=b"12345")
    assert anna.delete(path).status_code == 204
    assert not list(served.app.state.blobs.incoming.iterdir())
    assert anna.get(path).json()["state"] == "failed"
    assert anna.delete(path).status_code == 409


def test_limits(limited: Served) -> None:
    ada = limited.browser("ada")
    case = new_case(ada)
    for name, size in (("a.png", 50_001), ("a.zip", 100_001), ("a.png", 0)):
        given = {"name": name, "size": size}
        assert ada.post(f"{PREFIX}/cases/{case}/uploads", json=given).status_code == 422
    send(ada, case, "three.png", bundle.field(3))
    send(ada, case, "two.png", bundle.field(2))
    assert len(settled(ada, case)) == 3
    assert "more than 4 cells" in uploads(ada, case)["two.png"]["error"]


def test_an_override_of_what_a_picture_shows(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "whole.png", bundle.field(3), kind="cell")
    send(anna, case, "none.png", bundle.cell("erythroblast"), kind="field")
    cells = settled(anna, case)
    assert [c["field_name"] for c in cells if c["x"] is None] == ["whole.png"]
    assert uploads(anna, case)["none.png"]["kind"] == "field"


def test_a_file_sent_again_as_something_else_is_no_duplicate(served: Served) -> None:
    anna = served.browser("anna")
    case, data = new_case(anna), bundle.field(3)
    states = []
    for kind in ("cell", "auto", "field", "field"):
        states.append(send(anna, case, "a.png", data, kind=kind)["state"])
        settled(anna, case)
    assert states == ["received", "duplicate", "received", "duplicate"]


def test_cells_of_a_field_lie_where_they_are_said_to(served: Served) -> None:
    anna = served.browser("anna")
    case = new_case(anna)
    send(anna, case, "field.png", bundle.field(3))
    boxes = sorted((c["x"], c["y"], c["box_width"], c["box_height"]) for c in settled(anna, case))
    for box, centre in zip(boxes, (60, 190, 320), strict=True):
        assert abs(box[0] + box[2] / 2 - centre) < 4 and abs(box[1] + box[3] / 2 - 100) < 4
    upload = uploads(anna, case)["field.png"]
    assert (upload["kind"], upload["width"], upload["height"]) == ("field", 400, 300)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (zipped(), "no files"),
        (zipped(**{f"{n}.png": b"x" for n in range(6)}), "6 files"),
        (zipped(**{f"{n}.png": bytes([n]) * 90_000 for n in range(4)}), "360,000 bytes"),
        (b"PK\x03\x04", "damaged"),
    ],
)
def test_archives_beyond_the_limits(data: bytes, why: str, blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match=why):
        list(files.members(path, blobs))


def test_members_of_an_archive(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    members = {
        "../../../tmp/evil.png": b"evil",
        "inner.zip": zipped(a=b"1"),
        "big.png": b"\0" * 100_001,
        "empty.png": b"",
        "__MACOSX/._a.png": b"x",
    }
    path.write_bytes(zipped(**members))
    found = {member.name: member for member in files.members(path, blobs)}
    assert set(found) == {"tmp/evil.png", "inner.zip", "big.png", "empty.png"}
    assert blobs.path(str(found["tmp/evil.png"].sha256)).read_bytes() == b"evil"
    assert "zip inside a zip" in found["inner.zip"].error
    assert "more than 100,000 bytes" in found["big.png"].error
    assert "empty" in found["empty.png"].error
    assert not list(blobs.incoming.iterdir())


def test_a_zip_bomb_is_stopped_while_it_unpacks(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    blobs.decoder.limits = Limits(file_bytes=10**8, archive_bytes=10**8)
    path.write_bytes(zipped(**{"a.png": b"\0" * 50_000_000}))
    (member,) = files.members(path, blobs)
    assert "200 times" in member.error and member.sha256 is None


def test_encrypted_and_damaged_members(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    data = bytearray(zipped(**{"a.png": b"some bytes that don't shrink"}))
    encrypted = data.copy()
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(encrypted)
    assert "encrypted" in next(files.members(path, blobs)).error
    data[40] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in next(files.members(path, blobs)).error


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_spoils_nothing_else(method: int, blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("bad.png", bytes(range(256)) * 20)
        archive.writestr("good.png", b"good")
    data = bytearray(path.read_bytes())
    data[37:60] = b"\xff" * 23
    path.write_bytes(data)
    bad, good = files.members(path, blobs)
    assert bad.sha256 is None and bad.error
    assert good.sha256 and not list(blobs.incoming.iterdir())


def test_the_list_of_an_archive_is_bounded(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(**{f"{n}{'x' * 900}.png": b"x" for n in range(5)}))
    blobs.decoder.limits = Limits(members=1)
    with pytest.raises(UnreadableError, match="damaged"):
        list(files.members(path, blobs))


def test_an_upload_survives_a_database_that_fails_when_it_is_noted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = served.browser("anna")
    case, data = new_case(anna), bundle.cell()
    given = {"name": "a.png", "size": len(data)}
    upload = anna.post(f"{PREFIX}/cases/{case}/uploads", json=given).json()
    path = f"{PREFIX}/uploads/{upload['id']}"
    anna.put(path, params={"offset": 0}, content=data)

    def gone(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(intake, "twin", gone)
        assert anna.post(f"{path}/finish").status_code == 503
    assert anna.post(f"{path}/finish").json()["state"] == "received"
    assert len(settled(anna, case)) == 1
    assert not list(served.app.state.blobs.incoming.iterdir())


@pytest.mark.parametrize(
    ("size", "boxes", "shows"),
    [
        ((360, 363), [Box(100, 100, 150, 150)], "cell"),
        ((360, 363), [], "cell"),
        ((640, 480), [], "field"),
        ((360, 363), [Box(10, 10, 60, 60), Box(150, 150, 80, 80)], "cell"),  # one in the middle
        ((360, 363), [Box(10, 10, 90, 90), Box(150, 150, 80, 80)], "cell"),  # a larger neighbour
        ((480, 480), [Box(20, 250, 180, 180)], "field"),  # one cell, beside the middle
        ((640, 480), [Box(100, 100, 180, 180)], "field"),
        ((200, 150), [Box(20, 20, 130, 110)], "cell"),
        ((300, 300), [Box(60, 0, 240, 230)], "cell"),  # cut out at its field's border
        ((1000, 1000), [Box(10, 10, 90, 90), Box(800, 700, 90, 90)], "field"),
        ((1000, 1000), [Box(450, 450, 90, 90)], "field"),  # too far away for one cell's picture
        ((1000, 1000), [Box(150 * n, 450, 140, 140) for n in range(6)], "field"),
    ],
)
def test_what_a_picture_shows(size: tuple[int, int], boxes: list[Box], shows: str) -> None:
    assert files.shows(*size, boxes) == shows


@pytest.mark.real
def test_real_fields_and_cells_are_told_apart(bccd: Path, pbc: Path) -> None:
    def share(images: list[np.ndarray], kind: str) -> float:
        said = [files.shows(i.shape[1], i.shape[0], find_cells(i)) for i in images]
        return said.count(kind) / len(said)

    fields = [read_image(path) for path in sorted((bccd / "images").iterdir())[::18]]
    assert share(fields, "field") >= 0.95
    assert share([field[:, 80:560] for field in fields], "field") >= 0.75
    assert share([one for f in fields for one in crop(f, find_cells(f))], "cell") >= 0.95
    assert share([read_image(path) for path in sorted(pbc.rglob("*.jpg"))[::80]], "cell") >= 0.9


def test_blobs(blobs: Blobs) -> None:
    sha256 = blobs.put(bundle.cell(size=300))
    assert blobs.put(bundle.cell(size=300)) == sha256
    small = blobs.thumbnail(sha256, 96)
    assert read_image(small).shape == (96, 96, 3)
    assert blobs.shown(sha256)[1] == "image/png"
    tiff = blobs.put(bundle.cell(kind="TIFF"))
    path, media_type = blobs.shown(tiff)
    assert media_type == "image/png" and read_image(path).shape == (64, 64, 3)
    with pytest.raises(InputError, match="thumbnail"):
        blobs.thumbnail(sha256, 97)
    for name in ("0" * 64, "../secret"):
        with pytest.raises(InputError):
            blobs.path(name)
