"""The service among files that mean harm: refused or read, each in a sentence, and unhurt."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundle
import mortality
import pytest
from serving import Served, new_case, send, serving, settled, uploads
from sqlalchemy import select
from store import person

import hostile
from commands import untouched
from leukoscope.errors import LeukoscopeError, UnreadableError
from leukoscope.review import files
from leukoscope.review.api import PREFIX
from leukoscope.review.blobs import Blobs
from leukoscope.review.decoding import Decoder
from leukoscope.review.problems import DecoderFailed
from leukoscope.review.schema import Entry
from leukoscope.review.untrusted import Limits

MEMORY = 400_000_000  # bytes by which the service itself may grow meanwhile; its libraries are most
LIMITS = {
    "image_pixels": 4_000_000, "file_bytes": 2_000_000, "archive_bytes": 40_000_000,
    "archive_members": 300, "cells_per_field": 100, "decode_seconds": 60.0,
    "decode_cpu_seconds": 20, "decode_memory": 500_000_000,
}  # fmt: skip


@dataclass(frozen=True)
class Fared:
    """How each file fared: alone, as a field, in an archive; and each archive with its members."""

    alone: dict[str, Any]
    field: dict[str, Any]
    archives: dict[str, dict[str, Any]]
    grown: int
    served: Served


def _most_memory() -> int:
    """Bytes of memory that this process has had at most since the last `_forget_memory`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _forget_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def fared(
    small_bundle: Path, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fared]:
    """A server of small limits that was sent the whole corpus."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "copy.db").write_bytes(migrated_sqlite.read_bytes())
    outside = folder / "outside"
    outside.mkdir()
    (outside / "kept.png").write_bytes(bundle.cell())
    here = folder / "outside" / "inner"
    here.mkdir()
    url = f"sqlite:///{folder / 'copy.db'}"
    with serving(small_bundle, url, folder / "served", **LIMITS) as made, _inside(here):
        person(made.app.state.database, "ada", "administrator", None)
        ada = made.browser("ada")
        send(ada, new_case(ada), "good.png", bundle.cell())
        _forget_memory()
        before = _most_memory()
        with untouched(outside, small_bundle):
            alone = _sent(ada, hostile.images(), "auto")
            field = _sent(ada, hostile.images(), "field")
            archives = {n: _sent(ada, {n: d}, "auto") for n, d in hostile.archives().items()}
        grown = _most_memory() - before
        yield Fared(alone, field, archives, grown, made)


class _inside:  # noqa: N801
    """In a folder, so that what a relative path would make is seen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self.folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self.before)


def _sent(client: Any, files: dict[str, bytes], kind: str) -> dict[str, Any]:
    """The uploads of a new case that was sent these files; an empty one is refused at once."""
    case = new_case(client, "P-hostile")
    for name, data in files.items():
        if data:
            send(client, case, name, data, kind)
        else:
            given = {"name": name, "size": 0, "kind": kind}
            answer = client.post(f"{PREFIX}/cases/{case}/uploads", json=given)
            assert answer.status_code == 422 and "0 bytes" in answer.json()["error"]["message"]
    settled(client, case, seconds=240)
    return uploads(client, case)


def _told(upload: Any) -> None:
    """It was read, or why not is said in one sentence."""
    assert upload["state"] in {"done", "failed", "duplicate"}, upload
    if upload["state"] == "failed":
        assert upload["error"] and "\n" not in upload["error"] and len(upload["error"]) < 300
        assert "log has more" not in upload["error"], upload
        assert "Traceback" not in upload["error"]


NOT_EMPTY = [name for name, data in hostile.images().items() if data]


@pytest.mark.parametrize("kind", ["alone", "field"])
@pytest.mark.parametrize("name", NOT_EMPTY)
def test_images(fared: Fared, name: str, kind: str) -> None:
    upload = getattr(fared, kind)[name]
    _told(upload)
    if name == "no-image-archive.png":  # its content tells what it is
        assert (upload["kind"], upload["state"]) == ("archive", "done")
    elif name.startswith("no-image") or "bomb" in name:
        assert upload["state"] == "failed" and upload["width"] is None
    if name.startswith("polyglot"):
        assert upload["state"] == "done", upload


@pytest.mark.parametrize("name", hostile.archives())
def test_archives(fared: Fared, name: str) -> None:
    for upload in fared.archives[name].values():
        _told(upload)
        assert not upload["name"].startswith(("/", "..")) and "/../" not in upload["name"]
        assert upload["name"].isprintable()


