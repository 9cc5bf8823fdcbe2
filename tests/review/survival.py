"""kill -9 of the review server under mixed load, and what must be true afterwards.

    python tests/review/survival.py sqlite --kills 120 --seed 1
    python tests/review/survival.py postgresql --kills 120 --seed 2 --database-kills 10

A real `leukoscope serve`, clients that upload, correct, undo, sign and amend without a pause, and
SIGKILL at seeded random moments, also while the server starts; sometimes only the main process,
otherwise its whole group; and of PostgreSQL itself. After each kill everything acknowledged must be
in the database and its images on the disk, and the audit log whole; at the end nothing may be
doubled, every job done, every picture readable.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bundle
import httpx
import numpy as np
import postgres
from argon2 import PasswordHasher
from sqlalchemy import select
from store import person
from survival_clients import Client, Journal

from leukoscope.files import sha256_of
from leukoscope.review import accounts, audit, cases, signing
from leukoscope.review.blobs import Blobs
from leukoscope.review.database import Database
from leukoscope.review.schema import Case, Cell, Change, Entry, Job, Signature, Upload, User

TRIES = 3_000  # until something must have happened; not seconds: a busy machine has fewer
PEOPLE = ("anna", "boris", "carla", "dora")


@dataclass
class Lab:
    """A server that can be killed, its clients, and where its data lie."""

    bundle: Path
    folder: Path
    url: str
    port: int
    nursery: subprocess.Popen[str]
    anew: bool = False  # every start is the command, imports and all
    clients: list[Client] = field(default_factory=list)
    pid: int = 0
    checked: set[str] = field(default_factory=set)  # images whose bytes were compared

    @property
    def address(self) -> str:
        """Where it is served."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server; it isn't ready yet."""
        arguments = ["serve", str(self.bundle), "--folder", str(self.folder), "--database",
                     self.url, "--port", str(self.port)]  # fmt: skip
        asked = {"arguments": arguments, "anew": self.anew,
                 "log": str(self.folder.parent / "server.log")}  # fmt: skip
        assert self.nursery.stdin is not None and self.nursery.stdout is not None
        self.nursery.stdin.write(json.dumps(asked) + "\n")
        self.nursery.stdin.flush()
        self.pid = int(self.nursery.stdout.readline())

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self.pid > 0 and Path(f"/proc/{self.pid}").exists()

    def ready(self) -> None:
        """Wait until it answers."""
        for _ in range(TRIES):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.address}/health", timeout=5).status_code == 200:
                    return
            assert self.alive, f"the server ended:\n{self.log()}"
            time.sleep(0.02)
        raise AssertionError(f"the server doesn't start:\n{self.log()}")

    def kill(self, group: bool) -> None:
        """SIGKILL of the process, or of all its group."""
        try:
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group yet
            os.kill(self.pid, signal.SIGKILL)
        while self.alive:
            time.sleep(0.001)

    def work(self, rng: np.random.Generator) -> None:
        """Until the clients have got a random number of answers, and a random moment longer.

        Half of the time also until cells were read and some of them were acted upon, or 10 s.
        """
        wanted = self.answers + int(rng.integers(0, 60))
        acts = self.acts + int(rng.integers(-3, 4))
        until = time.monotonic() + 10
        while not any(client.problem for client in self.clients):
            if self.answers >= wanted and (self.acts >= acts or time.monotonic() > until):
                break
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.05)))

    @property
    def answers(self) -> int:
        """What the clients were answered so far."""
        return sum(client.journal.answered for client in self.clients)

    @property
    def acts(self) -> int:
        """What they did to cells and cases, and were answered."""
        return sum(len(client.journal.acts) for client in self.clients)

    def log(self) -> str:
        """The end of what the server said."""
        return (self.folder.parent / "server.log").read_text()[-40_000:]

    def refuse_problems(self) -> None:
        """Raise what a client came upon."""
        for client in self.clients:
            if client.problem is not None:
                raise AssertionError(f"{client.name}: {client.problem!r}\n{self.log()}")


