"""The documentation is true: generated pages are fresh, links resolve, command lines parse."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.exceptions import TyperException

from leukoscope.cli.commands import app
from leukoscope.data.datasets import datasets
from leukoscope.data.layouts import layouts
from leukoscope.evaluate.metrics import PER_CLASS, metrics
from leukoscope.imaging.augmentation_ops import augmentations
from leukoscope.imaging.pipeline import transforms
from leukoscope.recipes import schema

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
WRITTEN = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")])
GROUP: Any = typer.main.get_command(app)
REGISTERED = {
    "commands.md": list(GROUP.commands),
    "recipes.md": schema.names(),
    "layouts.md": list(layouts),
    "datasets.md": list(datasets),
    "transforms.md": [*transforms, *augmentations],
    "metrics.md": [*metrics, *PER_CLASS],
}


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def generate() -> Iterator[Any]:
    """docs/generate.py as a module."""
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("generate")
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def pages(generate: Any) -> dict[str, str]:
    return generate.pages()


def test_generated_pages_are_fresh(pages: dict[str, str]) -> None:
    on_disk = {name: (DOCS / name).read_text("utf-8") for name in pages if (DOCS / name).is_file()}
    stale = [name for name, text in pages.items() if on_disk.get(name) != text]
    gone = {f"recipes/{path.name}" for path in (DOCS / "recipes").glob("*.md")} - set(pages)
    assert not stale, f"stale: {stale}; run python docs/generate.py"
    assert not gone, f"pages of no recipe: {sorted(gone)}; run python docs/generate.py"


@pytest.mark.parametrize("page", REGISTERED)
def test_everything_registered_has_its_entry(page: str, pages: dict[str, str]) -> None:
    lines = pages[page].splitlines()
    entries = {line.lstrip("# ") for line in lines if line.startswith("##")}
    entries |= {line.split("|")[1].strip(" `") for line in lines if line.startswith("| ")}
    entries |= {re.sub(r"\[(.*?)\].*", r"\1", entry) for entry in entries}
    assert not set(REGISTERED[page]) - entries


@pytest.mark.parametrize("name", schema.names())
def test_every_recipe_has_its_page(name: str, pages: dict[str, str]) -> None:
    page, tables = pages[f"recipes/{name}.md"], schema.raw(name)
    for trap in tables["traps"]:
        assert trap.replace("<", "&lt;") in page
    for arm in schema.arms(tables):
        assert f"| `{arm}` |" in page
    for claimed in tables["published"]:
        _, _, section = page.partition(f"### {claimed['title']}\n")
        section = section.split("\n##")[0]
        for arm, figures in claimed["figures"].items():
            assert f"| {arm} |" in section
            assert all(f"| {metric} |" in section for metric in figures)
            assert all(f"| {figure} |" in section for figure in figures.values())
        for test in claimed.get("tests", []):
            assert f"`{test['a']}` against `{test['b']}`" in section


# Choices that a paper leaves open, at the setting whose comment says what was chosen and why.
OPEN = {
    "convnext-aml": "exclude balance preprocessing[2] views augmentation[1] augmentation[2] "
    "augmentation[5] model training training.schedule training.phases[1] training.averaging "
    "training.averaging.factor training.averaging.anneal_epochs arms.convnext-tiny.model "
    "arms.resnet50.model arms.densenet121.model arms.vit.model arms.efficientnet-b0.model "
    "arms.plain.training arms.swa.training arms.mixup-swa.training",
    "logmh-transfer": "dataset split preprocessing[2] views augmentation[1] augmentation[6] "
    "features features.networks[1].layer training classical arms.inception-resnet-v2 "
    "arms.xception arms.alexnet arms.retinanet arms.centernet classical.sgd_alpha",
    "otsu-efficientnet": "seed preprocessing[2] augmentation[1] model training.epsilon "
    "training.phases[2]",
    "lightweight-cnn": "preprocessing[2] views augmentation[1] training.patience arms.cnn.model",
    "hybrid-stacking": "preprocessing[2] views augmentation[1] augmentation[3] model features "
    "features.networks[2] training classical classical.folds classical.stacker_c "
    "classical.forest_criterion arms.vgg16 arms.vit",
}


@pytest.mark.usefixtures("generate")
@pytest.mark.parametrize("name", schema.names())
def test_what_a_paper_leaves_open_is_said_where_it_is_chosen(name: str) -> None:
    notes = importlib.import_module("generate_recipes").toml_comments(schema.text(name))
    assert not set(OPEN[name].split()) - {*notes}


@pytest.mark.usefixtures("generate")
def test_measured_figures_stand_in_the_page_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = importlib.import_module("generate_recipes")
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "otsu-efficientnet.md").write_text("Measured: 7 of 9.\n")
    monkeypatch.setattr(recipes, "MEASURED", tmp_path / "measured")
    assert "## Measured figures\n\nMeasured: 7 of 9.\n" in recipes.recipe("otsu-efficientnet")
    assert "No run of this recipe is written up here." in recipes.recipe("hybrid-stacking")


@pytest.mark.usefixtures("generate")
def test_comments_of_a_recipe_file() -> None:
    text = """# about the file

