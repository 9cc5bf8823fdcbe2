"""Steps of a laboratory's work in a browser, shared by the test of the story and the pictures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "a quiet smear at dawn"


@contextmanager
def served(bundle: Path, folder: Path, *more: str) -> Iterator[tuple[str, str]]:
    """`leukoscope serve` as a process of its own; gives its address and the one-time link."""
    program = "from leukoscope.cli.main import run; run()"
    command = [sys.executable, "-c", program, "serve", str(bundle), "--folder", str(folder)]
    command += ["--port", "0", *more]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if "ctrl-C" in line:
                    break
            said = "".join(lines)
            links = [word for word in said.split() if word.startswith("http")]
            assert links, said
            yield links[-1], links[0] if len(links) > 1 else ""
        finally:
            process.terminate()


@contextmanager
def chromium(executable: str) -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--headless"]
        )
        yield browser
        browser.close()


def set_up(page: Any, link: str, name: str) -> None:
    """The first account, or an invited one, by its one-time link."""
    page.goto(link)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    page.wait_for_url("**/cases")


def log_in(page: Any, address: str, name: str) -> None:
    """Log in with name and password."""
    page.goto(f"{address}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/cases")


def new_case(page: Any, address: str, pseudonym: str, slide: str = "", stain: str = "") -> str:
    """Make a case; its address."""
    page.goto(f"{address}/cases/new")
    page.get_by_label("Patient's pseudonym").fill(pseudonym)
    page.get_by_label("Slide").fill(slide)
    page.get_by_label("Stain").fill(stain)
    page.get_by_role("button", name="Make the case").click()
    page.wait_for_url("**/images")
    return str(page.url).removesuffix("/images")


def upload(
    page: Any, files: Sequence[Path], seen: Callable[[], None] | None = None, seconds: int = 300
) -> None:
    """Choose files on the page of images and wait until all have been read."""
    page.locator("#pick-files").set_input_files([str(path) for path in files])
    received = f"{len(files)} of {len(files)} files received"
    if seen:
        page.locator("#files li").first.wait_for()
        seen()
    page.get_by_text(received).wait_for(timeout=seconds * 1000)
    page.get_by_role("link", name="Review them").wait_for(timeout=seconds * 1000)


def review(page: Any, case: str) -> None:
    """Open the screen of review and wait until its cells are there and answer to keys."""
    page.goto(f"{case}/review")
    page.locator(".cell[tabindex='0']").wait_for()
    page.locator("#agreement progress").wait_for(state="attached")
