"""A small laboratory for tests of the store: three people, a model, a case of read cells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from leukoscope.bundle.contract import Contract
from leukoscope.review import accounts, cases
from leukoscope.review.cases import NewCell, NewReading
from leukoscope.review.database import Database
from leukoscope.review.schema import Model, Upload, User

CLASSES = ["neutrophil", "lymphocyte", "monocyte", "erythroblast"]
PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Lab:
    """`anna` and `boris` review, `vera` looks on, `ada` administers."""

    database: Database
    ada: User
    anna: User
    boris: User
    vera: User
    model: Model
    case: str
    cells: list[int]


def contract(name: str = "small", classes: list[str] = CLASSES) -> Contract:
    """A contract as a bundle has it; nothing was trained, all figures are synthetic."""
    spread = (1.0, 1.0, 1.0)
    return Contract.model_validate(
        {
            "leukoscope": "0.1.0",
            "created": "2026-01-01T00:00:00+00:00",
            "name": name,
            "version": "1",
            "input": {"size": (32, 32), "mean": (0.0, 0.0, 0.0), "std": spread},
            "preprocessing": [],
            "classes": classes,
            "temperature": 1.0,
            "prediction_sets": None,
            "novelty": None,
            "model": {
                "networks": [{"architecture": "none", "mean": (0.0, 0.0, 0.0), "std": spread}],
                "head": [],
                "sha256": _sha(name),
            },
            "origin": {
                "recipe": "none",
                "arm": "",
                "protocol": "clean",
                "seed": 0,
                "recipe_sha256": _sha("recipe"),
                "data": "synthetic smear",
                "data_licence": "CC0-1.0",
                "data_citation": "",
                "data_sha256": _sha("data"),
                "images": 0,
                "patients": None,
                "synthetic": True,
                "weights": [],
            },
            "validation": {},
        }
    )


def reading(predicted: str, confidence: float = 0.9, flag: str = "", **more: Any) -> NewReading:
    """A reading with the rest of the probability spread evenly."""
    rest = (1 - confidence) / (len(CLASSES) - 1)
    probs = {name: confidence if name == predicted else rest for name in CLASSES}
    return NewReading(predicted, confidence, probs, [predicted], flag=flag, **more)


def new_cell(upload: Upload, said: NewReading, **more: Any) -> NewCell:
    """A cell of 80 x 80 px that is a whole upload."""
    return NewCell(upload.id, upload.sha256 or "", 80, 80, said, **more)


def upload(session: Session, case_id: str, by: User, name: str, **more: Any) -> Upload:
    """A file that has arrived."""
    given = {"state": "done", "kind": "cell", "sha256": _sha(name), **more}
    row = Upload(
        id=_sha(case_id + name)[:32], case_id=case_id, name=name, size=100, received=100,
        created_by=by.id, **given,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def person(database: Database, name: str, role: str, by: User | None) -> User:
    """An account made by invitation."""
    with database.begin() as session:
        token = accounts.invite(session, role, by)
    return accounts.accept(database, token, name, PASSWORD)


def furnished(database: Database, cells: int = 12) -> Lab:
    """People, a model and a case whose cells are, in turn, of each class but the last."""
    ada = person(database, "ada", "administrator", None)
    anna, boris = (person(database, name, "reviewer", ada) for name in ("anna", "boris"))
    vera = person(database, "vera", "viewer", ada)
    with database.begin() as session:
        model = register(session)
        case = cases.create(session, anna, "P-001", model.id, slide="S1", stain="MGG")
        files = [upload(session, case.id, anna, f"cell {i}.png") for i in range(cells)]
        new = [
            new_cell(file, reading(CLASSES[i % 3], 0.5 + 0.4 * i / cells))
            for i, file in enumerate(files)
        ]
        ids = cases.add_cells(session, anna, case.id, model.id, new)
    return Lab(database, ada, anna, boris, vera, model, case.id, ids)


def register(session: Session, name: str = "small", classes: list[str] = CLASSES) -> Model:
    """The row of a model of that name."""
    made = contract(name, classes)
    return cases.register_model(session, made, made.model.sha256, _sha("contract " + name))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
