"""What leaves the application: tables, the report on paper, images for training."""

from __future__ import annotations

import copy
import csv as csv_module
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pypdfium2
import pytest
from contents import SIGNED, cell, content, large, picture, small
from store import PASSWORD, Lab

from leukoscope import api
from leukoscope.data import index
from leukoscope.errors import InputError, LeukoscopeError
from leukoscope.review import cases, changes, exports, quality, signing, vocabulary
from leukoscope.review.exports import csv, fhir, pdf, retraining


def rows(text: str) -> list[dict[str, str]]:
    return list(csv_module.DictReader(io.StringIO(text, newline="")))


def words(path: Path) -> list[str]:
    """The text of each page, in one line."""
    with pypdfium2.PdfDocument(path) as document:
        return [" ".join(page.get_textpage().get_text_range().split()) for page in document]


# --- vocabulary -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts", "code"),
    [
        ("neutrophil", True, "26511-6"),
        ("Neutrophils", True, "26511-6"),
        ("seg_neutrophil", True, "26505-8"),
        ("NGB", True, "26508-2"),
        ("EOS", True, "26450-7"),
        ("basophils", True, "30180-4"),
        ("ig", True, "38518-7"),
        ("smudge cell", True, "34992-8"),
        ("PMB", True, None),
        ("Early Pre-B", True, None),
        ("erythroblast", False, "19048-8"),
        ("platelet", False, None),
        ("artefact", False, None),
        ("unclassifiable", False, None),
    ],
)
def test_names_of_classes(name: str, counts: bool, code: str | None) -> None:
    found = vocabulary.loinc(name)
    assert vocabulary.is_leukocyte(name) is counts
    assert (found.code if found else None) == code


def test_codes_have_their_check_digit() -> None:
    """LOINC's last digit is a Luhn check digit (Mod 10), so that a slip of the pen shows."""
    for code in (known.code for known in vocabulary.codes()):
        number, _, check = code.partition("-")
        digits = [int(d) for d in reversed(number)]
        doubled = [sum(divmod(2 * d, 10)) if at % 2 == 0 else d for at, d in enumerate(digits)]
        assert (10 - sum(doubled) % 10) % 10 == int(check), code


def test_starting_needs_no_heavy_library() -> None:
    code = (
        "import sys; import leukoscope.review.exports.csv, leukoscope.review.exports.fhir, "
        "leukoscope.review.exports.retraining, leukoscope.review.quality; "
        "sys.exit(bool({'pandas', 'matplotlib', 'scipy', 'sklearn', 'torch', 'fhir'} "
        "& set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- csv ------------------------------------------------------------------------------------------


def test_cells_as_csv() -> None:
    made = small()
    table = rows(csv.cells(made))
    assert list(table[0]) == list(csv.CELLS)
    assert len(table) == len(made["cells"])
    assert table[2]["predicted"] == "neutrophil"
    assert table[2]["shown"] == table[2]["label"] == "ig"
    assert table[2]["comment"] == "Toxic granules?"
    assert table[7]["quality"] == "blurred"
    assert table[9]["label"] == ""
    assert table[9]["shown"] == "basophil"
    assert (table[10]["field"], table[10]["x"], table[10]["box_width"]) == (
        "field_1.png",
        "10",
        "80",
    )
    assert {row["signed_by"] for row in table} == {SIGNED["by"]}
    assert {row["note"] for row in table} == {exports.CAVEAT}
    assert {row["status"] for row in rows(csv.cells(small(signed=None)))} == {"preliminary"}


def test_differential_as_csv() -> None:
    table = pd.read_csv(io.StringIO(csv.differential(small())))
    assert list(table.columns) == list(csv.DIFFERENTIAL)
    reviewer = table[table["reader"] == "reviewer"].set_index("class")
    assert reviewer.loc["neutrophil", "share"] == pytest.approx(3 / 9)
    assert reviewer["share"].sum() == pytest.approx(1)
    assert reviewer.loc[["platelet", "erythroblast", "artefact"], "share"].isna().all()
    assert (reviewer["low"].dropna() <= reviewer["share"].dropna()).all()


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", '=HYPERLINK("http://x")']
)
def test_no_text_is_a_formula(text: str) -> None:
    made = small(pseudonym=text)
    made["cells"][0] |= {"comment": text, "image": text}
    first = rows(csv.cells(made))[0]
    for column in ("pseudonym", "comment", "image"):
        assert first[column].startswith("'")
        assert first[column][1:].strip() == text.strip()
    assert first["confidence"] == "0.51"