@pytest.mark.parametrize(
    ("name", "member", "why"),
    [
        ("bomb.zip", "a.png", "more than 2,000,000 bytes"),
        ("bomb-of-lzma.zip", "a.png", "more than"),
        ("dictionary-of-gigabytes.zip", "a.png", "more memory to unpack"),
        ("encrypted.zip", "a.png", "encrypted"),
        ("method-99.zip", "a.png", "way not known here"),
        ("crc.zip", "a.png", "damaged inside the zip"),
        ("nested.zip", "0-0.zip", "zip inside a zip"),
        ("links.zip", "link.png", "its content is text"),
        ("many-bombs.zip", "many-bombs.zip", "50,000,000 bytes; allowed: 40,000,000"),
        ("size-lies-up.zip", "size-lies-up.zip", "allowed: 40,000,000"),
        ("too-many.zip", "too-many.zip", "400 files; allowed: 300"),
        ("folders-only.zip", "folders-only.zip", "no files"),
        ("only-magic.zip", "only-magic.zip", "damaged"),
        ("text.zip", "text.zip", "its content is text"),
        ("pickle.zip", "archive/data.pkl", "no image"),
    ],
)
def test_why_of_archives(fared: Fared, name: str, member: str, why: str) -> None:
    upload = fared.archives[name][member]
    assert upload["state"] == "failed" and why in upload["error"], upload["error"]


def test_the_service_is_unhurt(fared: Fared) -> None:
    """It answers, its memory is what it was, what it keeps is in its folder, no decoder died."""
    state = fared.served.app.state
    assert fared.grown < MEMORY
    assert not list(state.blobs.incoming.iterdir())
    ada = fared.served.browser("ada")
    case = new_case(ada)
    send(ada, case, "good.png", bundle.cell(seed=5))
    assert len(settled(ada, case)) == 1
    with state.database.read() as session:
        assert not list(session.scalars(select(Entry).where(Entry.action == "decoder failed")))
    there = {path.name for path in state.settings.folder.iterdir()}
    assert there <= {"blobs", "derived", "incoming", "secret", "review.sqlite", "lock"}
    for path in state.blobs.folder.rglob("*"):
        assert path.is_dir() or (len(path.name) == 64 and path.is_file() and not path.is_symlink())


