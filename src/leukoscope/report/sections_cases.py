"""Sections on single cases and on the run itself: failures, environment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from leukoscope import files
from leukoscope.report import pictures
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import count, percent
from leukoscope.report.page import (
    Block,
    Cell,
    Code,
    Details,
    Missing,
    Paragraph,
    Pictures,
    Section,
    Table,
)
from leukoscope.report.sections_data import no_images

SHOWN_FAILURES, SURE = 12, 0.9
HASHED = ("recipe.toml", "split.parquet", "predictions.parquet", "metrics.json")
_DOI = re.compile(r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+")


# --- failures -------------------------------------------------------------------------------------


def failures(run: Run) -> Section:
    """The errors that the model was surest of."""
    name = "Failures with the highest confidence"
    frame = run.tested
    if frame is None:
        text = (
            "The single predictions are not at hand; to keep them, evaluate a file of predictions:"
        )
        command = "leukoscope evaluate predictions.csv -o metrics.json"
        return Section("failures", name, [Missing(text, command)])
    probs = run.probabilities()
    confidence = np.full(len(frame), np.nan) if probs is None else probs.max(axis=1)
    frame = frame.assign(confidence=confidence)
    wrong = frame[frame["label"] != frame["predicted"]]
    if wrong.empty:
        return Section("failures", name, [Paragraph("The model made no error on these images.")])
    wrong = wrong.sort_values("confidence", ascending=False, kind="stable")
    says = _failures_say(wrong["confidence"].to_numpy(), len(frame))
    table = _failure_table(wrong.head(SHOWN_FAILURES).to_dict("records"))
    shown = _failure_pictures(run, wrong.to_dict("records"))
    if shown:
        blocks: list[Block] = [
            Pictures(shown, says, size="large"),
            Details("The same as a table", [table]),
        ]
    else:
        blocks = [Paragraph(says), table, no_images(run)]
    return Section("failures", name, blocks)


def _failures_say(confidence: np.ndarray, n: int) -> str:
    text = f"{count(len(confidence), 'error')} in {count(n, 'prediction')}"
    if np.isnan(confidence).all():
        return f"{text}; without probabilities they can't be ranked, so the first are shown."
    sure = int((confidence > SURE).sum())
    says = "none" if not sure else f"{sure:,} of them"
    return f"{text}; in {says} the model was more than {SURE:.0%} sure. The surest are shown."


def _failure_pictures(run: Run, wrong: list[dict[Any, Any]]) -> list[Any]:
    if run.root is None:
        return []
    items = []
    seen = set()
    for row in wrong:
        image = str(row.get("image", ""))
        if not image or image in seen:  # under the published protocol one image has many views
            continue
        seen.add(image)
        sure = "" if np.isnan(row["confidence"]) else f"confidence {percent(row['confidence'])}"
        lines = [image, f"true: {row['label']}", f"predicted: {row['predicted']}", sure]
        alt = f"{image}: labelled {row['label']}, predicted {row['predicted']}"
        items.append((image, alt, [line for line in lines if line]))
        if len(items) == SHOWN_FAILURES:
            break
    return pictures.gallery(run.root, items, pictures.LARGE)


def _failure_table(wrong: list[dict[Any, Any]]) -> Table:
    rows: list[list[Cell | str]] = []
    for row in wrong:
        sure = row["confidence"]
        known = (
            Cell("undefined", "no probabilities were given") if np.isnan(sure) else percent(sure)
        )
        rows.append([str(row.get("image", "")), row["label"], row["predicted"], known])
    head = ["Image", "True", "Predicted", "Confidence"]
    return Table("The errors that the model was surest of.", head, rows, frozenset({1, 2}))


# --- environment ----------------------------------------------------------------------------------


def environment(run: Run) -> Section:
    """How to get the same figures again: command, versions, hashes, licence, citation."""
    name = "Environment and how to reproduce"
    if not run.environment:
        text = (
            "No environment is recorded, as the predictions were made elsewhere; to have one, run"
        )
        blocks: list[Block] = [Missing(text, "leukoscope train RECIPE cells.parquet -o RUN")]
    else:
        blocks = []
        command = run.environment.get("command")
        if command:
            words = command if isinstance(command, str) else " ".join(map(str, command))
            blocks += [Paragraph("The command that made this run:"), Code(words)]
        blocks.append(_settings(run))
    blocks += [_data_table(run), *_paper(run), *_folded(run)]
    return Section("environment", name, blocks)


def _settings(run: Run) -> Table:
    found = run.environment
    names = ("leukoscope", "python", "platform", "device", "threads", "seed", "protocol", "recipe",
             "arm", "recipe_sha256", "started")  # fmt: skip
    rows: list[list[Cell | str]] = [
        [_named(key), str(found[key])] for key in names if found.get(key) is not None
    ]
    seconds = found.get("seconds")
    if isinstance(seconds, int | float):
        rows.append(
            ["Duration", f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"]
        )
    weights = found.get("weights")
    for key, item in (weights if isinstance(weights, Mapping) else {"": weights}).items():
        if item is not None:
            rows.append([f"Weights: {_named(key)}" if key else "Weights", _text(item)])
    return Table("Settings of this run.", ["Setting", "Value"], rows, frozenset({1}))


def _data_table(run: Run) -> Table:
    index = run.index
    rows: list[list[Cell | str]] = [
        [key.capitalize(), str(index.get(key) or "not stated")]
        for key in ("name", "licence", "citation")
    ]
    more = ("layout", "n", "patients", "root", "sha256")
    rows += [[_named(key), str(index[key])] for key in more if index.get(key)]
    rows.append(["Synthetic", "yes" if run.synthetic else "no" if index else "not stated"])
    return Table(
        "The data set, its licence and citation.", ["Field", "Value"], rows, frozenset({1})
    )


def _paper(run: Run) -> list[Block]:
    paper = run.recipe.get("paper")
    if not isinstance(paper, Mapping):
        return []
    doi = str(paper.get("doi") or "")
    link = f"https://doi.org/{doi}" if _DOI.fullmatch(doi) else ""
    rows: list[list[Cell | str]] = [["Citation", str(paper.get("citation") or "not stated")]]
    if doi:
        rows.append(["DOI", Cell(doi, href=link)])
    return [Table("The paper that this recipe follows.", ["Field", "Value"], rows, frozenset({1}))]


def _folded(run: Run) -> list[Block]:
    blocks: list[Block] = []
    recipe = run.folder / "recipe.toml"
    if recipe.is_file():
        text = recipe.read_text(encoding="utf-8", errors="replace")
        blocks.append(Details("The recipe with every setting", [Code(text)]))
    packages = run.environment.get("packages")
    if isinstance(packages, Mapping) and packages:
        rows: list[list[Cell | str]] = [[str(k), _text(v)] for k, v in sorted(packages.items())]
        table = Table("Versions of the packages.", ["Package", "Version"], rows, frozenset({1}))
        blocks.append(Details(f"Package versions ({len(rows)})", [table]))
    hashes: list[list[Cell | str]] = [
        [file, files.sha256_of(run.folder / file)]
        for file in HASHED
        if (run.folder / file).is_file()
    ]
    table = Table("SHA-256 of the files.", ["File", "SHA-256"], hashes, frozenset({1}))
    return [*blocks, Details("Hashes of this run's files", [table])]


def _named(key: str) -> str:
    words = {"n": "Images", "sha256": "SHA-256", "recipe_sha256": "Recipe SHA-256"}
    return words.get(key, key.capitalize())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
