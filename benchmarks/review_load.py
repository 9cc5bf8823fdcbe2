"""Does the review server hold while 50 people review and 4 upload?

A real server (`leukoscope serve`, its own process) on a synthetic laboratory: two reviewers share
each case of 200 cells. Every reviewer labels, confirms and comments with pauses of random length,
asks for the differential after each act and for the other's changes every two seconds, and looks at
pictures, as the pages do. Every uploader sends two files at a time, of single cells and, every
20th, a field, as fast as the server takes them. Whoever is refused (429) waits as told and asks
again; any other answer that isn't a success is an error.

At the end every act and every file that was acknowledged is looked for: in the log of its case, in
the cells, among the read files; and the chain of the audit log is checked. Memory is the resident
set of the server and its children, each second.

    OMP_NUM_THREADS=1 python benchmarks/review_load.py BUNDLE [--minutes 3] [--postgresql]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "review"), str(Path(__file__).parent)]
import postgres  # noqa: E402
from common import machine, markdown  # noqa: E402
from store import PASSWORD, person  # noqa: E402

from leukoscope.bundle.contract import CONTRACT, GRAPH, read  # noqa: E402
from leukoscope.files import sha256_of  # noqa: E402
from leukoscope.review import audit, cases  # noqa: E402
from leukoscope.review.database import Database  # noqa: E402
from leukoscope.review.schema import Upload, User  # noqa: E402

API = "/api/v1"
REVIEWERS, UPLOADERS, PICTURES = 50, 4, 200


@dataclass
class Seen:
    """What the clients saw: seconds by kind of request, refusals, errors, what was acknowledged."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    acts: dict[str, dict[int, tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    cells: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MB


# --- the laboratory -------------------------------------------------------------------------------


def furnish(url: str, folder: Path, bundle: Path, cells: int) -> tuple[list[str], list[str]]:
    """People, cases of two reviewers each, pictures; (names of reviewers, ids of their cases)."""
    database = Database(url)
    database.upgrade()
    ada = person(database, "ada", "administrator", None)
    names = [f"reviewer {n}" for n in range(REVIEWERS)]
    people = [person(database, name, "reviewer", ada) for name in names]
    for n in range(UPLOADERS):
        person(database, f"uploader {n}", "reviewer", ada)
    made = [_case(database, people[n], bundle, cells, n) for n in range(0, REVIEWERS, 2)]
    database.close()
    for n in range(PICTURES):
        path = folder / "blobs" / "00" / f"{n:064x}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(np.random.default_rng(n)))
    return names, [case for case in made for _ in range(2)]


def _case(database: Database, by: User, bundle: Path, cells: int, number: int) -> str:
    """A case of read cells; nothing read them: what the model says of them is drawn."""
    contract = read(bundle)
    rng = np.random.default_rng(number)
    with database.begin() as session:
        graph, words = sha256_of(bundle / GRAPH), sha256_of(bundle / CONTRACT)
        model = cases.register_model(session, contract, graph, words)
        case = cases.create(session, by, f"P-{number}", model.id)
        new = []
        for row in rng.dirichlet(np.full(len(contract.classes), 0.3), cells).tolist():
            file = Upload(
                id=secrets.token_hex(16), case_id=case.id, name="a.jpg", kind="cell", size=9,
                sha256=f"{len(new) % PICTURES:064x}", state="done", created_by=by.id,
            )  # fmt: skip
            session.add(file)
            best = contract.classes[int(np.argmax(row))]
            probs = dict(zip(contract.classes, row, strict=True))
            said = cases.NewReading(best, max(row), probs, [best], 1.0, "")
            new.append(cases.NewCell(file.id, str(file.sha256), 360, 360, said))
        session.flush()
        cases.add_cells(session, by, case.id, model.id, new)
        return case.id


def picture(rng: np.random.Generator, kind: str = "cell") -> bytes:
    """A JPEG of one cell, 360 px, or of a field with cells, 1200 x 900 px; no two are the same."""
    if kind == "cell":
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        image = small.resize((360, 360), Image.Resampling.BICUBIC)
    else:
        image = Image.new("RGB", (1200, 900), (235, 225, 230))
        draw = ImageDraw.Draw(image)
        for x, y in rng.integers(100, 800, (8, 2)).tolist():
            draw.ellipse([x - 40, y - 40, x + 40, y + 40], fill=(205, 180, 215))
            draw.ellipse([x - 30, y - 30, x + 30, y + 30], fill=(80, 30, 130))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