def test_csv_keeps_line_breaks_and_quotes() -> None:
    made = small()
    made["cells"][0]["comment"] = 'two\nlines, "quoted"; and – more'
    assert rows(csv.cells(made))[0]["comment"] == made["cells"][0]["comment"]


def test_the_archive_holds_both_tables_and_is_reproducible() -> None:
    made = small()
    with zipfile.ZipFile(io.BytesIO(csv.archive(made))) as archive:
        names = archive.namelist()
        first = archive.read(names[0])
    assert names == [f"{exports.stem(made)}-cells.csv", f"{exports.stem(made)}-differential.csv"]
    assert first.startswith(b"\xef\xbb\xbf")  # so that Excel reads umlauts
    assert first.decode("utf-8-sig") == csv.cells(made)
    assert csv.archive(made) == csv.archive(copy.deepcopy(made))


# --- pdf ------------------------------------------------------------------------------------------


def test_the_report_says_it_all(tmp_path: Path) -> None:
    pages = words(pdf.write(small(), tmp_path / "report.pdf", picture))
    text = " ".join(pages)
    assert len(pages) <= 2
    for page in pages:
        assert exports.CAVEAT in page
    for said in ("P-0042", "S-7", "May-Grünwald-Giemsa", "1e" * 32, "2f" * 32, "ab" * 32,
                 "Dr. A. Huber", "2026-11-21 09:30 UTC", "75.0%", "[12.1, 64.6]",
                 "→ immature granulocyte", "Toxic granules?", "kappa"):  # fmt: skip
        assert said in text, said
    assert "NOT SIGNED" not in text
    assert "looked at by nobody" not in text


def test_the_same_content_gives_the_same_report(tmp_path: Path) -> None:
    one = pdf.write(small(), tmp_path / "one.pdf", picture).read_bytes()
    assert one == pdf.write(small(), tmp_path / "two.pdf", picture).read_bytes()


def test_an_unsigned_report_says_so_on_every_page(tmp_path: Path) -> None:
    made = small(signed=None, synthetic=True)
    made["cells"][11]["flag"] = "doubtful"
    pages = words(pdf.write(made, tmp_path / "report.pdf", picture))
    assert all("NOT SIGNED" in page and exports.SYNTHETIC in page for page in pages)
    assert "1 cell flagged as doubtful or novel and looked at by nobody." in " ".join(pages)


def test_a_large_report_stays_readable(tmp_path: Path) -> None:
    pages = words(pdf.write(large(), tmp_path / "report.pdf", picture))
    text = " ".join(pages)
    assert len(pages) <= 5
    assert "(amended)" in text
    assert "more corrected cells are in the CSV export" in text
    assert "more comments are in the CSV export" in text
    assert "report.html" not in text


@pytest.mark.parametrize("cells", [[], [cell(1, "platelet", "artefact")]])
def test_a_report_without_leukocytes(cells: list[dict[str, object]], tmp_path: Path) -> None:
    pages = words(pdf.write(content(cells), tmp_path / "report.pdf", picture))
    assert "0 by the reviewer's classes" in " ".join(pages)


def test_a_missing_image_is_said(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=r"cell 3 .* is missing") as problem:
        pdf.write(small(), tmp_path / "report.pdf", lambda _: None)
    assert "backup" in problem.value.fix
    assert not (tmp_path / "report.pdf").exists()


# --- retraining -----------------------------------------------------------------------------------