def test_a_polyglot_is_shown_as_the_picture_it_is(fared: Fared) -> None:
    ada = fared.served.browser("ada")
    for name in ("polyglot-and-page.gif", "polyglot-and-script.gif", "polyglot-and-html.jpg"):
        answer = ada.get(f"{PREFIX}/uploads/{fared.alone[name]['id']}/image")
        assert answer.headers["content-type"] in {"image/gif", "image/jpeg"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self'" in answer.headers["content-security-policy"]


NAMES = (
    "../../etc/passwd", "..\\..\\boot.ini", "/etc/shadow", "C:\\con", "a\0b.png", "\x1b[2J.png",
    "", " ", ".", "..", "/", "x" * 9_000, "\u202egnp.exe", "\ud800.png", "a\nb.png",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names(fared: Fared, name: str) -> None:
    ada = fared.served.browser("ada")
    case = new_case(ada)
    body = b'{"name": %s, "size": 5}' % json.dumps(name).encode()
    answer = ada.post(f"{PREFIX}/cases/{case}/uploads", content=body,
                      headers={"Content-Type": "application/json"})  # fmt: skip
    if answer.status_code == 201:
        said = answer.json()["name"]
        assert 0 < len(said) <= 255 and said[0] != "/" and ".." not in said.split("/")
    else:
        assert answer.status_code == 422 and answer.json()["error"]["message"]


# --- decoders that die ----------------------------------------------------------------------------

SENTENCES = {
    "segfault": "the decoder crashed on it (SIGSEGV)",
    "exit": "the decoder crashed on it (exit code 3)",
    "killed": "the decoder was killed, most likely for want of memory",
    "stopped": "the decoder took longer than the 1 s allowed",
    "asleep": "the decoder took longer than the 1 s allowed",
    "busy": "the decoder used up the 1 s of processor time allowed",
    "swollen": "it needs more than the 200,000,000 bytes of memory",
    "writing": "log has more",
}


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that die where a file says so."""
    from leukoscope.review import decoding

    monkeypatch.setattr(decoding, "WORK", mortality.work_and_die)


@pytest.fixture
def dying(
    mortal: None,  # noqa: ARG001
    small_bundle: Path,
    migrated_sqlite: Path,
    tmp_path: Path,
) -> Iterator[Served]:
    """A server of such decoders."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(migrated_sqlite.read_bytes())
    with serving(small_bundle, f"sqlite:///{copy}", tmp_path / "f") as made:
        person(made.app.state.database, "ada", "administrator", None)
        yield made


def test_a_dying_decoder_costs_its_file_alone(dying: Served) -> None:
    ada = dying.browser("ada")
    case = new_case(ada)
    for how in ("segfault", "killed", "exit"):
        send(ada, case, f"{how}.png", f"die {how} ".encode())
        send(ada, case, f"good-{how}.png", bundle.cell(seed=len(how)))
    members = {
        "1.png": bundle.cell(seed=90),
        "die-segfault.png": b"x",
        "2.png": bundle.cell(seed=91),
    }
    send(ada, case, "some.zip", hostile.zipped(members))
    send(ada, case, "all.zip", hostile.zipped({f"die-exit-{n}.png": b"x" for n in range(9)}))
    assert len(settled(ada, case)) == 5
    found = uploads(ada, case)
    for how in ("segfault", "killed", "exit"):
        assert SENTENCES[how] in found[f"{how}.png"]["error"]
        assert found[f"good-{how}.png"]["state"] == "done"
    assert SENTENCES["segfault"] in found["die-segfault.png"]["error"]
    assert found["2.png"]["state"] == "done" and found["some.zip"]["state"] == "done"
    assert found["all.zip"]["state"] == "failed"
    with dying.app.state.database.read() as session:
        entries = list(session.scalars(select(Entry).where(Entry.action == "decoder failed")))
    assert len(entries) == 3 + 1 + 3
    assert {entry.user for entry in entries} == {"server"} and entries[0].case_id == case


@pytest.mark.parametrize("how", SENTENCES)
def test_how_decoders_end(
    how: str,
    mortal: None,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path, good = tmp_path / "a.png", tmp_path / "good.png"
    path.write_bytes(f"die {how} ".encode())
    good.write_bytes(bundle.cell())
    seconds = 1 if how in {"stopped", "asleep"} else 120
    limits = Limits(cpu_seconds=1, seconds=seconds, memory=200_000_000)
    decoder = Decoder(limits, processes=1)
    with pytest.raises(LeukoscopeError) as caught:
        decoder.pixels(path)
    decoder.limits = Limits()
    assert SENTENCES[how] in str(caught.value)
    assert isinstance(caught.value, DecoderFailed) == (how not in {"swollen", "writing"})
    assert decoder.pixels(good).shape == (64, 64, 3)
    decoder.close()
    written = tmp_path / "written-by-a-decoder"
    assert not written.exists() or not written.stat().st_size


def test_a_decoder_killed_while_idle_costs_no_file(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    good.write_bytes(bundle.cell())
    decoder = Decoder(processes=1)
    assert decoder.pixels(good).shape == (64, 64, 3)
    idle = decoder._idle.get()
    assert idle is not None
    os.kill(idle._process.pid, signal.SIGKILL)
    idle._process.join()
    decoder._idle.put(idle)
    assert decoder.pixels(good).shape == (64, 64, 3)
    decoder.close()


def test_an_archive_left_half_read_frees_its_decoder(tmp_path: Path) -> None:
    decoder = Decoder(processes=1)
    blobs = Blobs(tmp_path / "store", decoder)
    path = tmp_path / "a.zip"
    path.write_bytes(hostile.zipped({f"{n}.png": bundle.cell(seed=n) for n in range(9)}))
    reading = files.members(path, blobs)
    assert next(reading).sha256
    reading.close()  # type: ignore[attr-defined]
    assert not list(blobs.incoming.iterdir())
    assert len(list(files.members(path, blobs))) == 9
    decoder.close()


def test_more_cells_than_a_field_may_have(tmp_path: Path) -> None:
    path = tmp_path / "field.png"
    path.write_bytes(bundle.field(3))
    decoder = Decoder(Limits(cells=2), processes=1)
    with pytest.raises(UnreadableError, match="3 nuclei, more than the 2 allowed"):
        decoder.open(path, "field")
    decoder.close()


def test_a_field_of_many_cells_is_cut_in_chunks(served: Served, monkeypatch: Any) -> None:
    from leukoscope.review import work

    anna = served.browser("anna")
    monkeypatch.setattr(work, "CHUNK", 2)
    whole = new_case(anna)
    send(anna, whole, "field.png", bundle.field(3), kind="field")
    boxes = [(c["x"], c["y"], c["box_width"]) for c in settled(anna, whole)]
    assert len(set(boxes)) == 3
