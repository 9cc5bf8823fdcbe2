"""How long until a reviewer can work on a case of 1,000 cells, in a browser?

Chromium opens the screen of review of a synthetic case with random 360 px JPEG images, server and
browser on the same computer; thumbnails are made anew each time. Usable: a cell has the focus and
answers to keys. Pictures: all thumbnails within the window are there. Key: from pressing a class's
key until the cell stands under its new class.

    python benchmarks/review_browser.py BUNDLE [--cells 1000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "review"), str(Path(__file__).parent)]
import story  # noqa: E402
from common import machine, markdown  # noqa: E402
from review_server import prepare  # noqa: E402
from store import PASSWORD  # noqa: E402

PICTURES = """() => { const seen = [...document.querySelectorAll(".cell img")].filter(i => {
  const r = i.getBoundingClientRect(); return r.top < innerHeight && r.bottom > 0; });
  return seen.length > 0 && seen.every(i => i.complete && i.naturalWidth > 0); }"""


def opening(page: Any, address: str) -> tuple[float, float]:
    """Milliseconds until the first cell can be worked on, and until all pictures in sight show."""
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.locator(".cell[tabindex='0']:focus").wait_for()
    usable = time.perf_counter()
    while not page.evaluate(PICTURES):
        time.sleep(0.01)
    return 1000 * (usable - began), 1000 * (time.perf_counter() - began)


def key(page: Any) -> float:
    """Milliseconds from a key until its cell stands under the other class."""
    cell = page.locator(".cell[tabindex='0']").get_attribute("data-id")
    now = page.evaluate(f"document.getElementById('cell-{cell}').closest('section').dataset.label")
    label = page.locator(f".keys [data-label]:not([data-label='{now}'])").first
    pressed, name = label.locator("kbd").inner_text(), label.get_attribute("data-label")
    began = time.perf_counter()
    page.keyboard.press(pressed.lower())
    page.locator(f"section[data-label='{name}'] #cell-{cell}").wait_for(state="attached")
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description="Speed of the screen of review.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        raise SystemExit("Chromium is missing.")
    usable, pictures, keys = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "served"
        case, _ = prepare(folder, arguments.cells)
        with (
            story.served(arguments.bundle, folder) as (address, _),
            story.chromium(executable) as browser,
        ):
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.goto(f"{address}/login")
            page.get_by_label("Name").fill("anna")
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_url("**/cases")
            for _ in range(arguments.rounds):
                shutil.rmtree(folder / "derived", ignore_errors=True)
                first, all_in_sight = opening(page, f"{address}/cases/{case}/review")
                usable.append(first)
                pictures.append(all_in_sight)
            keys = [key(page) for _ in range(4 * arguments.rounds)]
    rows = [
        [name, f"{statistics.median(ms):.0f}", f"{min(ms):.0f} to {max(ms):.0f}", str(len(ms))]
        for name, ms in (("usable", usable), ("pictures in sight", pictures), ("key", keys))
    ]
    print(markdown([f"{arguments.cells} cells, sqlite", "median, ms", "range, ms", "n"], rows))
    print(f"\nseed 0; {machine('fastapi', 'uvicorn', 'playwright')}")


if __name__ == "__main__":
    main()