name = "a # b" # behind
[[step]] # on a table
size = 1
# above
[[step]]
list = [
    "x", # within
]
"""
    found = importlib.import_module("generate_recipes").toml_comments(text)
    assert found == {
        "": "about the file",
        "name": "behind",
        "step[1]": "on a table",
        "step[2]": "above",
        "step[2].list": "within",
    }


# --- links ----------------------------------------------------------------------------------------


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_relative_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert not broken


# --- command lines --------------------------------------------------------------------------------


def calls(text: str) -> Iterator[str]:
    """Every command line in a fenced or indented block of a page."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = [line[4:] for line in rest.splitlines() if line.startswith("    ")]
    for block in [*fenced, "\n".join(indented)]:
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?leukoscope\s", line):
                yield line.removeprefix("$ ")


def mentions(text: str) -> Iterator[str]:
    """Every command line in code within a sentence; a command's name alone is none of these."""
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from (c for c in re.findall(r"`([^`\n]+)`", rest) if re.match(r"leukoscope\s", c))


def _parse(line: str, *, call: bool) -> None:
    """Raise TyperException unless the command line would run, or names a command where no call."""
    words = shlex.split(line, comments=True)[1:]
    if words in (["--help"], ["--version"]):
        return
    name, *rest = words
    if name not in GROUP.commands:
        raise AssertionError(f"no command {name!r}")
    if rest == ["--help"]:
        return
    if "…" in rest and not call:  # something is left out: what is said must still exist
        known = {option for p in GROUP.commands[name].params for option in p.opts}
        unknown = [word for word in rest if word.startswith("-") and word not in known]
        assert not unknown, unknown
        return
    if rest or call:
        GROUP.commands[name].make_context(name, rest)


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_command_lines_parse(path: Path) -> None:
    wrong = []
    text = path.read_text("utf-8")
    lines = [(line, True) for line in calls(text)] + [(line, False) for line in mentions(text)]
    for line, call in lines:
        try:
            _parse(line, call=call)
        except (TyperException, AssertionError) as problem:
            wrong.append(f"{line}: {problem}")
    assert not wrong


def test_wrong_command_lines_are_noticed() -> None:
    block = "```\nleukoscope trian a\nleukoscope split a -o b --sead 1\nleukoscope train\n```\n"
    text = f"{block}`leukoscope nothing`\n`leukoscope split … --sead`\n"
    assert len([*calls(text), *mentions(text)]) == 5
    for line in [*calls(text), *mentions(text)]:
        with pytest.raises((TyperException, AssertionError)):
            _parse(line, call=line in block)


def test_every_recipe_named_in_a_command_exists() -> None:
    for path in WRITTEN:
        for line in calls(path.read_text("utf-8")):
            words = shlex.split(line)
            if words[1] in {"train", "reproduce"}:
                assert words[2] in {*schema.names(), "RECIPE"}, line


def test_readme_has_its_place_for_figures() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    assert text.count("## Measured\n") == 1
    assert "synthetic data" in re.findall(r"!\[(.*?)\]", text)[0]
