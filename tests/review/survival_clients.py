"""People and programs who work while the server is killed: each keeps a journal of what the server
acknowledged, and asks again, with the very same request, what got no answer."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import bundle
import httpx
import numpy as np
from store import CLASSES, PASSWORD

from leukoscope.review.api import PREFIX

TRIES = 1_500  # until a request must be answered; not seconds: a busy machine has fewer
MANY = 40  # cells: then another case is begun
FIELD = bundle.field()
TEXT = b"this is no picture"


class BreakError(Exception):
    """The client's connection breaks in the middle of a file."""


@dataclass
class Sent:
    """A file: its SHA-256, and how many cells it must give; None while it isn't finished."""

    case: str
    sha256: str
    cells: int
    members: int = 0
    state: str = "receiving"  # as acknowledged


@dataclass
class Journal:
    """What the server acknowledged. acts: by (case, revision) the kind and, by cell, the values."""

    cases: set[str] = field(default_factory=set)
    files: dict[str, Sent] = field(default_factory=dict)
    acts: dict[tuple[str, int], tuple[str, set[int]]] = field(default_factory=dict)
    signatures: dict[tuple[str, int], str] = field(default_factory=dict)
    edits: int = 0
    doubtful: int = 0  # refused after it was sent again: somebody else came in between
    again: int = 0  # requests sent again
    answered: int = 0

    def so_far(self) -> Journal:
        """What was acknowledged up to now, for a check while the client goes on."""
        files = {name: replace(sent) for name, sent in list(self.files.items())}
        return replace(
            self, cases=set(self.cases), files=files, acts=dict(self.acts),
            signatures=dict(self.signatures),
        )  # fmt: skip


