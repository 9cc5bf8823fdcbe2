"""The whole story in Chromium: what a laboratory does from the first link to the audit log."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import story

from leukoscope.data import synthetic

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)


@dataclass
class Office:
    """A served application, a browser, and what its pages complained of."""

    address: str
    link: str
    browser: Any
    smear: Path
    said: list[str] = field(default_factory=list)
    states: dict[str, Any] = field(default_factory=dict)

    def page(self, name: str = "", width: int = 1280) -> Any:
        """A page of somebody who has logged in before, or of nobody."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 860}, storage_state=self.states.get(name)
        )
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda m: self.said.append(f"{page.url}: {m.text}"))
        page.on("pageerror", lambda problem: self.said.append(f"{page.url}: {problem}"))
        return page

    def images(self, count: int) -> list[Path]:
        """Synthetic single cells."""
        return sorted((self.smear / "images").rglob("*.jpg"))[:count]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def office(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_bundle: Path
) -> Iterator[Office]:
    """Set up by the one-time link: anna administers, boris reviews, vera looks on."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("CHROMIUM ABSENT: install Debian's chromium to walk through the application")
    more: tuple[str, ...] = ()
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        more = ("--database", server.url(server.fresh()))
    folder = tmp_path_factory.mktemp("story")
    synthetic.make(folder / "smear", images=72, size=96, patients=2, seed=3, leaks=False)
    with (
        story.served(small_bundle, folder / "data", *more) as (address, link),
        story.chromium(executable) as browser,
    ):
        made = Office(address, link, browser, folder / "smear")
        page = made.page()
        story.set_up(page, link, "anna")
        for name, role in (("boris", "reviewer"), ("vera", "viewer")):
            page.goto(f"{address}/people")
            page.get_by_label("Role", exact=True).select_option(role)
            page.get_by_role("button", name="Make a one-time link").click()
            other = made.page()
            story.set_up(other, page.get_by_label("One-time link").input_value(), name)
            made.states[name] = other.context.storage_state()
            other.context.close()
        made.states["anna"] = page.context.storage_state()
        page.context.close()
        yield made


@pytest.fixture(autouse=True)
def _nothing_said(office: Office) -> None:
    """Each test answers for its own pages."""
    office.said.clear()


def _label(page: Any, cell: int) -> str:
    """The class under which a cell is shown."""
    return str(page.locator(f"section.group:has(#cell-{cell})").get_attribute("data-label"))


def _focused(page: Any) -> int:
    return int(page.locator(".cell[tabindex='0']").get_attribute("data-id"))


def _saved(page: Any) -> None:
    """Until all acts have been answered: the button of undo lives from the last answer."""
    page.locator("#undo:enabled").wait_for()
    page.wait_for_timeout(150)


def test_the_whole_story(office: Office, tmp_path: Path) -> None:
    files = office.images(72)
    packed = tmp_path / "more.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in files[60:]:
            archive.write(path, path.name)
    view = office.smear / "fields" / "field_1.jpg"

    page = office.page()
    story.log_in(page, office.address, "anna")
    case = story.new_case(page, office.address, "P-0815", "A", "May-Grünwald-Giemsa")
    progress: list[str] = []
    story.upload(
        page, [*files[:60], packed, view],
        lambda: progress.append(page.locator("#sending").inner_text()),
    )  # fmt: skip
    assert "of 62 files received" in progress[0]
    page.locator("#pick-files").set_input_files([str(path) for path in files[:2]])
    page.get_by_text("62 of 64 files received, 2 already here").wait_for()
    assert page.get_by_text("already in this case").count() == 2

    story.review(page, case)
    cells = page.locator(".cell").count()
    assert cells > 72  # of the field too
    _a_cell_of_the_field_enlarged(page, case)
    _correct_by_keyboard(page)
    _correct_by_drag_and_undo(page)
    page.keyboard.press("c")
    page.get_by_label("Comment").fill("smudged")
    page.get_by_role("button", name="Close").click()
    page.locator(".mark.comment").wait_for()

    _sign(page, case)
    office.said[:] = [line for line in office.said if "401" not in line]  # the wrong password
    _export_all(page, cells)
    _amend(page, case)
    _read_the_log(page, office.address)
    page.context.close()
    assert not office.said, office.said


def _a_cell_of_the_field_enlarged(page: Any, case: str) -> None:
    """Found by search, shown in its field, measured in pixels and, once those are known, in µm."""
    for pixel, unit in (("", "px"), ("0,07", "µm")):
        if pixel:
            page.goto(f"{case}/images")
            page.get_by_text("Pseudonym, slide, stain, scale and notes").click()
            page.get_by_label("Micrometres a pixel").fill(pixel)
            page.get_by_role("button", name="Save").click()
            story.review(page, case)
        everything = page.locator(".cell:visible").count()
        page.keyboard.press("/")
        page.keyboard.type("field_1")
        assert 0 < page.locator(".cell:visible").count() < everything
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
        page.locator(".in-field svg[viewBox] rect").first.wait_for(state="attached")
        page.locator(".scale b", has_text=unit).wait_for()
        page.keyboard.press("Escape")
        page.get_by_label("Search cells").fill("")
        page.keyboard.press("Escape")


def _correct_by_keyboard(page: Any) -> None:
    classes = page.locator(".keys [data-label]").evaluate_all(
        "buttons => buttons.map(b => b.dataset.label)"
    )
    for n in range(5):
        cell = _focused(page)
        wanted = next(label for label in classes if label != _label(page, cell))
        page.keyboard.press(str(classes.index(wanted) + 1))
        assert _label(page, cell) == wanted
        assert _focused(page) != cell, n
        page.keyboard.press("ArrowRight")
    _saved(page)
    assert page.locator("[data-filter='changed'] .count").inner_text() == "5"
    page.locator("#agreement", has_text="agree on").wait_for()  # the count follows the act


def _correct_by_drag_and_undo(page: Any) -> None:
    cell = _focused(page)
    was = _label(page, cell)
    page.locator(f"#cell-{cell}").drag_to(page.locator(".keys [data-label='artefact']"))
    assert _label(page, cell) == "artefact"
    page.locator("[data-filter='changed'] .count", has_text="6").wait_for()
    page.keyboard.press("z")
    page.locator(f"section[data-label='{was}'] #cell-{cell}").wait_for()
    page.keyboard.press("y")
    page.locator(f"section[data-label='artefact'] #cell-{cell}").wait_for()
    page.keyboard.press("z")
    page.locator(f"section[data-label='{was}'] #cell-{cell}").wait_for()


def _sign(page: Any, case: str) -> None:
    page.goto(f"{case}/report")
    page.get_by_label("Your password").fill("not this one, surely")
    page.get_by_role("button", name="Sign version 1").click()
    page.get_by_text("Name or password is wrong").wait_for()
    page.get_by_label("Your password").fill(story.PASSWORD)
    page.get_by_role("button", name="Sign version 1").click()
    page.get_by_text("signed by anna").first.wait_for()
    page.goto(f"{case}/review")
    page.locator(".cell[tabindex='0']").wait_for()
    assert page.locator(".keys").count() == 0
    page.goto(f"{case}/report")


def _export_all(page: Any, cells: int) -> None:
    got = {}
    for words in ("PDF report", "CSV tables", "FHIR R4 bundle", "For re-training"):
        with page.expect_download() as download:
            page.get_by_role("link", name=words).click()
        got[words] = Path(download.value.path()).read_bytes()
    assert got["PDF report"].startswith(b"%PDF")
    with zipfile.ZipFile(io.BytesIO(got["CSV tables"])) as archive:
        names = archive.namelist()
        table = archive.read(next(n for n in names if "cells" in n)).decode("utf-8-sig")
    assert len(list(csv.DictReader(io.StringIO(table)))) == cells
    assert json.loads(got["FHIR R4 bundle"])["resourceType"] == "Bundle"
    with zipfile.ZipFile(io.BytesIO(got["For re-training"])) as archive:
        assert any(name.endswith("cells.csv") for name in archive.namelist())


def _amend(page: Any, case: str) -> None:
    page.get_by_label("Why it has to be changed").fill("the artefact is a cell after all")
    page.get_by_role("button", name="Amend").click()
    page.wait_for_url("**/review")
    page.locator(".keys").wait_for()
    page.goto(f"{case}/report?version=1")
    page.get_by_text("This is version 1 as it was signed").wait_for()


def _read_the_log(page: Any, address: str) -> None:
    page.goto(f"{address}/audit")
    earlier = page.get_by_role("button", name="Show earlier ones")
    while earlier.count():  # the office's other stories stand in the log too
        oldest = page.locator("tbody td.num").last.inner_text()
        earlier.click()
        js = "n => [...document.querySelectorAll('tbody td.num')].at(-1).textContent !== n"
        page.wait_for_function(js, arg=oldest)
    log = page.locator("main").inner_text()
    for action in ("create case", "upload", "label", "undo", "comment", "sign", "export", "amend"):
        assert action in log, action
    page.get_by_role("button", name="Check the whole log").click()
    page.get_by_text("Whole: all").wait_for()


def _small_case(office: Office, pseudonym: str) -> tuple[Any, str]:
    page = office.page("anna")
    case = story.new_case(page, office.address, pseudonym)
    story.upload(page, office.images(12))
    story.review(page, case)
    return page, case


def test_two_reviewers_see_each_other_and_nothing_is_lost(office: Office) -> None:
    anna, case = _small_case(office, "P-two")
    boris = office.page("boris")
    story.review(boris, case)
    cell = _focused(boris)

    boris.keyboard.press("x")
    anna.locator(f"section[data-label='artefact'] #cell-{cell}").wait_for(timeout=5000)
    anna.get_by_text("boris: 1 cell: artefact").wait_for(timeout=5000)

    # Anna's browser hears nothing for a while, and both label the same cell.
    anna.route("**/changes?*", lambda route: route.abort())
    anna.wait_for_timeout(300)
    boris.locator(f"#cell-{cell}").click()
    boris.keyboard.press("1")
    _saved(boris)
    said = len(office.said)
    anna.locator(f"#cell-{cell}").dblclick()
    anna.locator("#words").wait_for()
    anna.keyboard.press("u")
    refused = anna.locator("#enlarge .toast", has_text="boris changed cell")  # not behind it
    refused.wait_for()
    first = anna.locator(".keys [data-label]").first.get_attribute("data-label")
    anna.locator(f"section[data-label='{first}'] #cell-{cell}").wait_for()  # his stands
    refused.get_by_role("button", name="Store mine").click()
    anna.keyboard.press("Escape")
    anna.locator("#enlarge").wait_for(state="hidden")
    boris.locator(f"section[data-label='unclassifiable'] #cell-{cell}").wait_for(timeout=5000)
    anna.unroute("**/changes?*")
    _comments_survive(anna, boris, cell)
    _what_was_not_stored_goes_back(anna, cell)
    del office.said[said:]  # the browser itself notes refused requests
    anna.context.close()
    boris.context.close()


def _comments_survive(anna: Any, boris: Any, cell: int) -> None:
    """Looking erases nothing, and of two who write at once none erases the other."""
    for page in (anna, boris):
        page.locator(f"#cell-{cell}").dblclick()
        page.locator("#words").wait_for()
    boris.locator("#words").fill("his")
    boris.locator("[data-part=shut]").click()
    anna.locator(f"#cell-{cell} [title='his']").wait_for(state="attached")
    assert anna.locator("#words").input_value() == "his"
    anna.locator("[data-part=shut]").click()

    anna.locator(f"#cell-{cell}").dblclick()
    boris.locator(f"#cell-{cell}").dblclick()
    anna.locator("#words").fill("hers")
    boris.locator("#words").fill("his again")
    boris.locator("[data-part=shut]").click()
    anna.locator(f"#cell-{cell} [title='his again']").wait_for(state="attached")
    assert anna.locator("#words").input_value() == "hers"
    anna.locator("[data-part=shut]").click()
    anna.locator(".toast", has_text="commented on it").wait_for()
    anna.locator(f"#cell-{cell} [title='his again']").wait_for(state="attached")


def _what_was_not_stored_goes_back(page: Any, cell: int) -> None:
    was = _label(page, cell)
    page.route("**/api/v1/**", lambda route: route.abort())
    page.locator(f"#cell-{cell}").click()
    page.keyboard.press("x")
    page.locator(".toast", has_text="your last change was not stored").wait_for()
    assert _label(page, cell) == "artefact"
    page.unroute("**/api/v1/**")
    page.locator(f"section[data-label='{was}'] #cell-{cell}").wait_for(timeout=5000)
    page.route("**/labels", lambda _: None)  # on its way for ever
    page.keyboard.press("x")
    with page.expect_event("dialog") as asked:
        page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.accept()


def test_a_viewer_sees_but_cannot_touch(office: Office) -> None:
    anna, case = _small_case(office, "P-viewer")
    anna.context.close()
    page = office.page("vera")
    story.review(page, case)
    cell = _focused(page)
    was = _label(page, cell)
    page.keyboard.press("x")
    page.wait_for_timeout(200)
    assert _label(page, cell) == was
    assert page.locator(".keys").count() == 0
    page.goto(f"{case}/report")
    assert page.get_by_label("Your password").count() == 0
    page.context.close()
    assert not office.said, office.said


def test_an_upload_that_is_cut_off_goes_on_by_itself(office: Office, tmp_path: Path) -> None:
    page = office.page("anna")
    case = story.new_case(page, office.address, "P-cut")
    cut: list[str] = []

    def once(route: Any) -> None:
        if not cut:
            cut.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    page.route("**/api/v1/uploads/*offset=*", once)
    finished: list[str] = []

    def lost(route: Any) -> None:
        finished.append(route.request.url)
        route.abort() if len(finished) == 1 else route.continue_()

    page.route("**/api/v1/uploads/*/finish", lost)
    refused: list[str] = []

    def busy(route: Any) -> None:
        """The server has too much to do, and says when to come back: first soon, then later."""
        if route.request.method != "POST" or len(refused) == 2:
            return route.fallback()
        refused.append(route.request.url)
        wait = {"Retry-After": "1" if len(refused) == 1 else "4"}
        return route.fulfill(status=429, headers=wait, json={"error": {"message": "Too much"}})

    page.route("**/api/v1/cases/*/uploads", busy)
    story.upload(page, office.images(3))
    assert len(refused) == 2
    assert cut
    assert len(finished) == 4
    page.get_by_text("3 cells are ready").wait_for()
    _given_up(page, office.images(4)[3])
    _another_folder_isnt_spliced(page, case, office.images(5)[4].read_bytes(), tmp_path)
    page.context.close()


def _another_folder_isnt_spliced(page: Any, case: str, data: bytes, tmp_path: Path) -> None:
    """Files of one name and size in two folders: only the one that was cut off is continued."""
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(data if name == "left" else data[:-1] + b"!")
    page.locator("#pick-folder").set_input_files(tmp_path / "left")
    page.get_by_text("1 file hasn't arrived whole").wait_for()
    page.reload()  # where pieces arrive again
    page.unroute("**/api/v1/uploads/*offset=*")
    page.get_by_text("1 file was cut off earlier").wait_for()
    for name in ("right", "left"):
        with page.expect_response("**/finish"):
            page.locator("#pick-folder").set_input_files(tmp_path / name)
    page.locator("#files li", has_text="received").nth(1).wait_for()
    uploads = page.request.get(f"{case.replace('/cases/', '/api/v1/cases/')}/uploads").json()
    last = uploads["uploads"][4:]
    assert sorted(one["name"] for one in last) == ["left/1.jpg", "right/1.jpg"]
    assert all(one["state"] != "receiving" for one in last)


def _given_up(page: Any, path: Path) -> None:
    """A file that won't come any more is given up, lest its case stay unsignable."""
    page.route("**/api/v1/uploads/*offset=*", lambda route: route.fulfill(status=400, json={}))
    for n in (1, 2):  # chosen again it continues, and is one upload still
        page.locator("#pick-files").set_input_files(str(path))
        page.get_by_text(f"{n} failed").wait_for()
    page.get_by_text("1 file hasn't arrived whole").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=f"Give up {path.name}").click()
    page.get_by_text("1 file couldn't be used").wait_for()
    page.get_by_role("button", name="Give up").wait_for(state="detached")


