"""Real cells and fields, read by a real network, over the API."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import new_case, send, serving, settled, uploads
from sklearn.metrics import f1_score
from store import PASSWORD, person
from test_exports_fhir import rebuilt

from leukoscope import api
from leukoscope.imaging.cells import Box
from leukoscope.review.api import PREFIX

pytestmark = pytest.mark.real
TRAINED, HELD_OUT = 40, 6
"""Images a class to learn from, and others that the server is then given."""


@pytest.fixture(scope="module")
def real_bundle(
    tmp_path_factory: pytest.TempPathFactory, pbc: Path, mobilenet_weights: Path
) -> Path:
    """MobileNetV2 under the head of lightweight-cnn, one view of 40 images a class."""
    folder = tmp_path_factory.mktemp("real")
    for kind in sorted(pbc.iterdir()):
        (folder / "images" / kind.name).mkdir(parents=True)
        for path in sorted(kind.iterdir())[:TRAINED]:
            shutil.copyfile(path, folder / "images" / kind.name / path.name)
    api.index(folder / "images", folder / "cells.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(folder / "cache"))
        api.train(
            "lightweight-cnn", folder / "cells.parquet", folder / "run", arm="mobilenetv2",
            weights=str(mobilenet_weights), settings=["views.count=1"],
        )  # fmt: skip
    return api.export(folder / "run", folder / "bundle")


def test_real_cells_and_fields_from_upload_to_exports(
    real_bundle: Path, pbc: Path, bccd: Path, tmp_path: Path, migrated_sqlite: Path
) -> None:
    copy = tmp_path / "real.db"
    shutil.copyfile(migrated_sqlite, copy)
    with serving(real_bundle, f"sqlite:///{copy}", tmp_path / "f") as made:
        person(made.app.state.database, "ada", "administrator", None)
        ada = made.browser("ada")
        case = _single_cells(ada, pbc)
        _fields(ada, bccd)
        _heat_maps_and_references(ada, case)


def _single_cells(ada: TestClient, pbc: Path) -> str:
    """Most are read right, nearly none is novel; the exports say what the screen says."""
    case = new_case(ada, "PBC")
    held_out = [p for kind in sorted(pbc.iterdir()) for p in sorted(kind.iterdir())[-HELD_OUT:]]
    for path in held_out:
        send(ada, case, f"{path.parent.name}/{path.name}", path.read_bytes(), kind="cell")
    cells = settled(ada, case, 300)
    assert len(cells) == len(held_out)
    truth = [cell["field_name"].split("/")[0] for cell in cells]
    assert f1_score(truth, [cell["predicted"] for cell in cells], average="macro") >= 0.6
    assert sum(cell["flag"] == "novel" for cell in cells) <= 0.2 * len(cells)
    wrong = [c for c, right in zip(cells, truth, strict=True) if c["predicted"] != right]
    assert sum(c["flag"] != "" for c in wrong) >= len(wrong) / 2

    path = f"{PREFIX}/cases/{case}"
    for cell in wrong:
        given = {"label": cell["field_name"].split("/")[0], "cells": {cell["id"]: cell["revision"]}}
        assert ada.post(f"{path}/labels", json=given).status_code == 200
    revision = ada.get(path).json()["revision"]
    signature = {"revision_seen": revision, "password": PASSWORD}
    assert ada.post(f"{path}/sign", json=signature).status_code == 201
    counts = {name: truth.count(name) for name in set(truth)}
    fhir = rebuilt(ada.get(f"{path}/exports/fhir").text)["reviewer"]
    assert {name: fhir[name]["count"] for name in counts} == counts
    assert fhir["neutrophil"]["leukocytes"] == len(cells) - 2 * HELD_OUT  # no erythroblasts
    with zipfile.ZipFile(io.BytesIO(ada.get(f"{path}/exports/csv").content)) as archive:
        name = next(n for n in archive.namelist() if n.endswith("cells.csv"))
        rows = list(csv.DictReader(io.StringIO(archive.read(name).decode("utf-8-sig"))))
    assert sorted(row["shown"] for row in rows) == sorted(truth)
    assert ada.get(f"{path}/exports/pdf").content.startswith(b"%PDF")
    return case


def _fields(ada: TestClient, bccd: Path) -> None:
    """White cells are found where experts drew them; of another stain, they are called novel."""
    case = new_case(ada, "BCCD")
    fields = sorted((bccd / "images").iterdir())[::50]
    for path in fields:
        send(ada, case, path.name, path.read_bytes())
    cells = settled(ada, case, 300)
    assert {upload["kind"] for upload in uploads(ada, case).values()} == {"field"}
    drawn = {path.name: _white_cells(bccd / "annotations" / f"{path.stem}.xml") for path in fields}
    found = 0
    for cell in cells:
        box = Box(cell["x"], cell["y"], cell["box_width"], cell["box_height"])
        found += any(box.intersection_over_union(d) >= 0.5 for d in drawn[cell["field_name"]])
        image = ada.get(f"{PREFIX}/cells/{cell['id']}/image").content
        assert image.startswith(b"\x89PNG")
    assert found >= 0.85 * sum(map(len, drawn.values()))
    assert found >= 0.85 * len(cells)
    assert sum(cell["flag"] == "novel" for cell in cells) >= 0.8 * len(cells)


def _white_cells(annotation: Path) -> list[Box]:
    from xml.etree import ElementTree

    boxes = []
    for one in ElementTree.parse(annotation).getroot().iter("object"):
        if one.findtext("name") == "WBC":
            x, y, right, low = (
                int(float(one.findtext(f"bndbox/{name}") or 0))
                for name in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append(Box(x, y, right - x, low - y))
    return boxes


def _heat_maps_and_references(ada: TestClient, signed: str) -> None:
    """A doubtful cell has a map and reference cells, those most like it first."""
    case = new_case(ada, "again")
    first: Any = ada.get(f"{PREFIX}/cases/{signed}/cells").json()["cells"][0]
    data = ada.get(f"{PREFIX}/cells/{first['id']}/image").content
    send(ada, case, "the same.jpg", data, kind="cell")
    (cell,) = settled(ada, case)
    path = f"{PREFIX}/cells/{cell['id']}"
    assert ada.get(f"{path}/heatmap").content.startswith(b"\x89PNG")
    given = {"label": first["shown"], "limit": 5}
    found = ada.get(f"{path}/references", params=given).json()["references"]
    assert first["id"] in {each["cell_id"] for each in found}
    distances = {each["cell_id"]: each["distance"] for each in found}
    assert distances[first["id"]] == pytest.approx(0, abs=1e-3)
