"""How fast does the review server answer on a case of 1,000 cells?

A real server (`leukoscope serve`, its own process) on a synthetic case of 1,000 cells with random
360 px JPEG images. Start: seconds from the command to the first answer. Opening: the page, the
cells and the first 60 thumbnails, over six connections as browsers have them, thumbnails made
anew. Others: milliseconds a request, over one connection.

    python benchmarks/review_server.py BUNDLE [--cells 1000] [--rounds 30] [--starts 5]
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "review"), str(Path(__file__).parent)]
from common import machine, markdown  # noqa: E402
from store import PASSWORD  # noqa: E402

from leukoscope.review.database import Database  # noqa: E402
from review import CLASSES, fill  # noqa: E402

FIRST = 60  # cells on the first screen
CONNECTIONS = 6


def prepare(folder: Path, cells: int) -> tuple[str, list[int]]:
    """A database and images as the server keeps them: (case, cell ids)."""
    folder.mkdir(parents=True)
    database = Database(f"sqlite:///{folder / 'review.sqlite'}")
    database.upgrade()
    _, _, case, ids = fill(database, cells)
    database.close()
    rng = np.random.default_rng(0)
    for number in range(cells):
        # Smooth, as cells are: noise would be slower to decode than any picture.
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        out = io.BytesIO()
        small.resize((360, 360), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        path = folder / "blobs" / "00" / f"{number:064x}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.getvalue())
    return case, ids


def start(bundle: Path, folder: Path) -> tuple[subprocess.Popen[bytes], str, float]:
    """(process, address, seconds until it answered)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("leukoscope"), "serve", bundle, "--folder", folder,
               "--port", str(port)]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            httpx.get(f"{address}/ready")
            return process, address, time.perf_counter() - began
        except httpx.TransportError:
            time.sleep(0.01)


def opening(address: str, cookies: httpx.Cookies, case: str, folder: Path) -> float:
    """Seconds for page, cells and the first screen's thumbnails, none of them made before."""
    shutil.rmtree(folder / "derived", ignore_errors=True)
    with httpx.Client(base_url=address, cookies=cookies, timeout=60) as client:
        began = time.perf_counter()
        client.get(f"/cases/{case}/review").raise_for_status()
        cells = client.get(f"/api/v1/cases/{case}/cells").json()["cells"]

        def fetch(cell: int) -> None:
            client.get(f"/api/v1/cells/{cell}/thumbnail").raise_for_status()

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(fetch, [cell["id"] for cell in cells[:FIRST]]))
        return time.perf_counter() - began


def requests(
    address: str, cookies: httpx.Cookies, token: str, case: str, ids: list[int], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds a request, by what is asked; in turn, the first round not counted."""
    taken: dict[str, list[float]] = {}
    base = f"/api/v1/cases/{case}"
    with httpx.Client(
        base_url=address, cookies=cookies, headers={"X-CSRF-Token": token}, timeout=60
    ) as client:
        for turn in range(rounds + 1):
            label = {"label": CLASSES[turn % len(CLASSES)]}
            one = label | {"cells": {ids[turn % len(ids)]: 2**30}}
            many = label | {"cells": dict.fromkeys(ids[:50], 2**30)}
            revision = client.get(base).json()["revision"]
            asked = {
                "all cells": ("GET", f"{base}/cells", None),
                "relabel one cell": ("POST", f"{base}/labels", one),
                "relabel 50 cells": ("POST", f"{base}/labels", many),
                "undo of 50 cells": ("POST", f"{base}/undo", None),
                "poll, two changes": ("GET", f"{base}/changes?since={revision + 1}", None),
                "poll, nothing new": ("GET", f"{base}/changes?since={revision + 3}", None),
                "differential": ("GET", f"{base}/differential", None),
            }
            for name, (method, path, body) in asked.items():
                began = time.perf_counter()
                client.request(method, path, json=body).raise_for_status()
                if turn:
                    taken.setdefault(name, []).append(1000 * (time.perf_counter() - began))
    return taken


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description="Speed of the review server.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    starts, opened = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "served"
        case, ids = prepare(folder, arguments.cells)
        for turn in range(arguments.starts):
            process, address, seconds = start(arguments.bundle, folder)
            try:
                starts.append(1000 * seconds)
                given = {"name": "anna", "password": PASSWORD}
                answer = httpx.post(f"{address}/api/v1/session", json=given, timeout=60)
                opened.append(1000 * opening(address, answer.cookies, case, folder))
                if turn == arguments.starts - 1:
                    token = answer.json()["csrf_token"]
                    timed = requests(address, answer.cookies, token, case, ids, arguments.rounds)
            finally:
                process.terminate()
                process.wait()
    taken = {"start": starts, f"open, first {FIRST} thumbnails made": opened, **timed}
    rows = [
        [name, f"{statistics.median(ms):.1f}", f"{min(ms):.1f} to {max(ms):.1f}", str(len(ms))]
        for name, ms in taken.items()
    ]
    print(markdown([f"{arguments.cells} cells, sqlite", "median, ms", "range, ms", "n"], rows))
    print(f"\nseed 0; {machine('fastapi', 'uvicorn', 'sqlalchemy')}")


if __name__ == "__main__":
    main()