def test_index_reads_the_retraining_export(tmp_path: Path) -> None:
    made = small(pseudonym='=P, "42"')
    retraining.write(made, tmp_path / "retraining.zip", picture)
    with zipfile.ZipFile(tmp_path / "retraining.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    api.index(tmp_path / "unpacked" / "cells.csv", tmp_path / "cells.parquet")
    found = index.load(tmp_path / "cells.parquet").frame
    said = {c["id"]: c["label"] for c in made["cells"] if c["label"] not in (None, "artefact")}
    assert len(found) == len(said) == 8
    assert {int(Path(i).name.split("-")[0]): label
            for i, label in zip(found["image"], found["label"], strict=True)} == said  # fmt: skip
    assert set(found["patient"]) == {made["case"]["pseudonym"]}
    assert set(found["slide"]) == {"S-7"}


def test_the_models_own_classes_are_no_training_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No cell of this case") as problem:
        retraining.write(content([cell(1, "ig")]), tmp_path / "retraining.zip", picture)
    assert "Confirm or correct" in problem.value.fix
    assert not list(tmp_path.iterdir())


def test_exports_of_a_signed_version_never_change(lab: Lab, tmp_path: Path) -> None:
    """From the database: corrected, signed, exported; amended and signed again, the first stays."""
    with lab.database.begin() as session:
        seen = cases.find(session, lab.case).revision
        changes.relabel(session, lab.anna, lab.case, {lab.cells[0]: seen}, "erythroblast")
    signing.sign(lab.database, lab.anna, lab.case, seen + 1, PASSWORD)
    with lab.database.read() as session:
        first = signing.content(session, cases.find(session, lab.case))
    before = [export(first, tmp_path) for export in ALL]
    with lab.database.begin() as session:
        signing.amend(session, lab.anna, lab.case, "One more cell")
        seen = cases.find(session, lab.case).revision
        changes.relabel(session, lab.boris, lab.case, {lab.cells[1]: seen}, "monocyte")
        revision = cases.find(session, lab.case).revision
    signing.sign(lab.database, lab.boris, lab.case, revision, PASSWORD)
    with lab.database.read() as session:
        stored = signing.signature(session, lab.case, 1).content
        second = signing.content(session, cases.find(session, lab.case))
    assert [export(stored, tmp_path) for export in ALL] == before
    assert all(export(second, tmp_path) != one for export, one in zip(ALL, before, strict=True))
    assert json.loads(fhir.to_json(second))["entry"][0]["resource"]["status"] == "amended"
    assert {row["signed_by"] for row in rows(csv.cells(second))} == {"boris"}
    reviewer = [r for r in rows(csv.differential(second)) if r["reader"] == "reviewer"]
    assert {r["class"]: r["count"] for r in reviewer}["monocyte"] == "5"


ALL: list[Callable[[dict[str, Any], Path], bytes]] = [
    lambda made, _: csv.archive(made),
    lambda made, _: fhir.to_json(made).encode(),
    lambda made, folder: pdf.write(made, folder / "report.pdf", picture).read_bytes(),
    lambda made, folder: retraining.write(made, folder / "cells.zip", picture).read_bytes(),
]


def test_exports_depend_on_the_content_alone(tmp_path: Path) -> None:
    """A stored signature has been through JSON: its exports are the same bytes."""
    made, stored = small(), json.loads(json.dumps(small()))
    assert csv.archive(made) == csv.archive(stored)
    for one, two in ((made, "a.zip"), (stored, "b.zip")):
        retraining.write(one, tmp_path / two, picture)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


# --- documentation --------------------------------------------------------------------------------


def test_documentation_has_every_code_and_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "review" / "exports.md").read_text()
    written = dict(re.findall(r"^\| (\d+-\d) \| (.+?) \|", page, re.MULTILINE))
    known = {code.code: code.display for code in vocabulary.codes()}
    assert written == known
    for column in (*csv.CELLS, *csv.DIFFERENTIAL, *retraining.COLUMNS):
        assert f"`{column}`" in page, column


def test_documentation_states_the_alarm_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "review" / "quality.md").read_text()
    for figure in (f"At least {quality.FEWEST_CASES} cases", f"{quality.SHIFT} or more",
                   f"at least {100 * quality.MOST_NOVEL:.0f} % of the cells",
                   f"expected {100 * quality.EXPECTED_NOVEL:.0f} %"):  # fmt: skip
        assert figure in page, figure