class Client(threading.Thread):
    """One person with an API token. `shared`: a case in which all work at once."""

    def __init__(self, address: str, name: str, token: str, shared: str, seed: list[int]) -> None:
        super().__init__(name=name, daemon=True)
        self.http = httpx.Client(
            base_url=address + PREFIX, headers={"Authorization": f"Bearer {token}"}, timeout=20
        )
        self.rng = np.random.default_rng(seed)
        self.journal = Journal()
        self.shared = shared
        self.own: list[str] = []
        self.bytes: dict[str, bytes] = {}  # of the last file of each case
        self.left: list[tuple[str, bytes]] = []  # uploads that are to be gone on with later
        self.stopping = threading.Event()
        self.problem: BaseException | None = None

    def run(self) -> None:
        """Work until told to stop, then finish what was begun."""
        try:
            self._begin()
            actions: list[tuple[float, Callable[[], None]]] = [
                (3, self._upload), (5, self._label), (1, self._confirm), (2, self._comment),
                (3, self._undo), (2.5, self._sign), (1.5, self._amend),
                (0.3, self._give_up), (1, self._look), (0.5, self._leave), (0.5, self._edit),
                (0.2, self._reread),
            ]  # fmt: skip
            weights = np.array([weight for weight, _ in actions])
            while not self.stopping.is_set():
                actions[self.rng.choice(len(actions), p=weights / weights.sum())][1]()
            while self.left:
                self._go_on()
        except BaseException as problem:  # noqa: BLE001 - told by the main thread
            self.problem = problem

    # --- asking -----------------------------------------------------------------------------------

    def ask(
        self, method: str, path: str, *, fine: tuple[int, ...] = (200, 201, 202, 204), **given: Any
    ) -> httpx.Response | None:
        """The answer, asked for until there is one; None where it is an honest 409."""
        answer, sent = None, 0
        while sent < TRIES:
            sent += 1
            try:
                answer = self.http.request(method, path, **given)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in (429, 502, 503):
                break
            time.sleep(float(self.rng.uniform(0.02, 0.2)))
        assert answer is not None, f"no answer to {method} {path}"
        self.journal.again += sent > 1
        self.journal.answered += 1
        if answer.status_code == 409:
            self.journal.doubtful += sent > 1 and method != "GET"
            return None
        assert answer.status_code in fine, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def get(self, path: str) -> Any:
        """What stands there."""
        answer = self.ask("GET", path)
        assert answer is not None
        return answer.json()

    def _key(self) -> dict[str, str]:
        return {"Idempotency-Key": self.rng.bytes(16).hex()}

    def _begin(self) -> None:
        given = {"pseudonym": f"{self.name}-{len(self.own)}"}
        answer = self.ask("POST", "/cases", json=given, headers=self._key())
        assert answer is not None
        self.own.append(answer.json()["id"])
        self.journal.cases.add(self.own[-1])

    def _case(self) -> str:
        if self.rng.random() < 0.2:
            return self.shared
        return str(self.rng.choice(self.own[-3:]))

    # --- files ------------------------------------------------------------------------------------

    def _file(self, case: str) -> tuple[bytes, str, Sent]:
        """Bytes, the kind to announce, and what must become of them."""
        dice, seed = self.rng.random(), int(self.rng.integers(2**31))
        if dice < 0.1 and case in self.bytes:
            return self.bytes[case], "cell", Sent(case, _sha(self.bytes[case]), 0, state="twin")
        if dice < 0.2:
            data = _marked(FIELD, f"{self.name} {seed}")
            return data, "field", Sent(case, _sha(data), 3)
        if dice < 0.3:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as archive:
                for number in range(3):
                    archive.writestr(f"{number}.png", self._cell(seed + number))
            return out.getvalue(), "cell", Sent(case, _sha(out.getvalue()), 0, members=3)
        if dice < 0.35:
            data = TEXT + seed.to_bytes(4, "big")
            return data, "cell", Sent(case, _sha(data), 0)
        data = self._cell(seed)
        return data, "cell", Sent(case, _sha(data), 1)

    def _cell(self, seed: int) -> bytes:
        name = CLASSES[seed % len(CLASSES)]
        return _marked(bundle.cell(name, seed), f"{self.name} {seed}")

    def _announce(self) -> tuple[str, bytes] | None:
        case = self._case()
        if case != self.shared and len(self.get(f"/cases/{case}/cells")["cells"]) > MANY:
            self._begin()
            case = self.own[-1]
        data, kind, sent = self._file(case)
        given = {"name": f"{len(self.journal.files)}.png", "size": len(data), "kind": kind}
        answer = self.ask("POST", f"/cases/{case}/uploads", json=given, headers=self._key())
        if answer is None:  # the case is signed
            return None
        self.journal.files[answer.json()["id"]] = sent
        return answer.json()["id"], data

    def _upload(self) -> None:
        announced = self._announce()
        if announced is not None:
            self._send(*announced)
            self._finish(*announced)
        if self.left and self.rng.random() < 0.5:
            self._go_on()

    def _leave(self) -> None:
        """Send half of a file and go on with it some other time."""
        announced = self._announce()
        if announced is not None:
            self.left.append(announced)
            self._send(*announced, most=len(announced[1]) // 2)

    def _go_on(self) -> None:
        upload, data = self.left.pop()
        self._send(upload, data)
        self._finish(upload, data)

    def _give_up(self) -> None:
        announced = self._announce()
        if announced is not None:
            self._send(*announced, most=len(announced[1]) // 2)
            self.ask("DELETE", f"/uploads/{announced[0]}")  # 409 where it was given up already
            self.journal.files[announced[0]].state = "failed"

    def _send(self, upload: str, data: bytes, most: int | None = None) -> None:
        at, most = self._received(upload), len(data) if most is None else most
        for _ in range(TRIES):
            if at >= most:
                return
            piece = data[at : at + max(1, len(data) // 3)]
            broken = self.rng.random() < 0.2
            try:
                answer = self.http.put(
                    f"/uploads/{upload}", params={"offset": at},
                    content=_breaking(piece) if broken else piece,
                )  # fmt: skip
            except (httpx.TransportError, BreakError):
                answer = None
            if answer is not None and answer.status_code == 200:
                at = answer.json()["received"]
                continue
            assert answer is None or answer.status_code in (409, 429, 503), answer.text
            time.sleep(0.02)
            known, at = at, self._received(upload)
            assert at >= known, f"{known} bytes had been acknowledged, {at} are left"
        raise AssertionError("a file doesn't get through")

    def _received(self, upload: str) -> int:
        return int(self.get(f"/uploads/{upload}")["received"])

    def _finish(self, upload: str, data: bytes) -> None:
        sent = self.journal.files[upload]
        while True:
            answer = self.ask("POST", f"/uploads/{upload}/finish")
            if answer is not None:
                break
            if self.get(f"/cases/{sent.case}")["state"] == "signed":
                return
            self._send(upload, data)
        found = answer.json()
        assert found["sha256"] == sent.sha256, found
        assert (found["state"] == "duplicate") == (sent.state == "twin"), found
        sent.state = found["state"]
        if sent.cells == 1:
            self.bytes[sent.case] = data

    # --- cells ------------------------------------------------------------------------------------

    def _some(self, most: int = 3) -> tuple[str, list[Any]] | None:
        case = self._case()
        found = self.get(f"/cases/{case}/cells")
        if found["state"] != "open" or not found["cells"]:
            return None
        order = self.rng.permutation(len(found["cells"]))[: int(self.rng.integers(1, most + 1))]
        return case, [found["cells"][place] for place in order]

    def _acted(self, case: str, kind: str, answer: httpx.Response | None) -> None:
        if answer is not None:
            change = answer.json()["change"]
            assert change["kind"] == kind and change["by"] == self.name, change
            self._note(case, change["revision"], kind, change["cells"])

    def _note(self, case: str, revision: int, kind: str, cells: list[int]) -> None:
        assert (case, revision) not in self.journal.acts, "two acts are one"
        self.journal.acts[case, revision] = (kind, set(cells))

    def _label(self) -> None:
        found = self._some()
        if found is None:
            return
        case, cells = found
        # Not what one of them has, or the second time would be the same act as the first.
        free = [name for name in CLASSES if name not in {cell["label"] for cell in cells}]
        given = {"label": str(self.rng.choice(free)),
                 "cells": {str(cell["id"]): cell["revision"] for cell in cells}}  # fmt: skip
        self._acted(case, "label", self.ask("POST", f"/cases/{case}/labels", json=given))

    def _confirm(self) -> None:
        found = self._some()
        if found is None:
            return
        case, cells = found
        new = [cell for cell in cells if cell["label"] != cell["predicted"]]
        if new:
            given = {"cells": {str(cell["id"]): cell["revision"] for cell in new}}
            self._acted(case, "label", self.ask("POST", f"/cases/{case}/confirm", json=given))

    def _comment(self) -> None:
        found = self._some(1)
        if found is None:
            return
        case, (cell,) = found
        given = {"text": f"{self.name} {self.rng.bytes(4).hex()}",
                 "revision_seen": cell["revision"]}  # fmt: skip
        answer = self.ask("POST", f"/cells/{cell['id']}/comment", json=given)
        self._acted(case, "comment", answer)

    def _undo(self) -> None:
        case = self._case()
        self._take_back(case, "undo")
        if self.rng.random() < 0.4:
            self._take_back(case, "redo")

    def _take_back(self, case: str, kind: str) -> None:
        seen = {"seen": self.get(f"/cases/{case}")["revision"]}
        self._acted(case, kind, self.ask("POST", f"/cases/{case}/{kind}", params=seen))

    def _edit(self) -> None:
        case = str(self.rng.choice(self.own))
        revision = self.get(f"/cases/{case}")["revision"]
        given = {"revision_seen": revision, "notes": self.rng.bytes(4).hex()}
        answer = self.ask("PATCH", f"/cases/{case}", json=given)
        if answer is not None:
            # Cells may come in between, but nobody else edits it: the notes are this edit's.
            assert answer.json()["notes"] == given["notes"]
            self.journal.edits += 1

    def _reread(self) -> None:
        self.ask("POST", f"/cases/{self._case()}/reread")

    # --- cases ------------------------------------------------------------------------------------

    def _sign(self) -> None:
        case = str(self.rng.choice(self.own[-3:]))
        for _ in range(10):  # until it is read
            jobs = self.get(f"/cases/{case}/jobs")["jobs"]
            if jobs and all(job["state"] == "done" for job in jobs):
                break
            time.sleep(0.1)
        given = {"revision_seen": self.get(f"/cases/{case}")["revision"], "password": PASSWORD}
        answer = self.ask("POST", f"/cases/{case}/sign", json=given)
        if answer is not None:
            found = answer.json()
            assert (case, found["version"]) not in self.journal.signatures
            self.journal.signatures[case, found["version"]] = found["sha256"]
            self._note(case, given["revision_seen"] + 1, "sign", [])

    def _amend(self) -> None:
        case = str(self.rng.choice(self.own[-3:]))
        answer = self.ask("POST", f"/cases/{case}/amend", json={"reason": self.rng.bytes(4).hex()})
        if answer is not None:
            self._note(case, answer.json()["revision"], "amend", [])

    def _look(self) -> None:
        found = self._some(1)
        if found is not None:
            answer = self.ask("GET", f"/cells/{found[1][0]['id']}/thumbnail")
            assert answer is not None and answer.content[8:12] == b"WEBP"


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _marked(png: bytes, text: str) -> bytes:
    """The picture with a text in it, so that no two files are the same."""
    body = b"tEXtmark\0" + text.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]  # after the signature and IHDR


def _breaking(data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    raise BreakError