NAMELESS = """() => [...document.querySelectorAll("button, a[href], input, select, textarea, img")]
  .filter(e => e.checkVisibility({contentVisibilityAuto: false}) && e.type !== "hidden")
  .filter(e => !((e.labels && [...e.labels].some(l => l.textContent.trim()))
    || e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.title
    || (e.tagName === "IMG" && e.hasAttribute("alt"))
    || (e.tagName !== "INPUT" && e.textContent.trim())))
  .map(e => e.outerHTML.slice(0, 100))"""
UNSAFE = """() => [...document.querySelectorAll("script:not([src]), style, [style], [onclick]")]
  .filter(e => !e.matches(".scale span")).map(e => e.outerHTML.slice(0, 100))"""
TOO_WIDE = "() => document.documentElement.scrollWidth - innerWidth"


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_whole_named_and_free_of_inline_code(office: Office, width: int) -> None:
    anna, case = _small_case(office, f"P-{width}")
    anna.context.close()
    page = office.page("anna", width)
    policies = set()
    page.on("response", lambda r: policies.add(r.headers.get("content-security-policy", "none")))
    places = [f"{case}/{tab}" for tab in ("images", "review", "report", "log")]
    names = ("cases", "cases/new", "quality", "audit", "people", "account", "about")
    for place in [*places, *(f"{office.address}/{name}" for name in names)]:
        page.goto(place)
        page.locator("main :is(h1, .cell[tabindex='0'])").first.wait_for()
        assert page.locator("h1").count() == 1, place
        assert page.evaluate(NAMELESS) == [], place
        assert page.evaluate(UNSAFE) == [], place
        assert page.evaluate(TOO_WIDE) <= 0, place
        assert "not a diagnosis" in page.locator("footer.foot").inner_text(), place
    assert len(policies) == 1
    policy = policies.pop()
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    page.context.close()
    assert not office.said, office.said


def test_the_grid_is_a_listbox_with_one_stop_and_a_dialog_that_gives_focus_back(
    office: Office,
) -> None:
    page, case = _small_case(office, "P-focus")
    assert page.locator(".cell[tabindex='0']").count() == 1
    assert page.locator("[role=listbox][aria-label] [role=option][aria-label]").count() >= 12
    page.keyboard.press("Shift+ArrowRight")
    assert page.locator("[role=option][aria-selected=true]").count() == 2
    page.keyboard.press("Escape")
    assert page.locator("[role=option][aria-selected=true]").count() == 0
    cell = _focused(page)
    page.keyboard.press("Enter")
    page.locator("#enlarge[open]").wait_for()
    assert page.get_by_text("Reference:").count() >= 1
    with page.expect_response("**/heatmap?label=*&model=*") as answer:
        page.keyboard.press("h")
    assert answer.value.ok
    page.keyboard.press("Escape")
    page.locator("#enlarge").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.id") == f"cell-{cell}"
    page.locator("#show-help").focus()
    page.keyboard.press("x")
    assert page.locator("section[data-label='artefact']").count() == 0
    page.locator(f"#cell-{cell}").focus()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.context.close()
    assert case
    assert not office.said, office.said