@contextlib.contextmanager
def working(folder: Path, url: str, seed: int, anew: bool = False) -> Iterator[Lab]:
    """A served laboratory with people at work; the server ends with it."""
    nursery = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("nursery.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    lab = Lab(bundle.make(folder / "bundle"), folder / "served", url, port, nursery, anew)
    lab.folder.mkdir()
    tokens = _people(lab.url)
    lab.start()
    lab.ready()
    given = {"headers": {"Authorization": f"Bearer {tokens['anna']}"}, "timeout": 30}
    made = httpx.post(f"{lab.address}/api/v1/cases", json={"pseudonym": "shared"}, **given)  # type: ignore[arg-type]
    lab.clients = [
        Client(lab.address, name, token, made.json()["id"], [seed, number])
        for number, (name, token) in enumerate(tokens.items())
    ]
    try:
        for client in lab.clients:
            client.start()
        yield lab
    finally:
        for client in lab.clients:
            client.http.close()  # whoever is still at work comes to an end
            client.join()
        if lab.alive:
            lab.kill(group=True)
        nursery.communicate()


def _people(url: str) -> dict[str, str]:
    """API tokens by name; passwords are cheap to check, since each signature asks for one."""
    database = Database(url)
    database.upgrade()
    accounts._hasher = PasswordHasher(time_cost=1, memory_cost=64)
    ada = person(database, "ada", "administrator", None)
    tokens = {}
    for name in PEOPLE:
        user = person(database, name, "reviewer", ada)
        with database.begin() as session:
            tokens[name] = accounts.make_token(session, user, "survival", ["read", "write"])
    database.close()
    return tokens


def survive(
    lab: Lab,
    kills: int,
    seed: int,
    server: postgres.Postgres | None = None,
    database_kills: int = 0,
) -> dict[str, int]:
    """Kill the server so often, and PostgreSQL `server` so often in between; what happened.

    AssertionError where anything acknowledged is missing or doubled.
    """
    rng = np.random.default_rng(seed)
    steps = np.array(["server"] * kills + ["database"] * database_kills)
    count: Counter[str] = Counter()
    for step in rng.permutation(steps):
        if step == "database":
            assert server is not None
            lab.work(rng)
            server.kill()
            time.sleep(rng.uniform(0, 0.5))
            server.start()
        elif rng.random() < 0.15:  # while it starts
            lab.kill(group=True)
            count["server"] += 1
            lab.start()
            time.sleep(rng.uniform(0, 1))
            count["while starting"] += 1
        else:
            lab.work(rng)
        if step == "server":
            lab.kill(group=bool(rng.random() < 0.5))
        count[str(step)] += 1
        check(lab)
        if step == "server":
            lab.start()
        lab.ready()
        lab.refuse_problems()
    return dict(count) | finish(lab)


def finish(lab: Lab) -> dict[str, int]:
    """Let everybody finish, kill once more and look at everything."""
    for client in lab.clients:
        client.stopping.set()
    for client in lab.clients:
        client.join()
    lab.refuse_problems()
    _settle(lab)
    lab.kill(group=True)
    check(lab, whole=True)
    lab.start()
    lab.ready()
    _look_at_all(lab)
    journals = [client.journal for client in lab.clients]
    acts = Counter(kind for j in journals for kind, _ in j.acts.values())
    return {
        "files": sum(len(j.files) for j in journals),
        **{kind: acts[kind] for kind in ("label", "comment", "undo", "redo", "sign", "amend")},
        "requests": sum(j.answered for j in journals),
        "sent again": sum(j.again for j in journals),
        "refused when sent again": sum(j.doubtful for j in journals),
    }


def _settle(lab: Lab) -> None:
    """Until no job is left."""
    database = Database(lab.url)
    for _ in range(TRIES):
        with database.read() as session:
            left = session.scalars(select(Job).where(Job.state.not_in(("done", "failed")))).all()
            failed = session.scalars(select(Job).where(Job.state == "failed")).all()
        assert not failed, f"{failed[0].kind}: {failed[0].error}\n{lab.log()}"
        if not left:
            database.close()
            return
        time.sleep(0.1)
    raise AssertionError(f"{len(left)} jobs don't end\n{lab.log()}")


# --- what must be true ----------------------------------------------------------------------------


def check(lab: Lab, whole: bool = False) -> None:
    """Everything acknowledged is there, the audit log whole. whole: and nothing is doubled."""
    # Before the database is looked at: where only PostgreSQL was killed, the clients go on.
    journals = [(client.name, client.journal.so_far()) for client in lab.clients]
    database = Database(lab.url)
    try:
        with database.read() as session:
            verdict = audit.verify(session)
            assert verdict.intact, verdict
            names = dict(session.execute(select(User.id, User.name)).all())
            changes = {(c.case_id, c.revision): c for c in session.scalars(select(Change))}
            signed = {(s.case_id, s.version): s for s in session.scalars(select(Signature))}
            uploads = {u.id: u for u in session.scalars(select(Upload))}
            known = {c.id: c for c in session.scalars(select(Case))}
            cells = session.scalars(select(Cell)).all()
            for name, journal in journals:
                _acknowledged(lab, name, journal, names, known, changes, signed, uploads)
            if whole:
                for client in lab.clients:
                    _nothing_else(client, names, known, changes, signed, uploads, cells)
                _replayed(cells, changes)
                _logged(session, changes, uploads)
    finally:
        database.close()


def _acknowledged(
    lab: Lab,
    name: str,
    journal: Journal,
    names: Any,
    known: Any,
    changes: Any,
    signed: Any,
    uploads: Any,
) -> None:
    blobs = Blobs(lab.folder)
    assert journal.cases <= known.keys(), "a case is lost"
    for place, (kind, cells) in list(journal.acts.items()):
        found = changes.get(place)
        assert found is not None, f"{name}'s {kind} {place} is lost"
        assert (found.kind, names[found.user_id]) == (kind, name), (place, kind, found.kind)
        assert not cells or set(map(int, found.after)) == cells, place
    for place, sha256 in list(journal.signatures.items()):
        assert place in signed, f"{name}'s signature {place} is lost"
        assert signed[place].sha256 == sha256 == signing.hash_of(signed[place].content)
    for upload, sent in list(journal.files.items()):
        found = uploads.get(upload)
        assert found is not None, f"the upload {upload} is lost"
        if sent.state in ("received", "duplicate", "done"):
            assert found.sha256 == sent.sha256, f"{found.name} isn't the file that was sent"
            assert found.state not in ("receiving",), found.state
            if sent.sha256 not in lab.checked:
                assert sha256_of(blobs.path(sent.sha256)) == sent.sha256
                lab.checked.add(sent.sha256)


def _nothing_else(
    client: Client, names: Any, known: Any, changes: Any, signed: Any, uploads: Any,
    cells: Sequence[Cell],
) -> None:  # fmt: skip
    journal = client.journal
    mine = {number for number, name in names.items() if name == client.name}
    acts = {p for p, c in changes.items() if c.user_id in mine and c.kind not in ("read", "edit")}
    more = acts - journal.acts.keys()
    assert all(case == client.shared for case, _ in more), f"acts are doubled: {sorted(more)}"
    assert len(more) <= journal.doubtful, f"acts are doubled: {sorted(more)}"
    edits = [c for c in changes.values() if c.user_id in mine and c.kind == "edit"]
    assert len(edits) == journal.edits, "an edit is doubled or lost"
    assert {p for p, s in signed.items() if s.user_id in mine} == journal.signatures.keys()
    made = {i for i, c in known.items() if c.created_by in mine} - {client.shared}
    assert made == journal.cases, "a case is doubled"
    sent = {u.id for u in uploads.values() if u.created_by in mine and u.parent_id is None}
    assert sent == journal.files.keys(), "an upload is doubled"
    per_upload = Counter(cell.upload_id for cell in cells)
    for upload, file in journal.files.items():
        members = [u for u in uploads.values() if u.parent_id == upload]
        found = uploads[upload]
        if file.state == "failed":  # given up
            assert (found.state, per_upload[upload], members) == ("failed", 0, [])
            continue
        wanted = "done" if file.cells or file.members else found.state
        assert (found.state, per_upload[upload]) == (wanted, file.cells), (found.name, found.error)
        assert found.state in ("done", "failed", "duplicate"), found.state
        assert found.state != "failed" or "process" not in found.error, found.error
        assert len(members) == file.members and all(m.state == "done" for m in members)
        assert all(per_upload[m.id] == 1 for m in members)


def _replayed(cells: Sequence[Cell], changes: Any) -> None:
    """Every cell is as the acts, one after the other, left it."""
    values: dict[int, dict[str, Any]] = {c.id: {"label": None, "comment": ""} for c in cells}
    for change in sorted(changes.values(), key=lambda c: (c.case_id, c.revision)):
        if change.kind in ("label", "comment", "undo", "redo"):
            for cell_id, after in change.after.items():
                values[int(cell_id)] |= after
    for cell in cells:
        assert {"label": cell.label, "comment": cell.comment} == values[cell.id], cell.id


def _logged(session: Any, changes: Any, uploads: Any) -> None:
    """The audit log has one line for each act and each file."""
    lines = Counter(session.scalars(select(Entry.action)))
    acts = Counter(change.kind for change in changes.values())
    for kind in ("label", "comment", "undo", "redo", "sign", "amend"):
        assert lines[kind] == acts[kind], kind
    announced = sum(u.parent_id is None for u in uploads.values())
    assert lines["announce upload"] == announced
    assert lines["upload"] + lines["give up upload"] == len(uploads)
    assert not lines["failed job"]
    given_up = select(Entry.id).where(Entry.action == "failed upload", Entry.user == "server")
    assert not session.scalars(given_up).all(), "a file was given up for what a kill did"


def _look_at_all(lab: Lab) -> None:
    """Every picture is readable, as a browser gets it; nothing half-written is left."""
    token = lab.clients[0].http.headers["authorization"]
    database = Database(lab.url)
    with (
        database.read() as session,
        httpx.Client(base_url=lab.address, headers={"Authorization": token}, timeout=30) as http,
    ):
        for case_id in session.scalars(select(Case.id)).all():
            for cell in cases.cells(session, case_id):
                image = http.get(f"/api/v1/cells/{cell.id}/image")
                small = http.get(f"/api/v1/cells/{cell.id}/thumbnail")
                assert image.status_code == 200 and image.content[1:4] == b"PNG", cell.id
                assert small.status_code == 200 and small.content[8:12] == b"WEBP", cell.id
    database.close()
    assert not list(lab.folder.rglob(".part-*")) and not list((lab.folder / "incoming").iterdir())


# --- the long run ---------------------------------------------------------------------------------


def main() -> None:
    """Print what happened, as a line of a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("sqlite", "postgresql"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database-kills", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="start the command itself each time")
    given = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="survival-")))
        server = None
        if given.kind == "postgresql":
            programs = postgres.installed()
            server = stack.enter_context(postgres.running(programs, postgres.CAREFUL))
        url = server.url(server.fresh()) if server else f"sqlite:///{folder / 'review.sqlite'}"
        lab = stack.enter_context(working(folder, url, given.seed, given.anew))
        found = survive(lab, given.kills, given.seed, server, given.database_kills)
    print(f"{given.kind}, seed {given.seed}: {found}, {time.monotonic() - began:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
