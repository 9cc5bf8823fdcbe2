"""Pictures of every screen of the review application, at both widths, for docs/review/README.md.

    python docs/review_pictures.py BUNDLE

BUNDLE is the one that `leukoscope demo` makes. All cells are synthetic; nothing shown is a
photograph. Writes docs/images/review/NAME-WIDTH.webp.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests" / "review"))

import story  # noqa: E402

from leukoscope.data import synthetic  # noqa: E402

OUT = DOCS / "images" / "review"
SIZES = {1280: 860, 390: 844}


def main(bundle: Path) -> None:
    """Serve the bundle to a synthetic laboratory and photograph its day."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        raise SystemExit("Chromium is missing.")
    OUT.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        story.served(bundle, Path(scratch) / "data") as (address, link),
        story.chromium(executable) as browser,
    ):
        smear = Path(scratch) / "smear"
        synthetic.make(smear, images=150, size=224, patients=3, seed=11, leaks=False)
        page = browser.new_page(viewport={"width": 1280, "height": SIZES[1280]})
        page.goto(link)
        shot(page, "welcome")
        story.set_up(page, link, "Anna")
        page.goto(f"{address}/cases/new")
        shot(page, "new-case")
        cases = [work(page, address, smear, patient) for patient in ("P01", "P02", "P03")]
        screens(page, address, *cases)
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/login*")
        shot(page, "log-in")


def work(page: Any, address: str, smear: Path, patient: str) -> str:
    """One case of one synthetic patient: single cells and a field of view."""
    case = story.new_case(page, address, f"LAB-{patient}", "A", "May-Grünwald-Giemsa")
    cells = sorted((smear / "images").rglob(f"{patient}_*.jpg"))
    fields = [smear / "fields" / f"field_{int(patient[1:])}.jpg"]
    first = patient == "P01"
    story.upload(page, [*cells, *fields], (lambda: shot(page, "upload")) if first else None, 120)
    return case


def screens(page: Any, address: str, signed: str, other: str, open_one: str) -> None:
    """Review one case and sign it, then photograph what there is."""
    story.review(page, signed)
    for key in ("ArrowRight", "2", "ArrowDown", "1", "k", "k"):
        page.keyboard.press(key)
    page.keyboard.press("c")
    page.get_by_label("Comment").fill("Granules seen at higher magnification.")
    page.get_by_role("button", name="Close").click()
    page.locator(".mark.comment").wait_for()
    page.mouse.move(0, 0)
    shot(page, "review", lambda: reopen(page, signed), dark=True)
    page.goto(f"{signed}/report")
    shot(page, "sign")
    page.get_by_label("Your password").fill(story.PASSWORD)
    page.get_by_role("button", name="Sign version 1").click()
    page.get_by_text("signed by Anna").first.wait_for()
    shot(page, "report")
    for name, key in (("enlarged", "Enter"), ("heat-map", "h"), ("help", "?")):
        shot(page, name, lambda key=key: reopen(page, other, key), dark=name == "enlarged")
    page.goto(f"{open_one}/images")
    shot(page, "images")
    page.goto(f"{signed}/log")
    shot(page, "log-of-a-case")
    for name in ("cases", "people", "account", "quality", "about"):
        page.goto(f"{address}/{name}")
        shot(page, name)
    page.goto(f"{address}/audit")
    page.get_by_role("button", name="Check the whole log").click()
    page.get_by_text("Whole: all").wait_for()
    shot(page, "audit")


def reopen(page: Any, case: str, key: str = "") -> None:
    """The screen of review; with a key pressed on a cell of the field of view."""
    story.review(page, case)
    if key:
        page.get_by_label("Search cells").fill("field_")
        page.keyboard.press("Escape")
        page.keyboard.press(key)


def shot(
    page: Any, name: str, before: Callable[[], None] | None = None, dark: bool = False
) -> None:
    """The screen at both widths, and in the dark where wanted."""
    for scheme in ("light", "dark") if dark else ("light",):
        page.emulate_media(color_scheme=scheme)
        for width, height in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            if before:
                before()
            page.wait_for_timeout(700)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            target = OUT / f"{name}-{width}{'-dark' if scheme == 'dark' else ''}.webp"
            picture.save(target, "WEBP", quality=80, method=6)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": SIZES[1280]})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
