"""How fast is the store of the review application on a case of 1,000 cells?

Synthetic readings of 8 classes, no images. Milliseconds a call with its transaction: opening a case
(all its cells in order), one relabelled cell, 50 at once, an undo, what another browser polls,
the live differential and the list of 200 cases.

    OMP_NUM_THREADS=1 python benchmarks/review.py [--cells 1000] [--rounds 15] [--database URL]

Without --database a SQLite file in a temporary folder; URL is of an empty PostgreSQL database.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from leukoscope.review import cases, changes, signing
from leukoscope.review.database import Database
from leukoscope.review.schema import Upload, User

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "review"), str(Path(__file__).parent)]
from common import machine, markdown  # noqa: E402
from store import contract, person  # noqa: E402

CLASSES = ["basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil",
           "platelet"]  # fmt: skip


def fill(database: Database, cells: int, others: int = 200) -> tuple[User, User, str, list[int]]:
    """Two reviewers, `others` empty cases and one of `cells` cells: (anna, boris, case, ids)."""
    ada = person(database, "ada", "administrator", None)
    anna, boris = (person(database, name, "reviewer", ada) for name in ("anna", "boris"))
    rng = np.random.default_rng(0)
    with database.begin() as session:
        made = contract("benchmark", CLASSES)
        model = cases.register_model(session, made, "0" * 64, "1" * 64)
        for number in range(others):
            cases.create(session, anna, f"P-{number}", model.id)
        case = cases.create(session, anna, "P-1000", model.id)
        probs = rng.dirichlet(np.full(len(CLASSES), 0.2), cells)
        new = []
        for number, row in enumerate(probs.tolist()):
            file = Upload(
                id=f"{number:032x}", case_id=case.id, name=f"{number}.jpg", kind="cell", size=9,
                sha256=f"{number:064x}", state="done", created_by=anna.id,
            )  # fmt: skip
            session.add(file)
            best = int(np.argmax(row))
            said = cases.NewReading(
                CLASSES[best], row[best], dict(zip(CLASSES, row, strict=True)),
                [CLASSES[best]], 1.0, "doubtful" if row[best] < 0.5 else "",
            )  # fmt: skip
            new.append(cases.NewCell(file.id, f"{number:064x}", 360, 360, said))
        session.flush()
        ids = cases.add_cells(session, anna, case.id, model.id, new)
    return anna, boris, case.id, ids


def calls(
    database: Database, anna: User, case: str, ids: list[int]
) -> dict[str, Callable[[int], object]]:
    """What is timed, by name; each is given the number of the round."""

    def relabel(cells: list[int], turn: int) -> object:
        with database.begin() as session:
            seen = dict.fromkeys(cells, 2**30)
            return changes.relabel(session, anna, case, seen, CLASSES[turn % len(CLASSES)])

    def undo(_turn: int) -> object:
        with database.begin() as session:
            return changes.undo(session, anna, case)

    def read(query: Callable[..., object], *given: object) -> object:
        with database.read() as session:
            return query(session, *given)

    def poll(_turn: int) -> object:
        with database.read() as session:
            since = cases.find(session, case).revision - 2
            return changes.changes(session, case, since), cases.cells(session, case, since)

    def differential(_turn: int) -> object:
        with database.read() as session:
            return signing.content(session, cases.find(session, case))

    return {
        "open a case": lambda _: read(cases.cells, case),
        "relabel one cell": lambda turn: relabel([ids[turn % len(ids)]], turn),
        "relabel 50 cells": lambda turn: relabel(ids[:50], turn),
        "undo of 50 cells": undo,
        "poll for two changes": poll,
        "content with differential": differential,
        "list of cases, 50 of 201": lambda _: read(cases.cases),
    }


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description="Speed of the review application's store.")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--database", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(arguments.database or f"sqlite:///{folder}/review.db")
        database.upgrade()
        anna, _, case, ids = fill(database, arguments.cells)
        timed = calls(database, anna, case, ids)
        taken: dict[str, list[float]] = {name: [] for name in timed}
        for turn in range(arguments.rounds + 1):  # the first warms up
            for name, call in timed.items():
                began = time.perf_counter()
                call(turn)
                taken[name].append(1000 * (time.perf_counter() - began))
        database.close()
    rows = [
        [name, f"{statistics.median(ms[1:]):.1f}", f"{min(ms[1:]):.1f} to {max(ms[1:]):.1f}"]
        for name, ms in taken.items()
    ]
    kind = database.url.get_backend_name()
    print(markdown([f"{arguments.cells} cells, {kind}", "median, ms", "range, ms"], rows))
    print(f"\nn = {arguments.rounds} calls each, seed 0; {machine('sqlalchemy', 'pg8000')}")


if __name__ == "__main__":
    main()