# --- the server -----------------------------------------------------------------------------------


@contextlib.contextmanager
def served(bundle: Path, folder: Path, url: str, more: list[str]) -> Iterator[tuple[int, str]]:
    """(process id, address) of a server of its own, stopped at the end."""
    environment = os.environ | {
        "LEUKOSCOPE_REVIEW_LOGINS_PER_MINUTE": "1000",  # all come from one address
        "LEUKOSCOPE_REVIEW_FILES_PER_USER": "200",  # so that uploaders meet the bound
    }
    for setting in more:
        name, _, value = setting.partition("=")
        environment[f"LEUKOSCOPE_REVIEW_{name.upper()}"] = value
    command = [Path(sys.executable).with_name("leukoscope"), "serve", bundle, "--folder", folder,
               "--port", "0", "--database", url, "--log", "json"]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if "http://" in line)
            address = next(word for word in line.split() if word.startswith("http://"))
            while True:
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{address}/ready").raise_for_status()
                    break
                time.sleep(0.1)
            yield process.pid, address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def computed(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """MB of a process and its children."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines = dict(
                line.split(":", 1) for line in status.read_text().splitlines() if ":" in line
            )
            if str(pid) in (lines["Pid"].strip(), lines["PPid"].strip()):
                total += int(lines.get("VmRSS", "0 kB").split()[0]) / 1000
    return total


# --- the people -----------------------------------------------------------------------------------


@dataclass
class Client:
    """One person's browser."""

    http: httpx.AsyncClient
    seen: Seen
    name: str

    async def ask(self, kind: str, method: str, path: str, **more: Any) -> httpx.Response | None:
        """The answer, asked again as long as it is refused; None where it is an error."""
        while True:
            began = time.perf_counter()
            try:
                answer = await self.http.request(method, path, **more)
            except httpx.HTTPError as problem:
                self.seen.errors.append(f"{kind}: {type(problem).__name__}")
                return None
            taken = time.perf_counter() - began
            if answer.status_code == 429:
                self.seen.refused[kind] += 1
                await asyncio.sleep(int(answer.headers["Retry-After"]))
                continue
            self.seen.seconds[kind].append(taken)
            if answer.is_success:
                return answer
            self.seen.errors.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
            return None

    async def log_in(self) -> None:
        """A session with its cross-site token."""
        given = {"name": self.name, "password": PASSWORD}
        answer = await self.ask("log in", "POST", f"{API}/session", json=given)
        assert answer is not None, self.seen.errors
        self.http.headers["X-CSRF-Token"] = answer.json()["csrf_token"]


async def review(client: Client, case: str, mine: int, end: float, pause: float) -> None:
    """Open the case, then act on every second cell: those with the number's parity."""
    rng = np.random.default_rng(mine)
    seen, base = client.seen, f"{API}/cases/{case}"
    await asyncio.sleep(rng.random() * 30)  # not all of them come at once
    await client.ask("page", "GET", f"/cases/{case}/review")
    found = await client.ask("cells", "GET", f"{base}/cells")
    assert found is not None, seen.errors
    cells = {c["id"]: c for c in found.json()["cells"]}
    own = sorted(cells)[mine % 2 :: 2]
    names = sorted({c["predicted"] for c in cells.values()})
    pictures = [f"{API}/cells/{i}/thumbnail" for i in own[:30]]
    await asyncio.gather(*(client.ask("thumbnail", "GET", p) for p in pictures))
    polling = asyncio.create_task(poll(client, base, found.json()["revision"]))
    while time.monotonic() < end:
        await asyncio.sleep(rng.exponential(pause))
        chosen = [int(i) for i in rng.choice(own, 10 if rng.random() < 0.1 else 1, replace=False)]
        revisions = {str(i): cells[i]["revision"] for i in chosen}
        kind = rng.choice(["label", "confirm", "comment"], p=[0.8, 0.1, 0.1])
        if kind == "label":
            body: Any = {"label": str(rng.choice(names)), "cells": revisions}
            answer = await client.ask("correction", "POST", f"{base}/labels", json=body)
        elif kind == "confirm":
            body = {"cells": revisions}
            answer = await client.ask("correction", "POST", f"{base}/confirm", json=body)
        else:
            body = {"text": f"remark {rng.integers(1000)}",
                    "revision_seen": cells[chosen[0]]["revision"]}  # fmt: skip
            path = f"{API}/cells/{chosen[0]}/comment"
            answer = await client.ask("correction", "POST", path, json=body)
        if answer is not None:
            said = answer.json()
            seen.acts[case][said["revision"]] = (said["change"]["kind"], client.name)
            for cell in said["cells"]:
                cells[cell["id"]] = seen.cells[cell["id"]] = cell
        await client.ask("differential", "GET", f"{base}/differential")
        if rng.random() < 0.2:
            await client.ask("image", "GET", f"{API}/cells/{chosen[0]}/image")
    polling.cancel()


async def poll(client: Client, base: str, revision: int) -> None:
    """What others did, every two seconds."""
    while True:
        await asyncio.sleep(2)
        answer = await client.ask("poll", "GET", f"{base}/changes?since={revision}")
        revision = answer.json()["revision"] if answer else revision


async def upload(client: Client, number: int, end: float) -> None:
    """Cases of 300 files, two at a time."""
    rng = np.random.default_rng(1000 + number)
    drawn = [picture(rng, "field" if i % 20 == 0 else "cell") for i in range(60)]
    while time.monotonic() < end:
        made = await client.ask(
            "new case", "POST", f"{API}/cases", json={"pseudonym": f"U-{number}"}
        )
        if made is None:
            return
        case = made.json()["id"]
        for n in range(0, 300, 2):
            if time.monotonic() >= end:
                return
            files = [_other(drawn[i % len(drawn)], rng) for i in (n, n + 1)]
            await asyncio.gather(*(send(client, case, data) for data in files))


def _other(jpeg: bytes, rng: np.random.Generator) -> bytes:
    """The same picture as another file: with a comment (drawing one takes the clients' time)."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + rng.bytes(8) + jpeg[2:]


async def send(client: Client, case: str, data: bytes) -> None:
    """Announce a file, send it, finish it."""
    given = {"name": "a.jpg", "size": len(data)}
    announced = await client.ask("announce", "POST", f"{API}/cases/{case}/uploads", json=given)
    if announced is None:
        return
    path = f"{API}/uploads/{announced.json()['id']}"
    sent = await client.ask("send", "PUT", f"{path}?offset=0", content=data)
    if sent and await client.ask("finish", "POST", f"{path}/finish"):
        client.seen.files[case].append(announced.json()["id"])


async def watch(client: Client, pid: int, seen: Seen, end: float) -> None:
    """Memory each second; health and metrics as a monitor asks for them."""
    began = time.monotonic()
    while time.monotonic() < end:
        seen.memory.append((time.monotonic() - began, resident(pid)))
        await asyncio.sleep(1)
        if len(seen.memory) % 10 == 0:
            for path in ("/health", "/ready", "/metrics"):
                await client.ask(path, "GET", path)


# --- nothing lost ---------------------------------------------------------------------------------


async def settled(client: Client, seen: Seen) -> float:
    """Seconds until all files are read."""
    began = time.monotonic()
    for case in seen.files:
        while True:
            answer = await client.ask("jobs", "GET", f"{API}/cases/{case}/jobs")
            assert answer is not None, seen.errors
            if all(j["state"] in ("done", "failed") for j in answer.json()["jobs"]):
                break
            await asyncio.sleep(1)
    return time.monotonic() - began


async def lost(client: Client, seen: Seen) -> list[str]:
    """What was acknowledged and isn't there."""
    missing = []
    for case, acts in seen.acts.items():
        log = (await client.http.get(f"{API}/cases/{case}/changes?since=-1")).json()
        there = {c["revision"]: (c["kind"], c["by"]) for c in log["changes"]}
        missing += [f"act {r} of {case}" for r, act in acts.items() if there.get(r) != act]
        for cell in log["cells"]:
            last = seen.cells.get(cell["id"], cell)
            same = all(cell[name] == last[name] for name in ("label", "comment", "revision"))
            missing += [] if same else [f"cell {cell['id']}"]
    for case, files in seen.files.items():
        found = (await client.http.get(f"{API}/cases/{case}/uploads")).json()["uploads"]
        done = {u["id"] for u in found if u["state"] == "done"}
        missing += [f"file {i} of {case}" for i in files if i not in done]
        read = {c["upload_id"] for c in
                (await client.http.get(f"{API}/cases/{case}/cells")).json()["cells"]}  # fmt: skip
        missing += [f"cells of {i}" for i in files if i not in read]
    return missing


# --- all of it ------------------------------------------------------------------------------------


async def load(address: str, pid: int, names: list[str], given: list[str], options: Any) -> Seen:
    """Everybody at once for so many minutes; then what is left is read, and all is looked for."""
    seen = Seen()
    async with contextlib.AsyncExitStack() as stack:

        async def client(name: str) -> Client:
            limits = httpx.Limits(max_connections=6)
            http = httpx.AsyncClient(base_url=address, timeout=120, limits=limits)
            one = Client(await stack.enter_async_context(http), seen, name)
            await one.log_in()
            return one

        everybody = [*names, *(f"uploader {n}" for n in range(UPLOADERS)), "ada"]
        *clients, ada = await asyncio.gather(*map(client, everybody))
        began, before, own = time.monotonic(), computed(pid), time.process_time()
        end = began + 60 * options.minutes
        await asyncio.gather(
            *(review(c, case, n, end, options.pause)
              for n, (c, case) in enumerate(zip(clients, given, strict=False))),
            *(upload(c, n, end) for n, c in enumerate(clients[REVIEWERS:])),
            watch(ada, pid, seen, end),
        )  # fmt: skip
        took = time.monotonic() - began
        print(f"Computed: the server {(computed(pid) - before) / took:.2f} cores, "
              f"the clients {(time.process_time() - own) / took:.2f}")  # fmt: skip
        after = await settled(ada, seen)
        missing = await lost(ada, seen)
        print(f"Acknowledged and not there: {len(missing)} {missing[:5]}")
        print(f"The last files were read {after:.0f} s after the last one was sent")
    return seen


def report(seen: Seen, kind: str, minutes: float) -> None:
    """Tables of latency, refusals, errors and memory."""
    rows = []
    for name, values in sorted(seen.seconds.items()):
        ms = 1000 * np.array(values)
        p50, p95, p99 = np.percentile(ms, [50, 95, 99])
        rows.append([name, len(ms), f"{p50:.0f}", f"{p95:.0f}", f"{p99:.0f}", f"{ms.max():.0f}",
                     seen.refused[name]])  # fmt: skip
    head = [f"{minutes:g} min, {kind}", "n", "median, ms", "p95", "p99", "longest", "refused (429)"]
    print(markdown(head, rows))
    print(f"\nErrors: {len(seen.errors)} {dict(Counter(seen.errors).most_common(5))}")
    print(f"Acts acknowledged: {sum(map(len, seen.acts.values())):,}; "
          f"files: {sum(map(len, seen.files.values())):,}")  # fmt: skip
    at, mb = np.array(seen.memory).T
    tenths = [f"{statistics.median(part):.0f}" for part in np.array_split(mb, 10)]
    half = at > at[-1] / 2
    slope = np.polyfit(at[half], mb[half], 1)[0] * 3600
    print(f"Memory, MB, median of each tenth of the time: {', '.join(tenths)}; "
          f"second half {slope:+.0f} MB an hour")  # fmt: skip


@contextlib.contextmanager
def database_of(folder: Path, postgresql: bool) -> Iterator[str]:
    """A new database: a file, or of a PostgreSQL of its own, as durable as it is delivered."""
    if not postgresql:
        yield f"sqlite:///{folder / 'review.sqlite'}"
        return
    programs = postgres._programs()
    assert programs is not None, "PostgreSQL isn't installed"
    postgres.CARELESS = ("max_connections=100",)
    with postgres.running(programs) as server:
        yield server.url(server.fresh())


def main() -> None:
    """Run it and print what is to be written down."""
    parser = argparse.ArgumentParser(description="The review server under load.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--pause", type=float, default=2, help="mean seconds between acts")
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="a setting: name=value")
    options = parser.parse_args()
    began = os.getloadavg()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "served"
        folder.mkdir()
        with database_of(folder, options.postgresql) as url:
            names, given = furnish(url, folder, options.bundle, options.cells)
            with served(options.bundle, folder, url, options.set) as (pid, address):
                seen = asyncio.run(load(address, pid, names, given, options))
            database = Database(url)
            with database.read() as session:
                verdict = audit.verify(session)
            database.close()
            print(f"Audit log: {verdict.entries:,} lines, "
                  f"{'intact' if verdict.intact else 'BROKEN'}")  # fmt: skip
            log = (folder / "log").read_text()
    report(seen, database.url.get_backend_name(), options.minutes)
    raised = [line for line in log.splitlines() if '"request"' in line and '"raised"' in line]
    print(f"Log: {log.count(chr(10)):,} lines, {len(raised)} with exceptions {raised[:1]}")
    print(f"\nseed 0; load before {began[0]:.1f}; {machine('fastapi', 'uvicorn', 'sqlalchemy')}")


if __name__ == "__main__":
    main()
