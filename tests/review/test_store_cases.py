"""Cases, cells, readings, signatures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from store import CLASSES, PASSWORD, Lab, new_cell, reading, register, upload

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.review import accounts, audit, cases, changes, signing
from leukoscope.review.cases import NewReading
from leukoscope.review.problems import Conflict, Forbidden, NotFound, Unauthenticated
from leukoscope.review.schema import Case, Job, Reading, Signature, Upload, User


def sign(lab: Lab, by: User | None = None, password: str = PASSWORD) -> Signature:
    with lab.database.read() as session:
        seen = cases.find(session, lab.case).revision
    return signing.sign(lab.database, by or lab.anna, lab.case, seen, password)


def relabel(lab: Lab, cell: int, label: str) -> None:
    with lab.database.begin() as session:
        seen = {cell: cases.find_cell(session, cell).revision}
        changes.relabel(session, lab.anna, lab.case, seen, label)


def say(label: str, confidence: float = 0.7) -> NewReading:
    return reading(label, confidence)


# --- cases ----------------------------------------------------------------------------------------


def test_the_list_counts_and_finds(lab: Lab) -> None:
    with lab.database.begin() as session:
        for i in range(5):
            cases.create(session, lab.boris, f"P%_{i}", lab.model.id, notes="from ward 7")
        doubtful = upload(session, lab.case, lab.anna, "x.png")
        novel = upload(session, lab.case, lab.anna, "y.png")
        new = [
            new_cell(doubtful, reading("monocyte", 0.4, "doubtful")),
            new_cell(novel, reading("monocyte", 0.4, "novel", novelty=9.0)),
        ]
        cases.add_cells(session, lab.anna, lab.case, lab.model.id, new)
        changes.confirm(session, lab.anna, lab.case, dict.fromkeys(lab.cells[:4], 1))
        everything = cases.cases(session)
        assert [row.pseudonym for row in everything] == [f"P%_{i}" for i in (4, 3, 2, 1, 0)] + [
            "P-001"
        ]
        row = everything[-1]
        assert (row.cells, row.doubtful, row.novel, row.reviewed) == (14, 1, 1, 4)
        assert (row.created_by, row.model, row.revision, row.state) == ("anna", "small", 3, "open")
        assert (everything[0].cells, everything[0].doubtful) == (0, 0)
        assert [r.pseudonym for r in cases.cases(session, query="p-00")] == ["P-001"]
        assert len(cases.cases(session, query="WARD 7")) == 5
        assert len(cases.cases(session, query="%_")) == 5  # no wildcards
        assert cases.cases(session, state="signed") == []
        assert len(cases.cases(session, state="open")) == 6
        pages = [everything[:4], cases.cases(session, before=everything[3].id, limit=4)]
        assert pages[0] + pages[1] == everything
        with pytest.raises(UnknownNameError):
            cases.cases(session, state="closed")


def test_only_reviewers_make_and_edit_cases(lab: Lab) -> None:
    with lab.database.begin() as session:
        with pytest.raises(Forbidden):
            cases.create(session, lab.vera, "P-9", lab.model.id)
        with pytest.raises(Forbidden):
            cases.edit(session, lab.vera, lab.case, slide="S9")
        edited = cases.edit(session, lab.boris, lab.case, slide=" S9 ", notes="two\nlines")
        assert (edited.slide, edited.notes, edited.stain) == ("S9", "two\nlines", "MGG")
        line = audit.entries(session, limit=1)[0]
        assert json.loads(line.details)["was"] == {"slide": "S1", "notes": ""}


def test_an_edit_is_a_revision_that_no_other_edit_or_signature_overlooks(lab: Lab) -> None:
    with lab.database.begin() as session:
        seen = cases.find(session, lab.case).revision
        cases.edit(session, lab.boris, lab.case, seen, pseudonym="P-002")
    with pytest.raises(Conflict, match="since you looked"):
        signing.sign(lab.database, lab.anna, lab.case, seen, PASSWORD)
    with lab.database.begin() as session:
        with pytest.raises(Conflict, match="boris"):
            cases.edit(session, lab.anna, lab.case, seen, pseudonym="P-003")
        assert cases.edit(session, lab.anna, lab.case, seen + 1, stain="W").pseudonym == "P-002"
        acts = changes.changes(session, lab.case, seen)
    said = [(act.kind, act.by, act.cells) for act in acts]
    assert said == [("edit", "boris", []), ("edit", "anna", [])]


def test_the_size_of_a_pixel_is_a_length_or_unknown(lab: Lab) -> None:
    with lab.database.begin() as session:
        assert cases.find(session, lab.case).pixel_size is None
        made = cases.create(session, lab.anna, "P-9", lab.model.id, pixel_size=0.07)
        assert cases.edit(session, lab.anna, lab.case, pixel_size=0.1).pixel_size == 0.1
        assert cases.edit(session, lab.anna, lab.case, stain="W").pixel_size == 0.1
        for wrong in (0.0, -1.0, 100.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match="micrometres"):
                cases.edit(session, lab.anna, made.id, pixel_size=wrong)
        assert cases.edit(session, lab.anna, lab.case, pixel_size=None).pixel_size is None


def test_bad_texts_are_refused(lab: Lab) -> None:
    with lab.database.begin() as session:
        for wrong in (
            {"pseudonym": " "},
            {"pseudonym": "x" * 129},
            {"slide": "a\nb"},
            {"stain": "x" * 65},
            {"notes": "\x00"},
            {"notes": "x" * 10_001},
        ):
            with pytest.raises(InputError) as caught:
                cases.create(
                    session, lab.anna, **{"pseudonym": "P", "model_id": lab.model.id, **wrong}
                )  # type: ignore[arg-type]
            assert caught.value.field in wrong
        with pytest.raises(UnknownNameError):
            cases.edit(session, lab.anna, lab.case, state="signed")
        with pytest.raises(NotFound):
            cases.create(session, lab.anna, "P", 2**70)


# --- cells and readings ---------------------------------------------------------------------------


def test_cells_come_in_the_order_of_looking(lab: Lab) -> None:
    with lab.database.begin() as session:
        files = [upload(session, lab.case, lab.anna, f"new {i}.png") for i in range(4)]
        new = [
            new_cell(files[0], reading("neutrophil", 0.99, "doubtful")),
            new_cell(files[1], reading("neutrophil", 0.995, "novel")),
            new_cell(files[2], reading("monocyte", 0.3)),
            new_cell(files[3], reading("monocyte", 0.99)),
        ]
        ids = cases.add_cells(session, lab.anna, lab.case, lab.model.id, new)
        changes.relabel(session, lab.anna, lab.case, {ids[3]: 2}, "unclassifiable")
        views = cases.cells(session, lab.case)
    places = [CLASSES.index(v.shown) if v.shown in CLASSES else 9 for v in views]
    assert places == sorted(places)
    assert [v.id for v in views[:2]] == [ids[1], ids[0]]
    rest = [v.confidence for v in views if v.shown == "neutrophil"][2:]
    assert rest == sorted(rest)
    assert next(v for v in views if v.shown == "monocyte").id == ids[2]
    assert views[-1].id == ids[3]
    first = views[0]
    assert first.probs["neutrophil"] == 0.995
    assert sum(first.probs.values()) == pytest.approx(1)
    assert (first.field_name, first.model_id) == ("new 1.png", lab.model.id)
    assert (first.x, first.label, first.comment, first.quality) == (None, None, "", [])


def test_cells_of_a_case_are_one_query(lab: Lab) -> None:
    statements: list[str] = []
    event.listen(lab.database.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    with lab.database.read() as session:
        cases.cells(session, lab.case)
    assert sum("FROM cells" in statement for statement in statements) == 1
    assert (
        sum(statement.startswith("SELECT") for statement in statements) == 3
    )  # case, model, cells


def test_adding_twice_adds_once(lab: Lab) -> None:
    with lab.database.begin() as session:
        single = upload(session, lab.case, lab.anna, "single.png")
        field = upload(session, lab.case, lab.anna, "field.png", kind="field")
        box = {"box_width": 80, "box_height": 80}
        new = [
            new_cell(single, say("monocyte")),
            new_cell(field, say("monocyte"), x=0, y=5, **box),
            new_cell(field, say("monocyte"), x=90, y=5, quality=("blurred",), **box),
        ]
        assert len(cases.add_cells(session, lab.anna, lab.case, lab.model.id, new[:2])) == 2
        assert len(cases.add_cells(session, lab.anna, lab.case, lab.model.id, new)) == 1
        assert cases.add_cells(session, lab.anna, lab.case, lab.model.id, new) == []
        assert cases.find(session, lab.case).revision == 3
        views = cases.cells(session, lab.case, since=2)
    assert [(v.x, v.y, v.quality, v.field_name) for v in views] == [
        (90, 5, ["blurred"], "field.png")
    ]


def test_the_database_itself_refuses_a_cell_twice(lab: Lab) -> None:
    with lab.database.read() as session:
        known = cases.find_cell(session, lab.cells[0])
        row = cases._cell_row(cases.find(session, lab.case), new_cell(
            session.get_one(Upload, known.upload_id), say("monocyte")
        ))  # fmt: skip
    with pytest.raises(IntegrityError), lab.database.begin() as session:
        session.execute(cases.insert(cases.Cell), [row])


def test_another_model_never_overwrites(lab: Lab) -> None:
    relabel(lab, lab.cells[0], "monocyte")
    with lab.database.begin() as session:
        other = register(session, "other", ["lymphocyte", "neutrophil", "blast"])
        with pytest.raises(Conflict, match="12 cells"):
            cases.use_model(session, lab.anna, lab.case, other.id)
        half = {cell: say("blast") for cell in lab.cells[:6]}
        assert cases.add_readings(session, lab.anna, lab.case, other.id, half) == 6
        with pytest.raises(Conflict, match="6 cells"):
            cases.use_model(session, lab.anna, lab.case, other.id)
        assert cases.unread(session, lab.case, other.id) == lab.cells[6:]
        again = {cell: say("neutrophil") for cell in lab.cells}  # what is there stays
        assert cases.add_readings(session, lab.anna, lab.case, other.id, again) == 6
        assert {v.model_id for v in cases.cells(session, lab.case)} == {lab.model.id}
    with lab.database.begin() as session:
        before = cases.find(session, lab.case).revision
        cases.use_model(session, lab.anna, lab.case, other.id)
        views = cases.cells(session, lab.case, since=before)
        said = cases.readings(session, lab.cells[0])
        line = audit.entries(session, limit=1)[0]
    assert len(views) == 12
    assert {v.model_id for v in views} == {other.id}
    assert [r.predicted for r in said] == ["neutrophil", "blast"]
    changed = next(v for v in views if v.id == lab.cells[0])
    assert (changed.predicted, changed.label, changed.shown) == ("blast", "monocyte", "monocyte")
    assert (line.action, line.contract_sha256) == ("use model", other.contract_sha256)
    with lab.database.begin() as session, pytest.raises(Conflict, match="since you saw it"):
        changes.confirm(session, lab.anna, lab.case, {lab.cells[1]: before})
    with lab.database.begin() as session:
        late = upload(session, lab.case, lab.anna, "late.png")
        with pytest.raises(Conflict, match="another model"):
            new = [new_cell(late, say("monocyte"))]
            cases.add_cells(session, lab.anna, lab.case, lab.model.id, new)
        with pytest.raises(NotFound):
            cases.add_readings(session, lab.anna, lab.case, other.id, {9999: say("blast")})


def test_a_model_is_registered_once(lab: Lab) -> None:
    with lab.database.begin() as session:
        lines = audit.verify(session).entries
        assert register(session).id == lab.model.id
        assert audit.verify(session).entries == lines
        assert cases.classes(session, cases.find(session, lab.case)) == CLASSES


def test_what_is_not_there(lab: Lab) -> None:
    with lab.database.read() as session:
        for case in ("", "x", "\x00", "0" * 16):
            with pytest.raises(NotFound):
                cases.cells(session, case)
            with pytest.raises(NotFound):
                signing.signatures(session, case)
        for number in (0, -5, 10_000, 2**31, 2**64):
            with pytest.raises(NotFound):
                cases.readings(session, number)
        assert cases.cells(session, lab.case, since=2**70) == []
        assert changes.changes(session, lab.case, since=-(2**70))


# --- sign-off -------------------------------------------------------------------------------------


def test_a_signature_holds_everything_and_its_hash(lab: Lab) -> None:
    relabel(lab, lab.cells[0], "monocyte")
    relabel(lab, lab.cells[1], "artefact")
    signature = sign(lab)
    with lab.database.read() as session:
        case = cases.find(session, lab.case)
        (stored,) = signing.signatures(session, lab.case)
        said = signing.content(session, case)
    assert case.state == "signed"
    assert stored.content == signature.content == said
    assert signing.hash_of(said) == stored.sha256 == said["signed"]["sha256"]
    assert said["case"] == {
        "id": lab.case, "pseudonym": "P-001", "slide": "S1", "stain": "MGG", "notes": "",
        "pixel_size": None, "version": 1, "state": "signed", "created": case.created.isoformat(),
    }  # fmt: skip
    assert said["model"]["contract_sha256"] == lab.model.contract_sha256
    assert said["model"]["synthetic"] is True
    assert said["signed"]["by"] == "anna"
    assert len(said["cells"]) == 12
    changed = {c["id"]: c for c in said["cells"] if c["changed_by"]}
    assert {i: (c["predicted"], c["label"]) for i, c in changed.items()} == {
        lab.cells[0]: ("neutrophil", "monocyte"),
        lab.cells[1]: ("lymphocyte", "artefact"),
    }
    assert [s["count"] for s in said["differential"]["model"]] == [4, 4, 4, 0]
    assert [(s["name"], s["count"], s["share"]) for s in said["differential"]["reviewer"]] == [
        ("neutrophil", 3, 3 / 11), ("lymphocyte", 3, 3 / 11), ("monocyte", 5, 5 / 11),
        ("erythroblast", 0, None), ("artefact", 1, None),
    ]  # fmt: skip
    assert (said["agreement"]["n"], said["agreement"]["agreed"]) == (12, 10)
    forged = json.loads(json.dumps(said))
    forged["cells"][0]["label"] = "blast"
    assert signing.hash_of(forged) != stored.sha256


def test_an_open_case_has_its_content_too(lab: Lab) -> None:
    with lab.database.read() as session:
        said = signing.content(session, cases.find(session, lab.case))
    assert said["signed"] is None
    assert said["case"]["state"] == "open"
    json.dumps(said)


def test_a_signed_case_cannot_be_changed(lab: Lab) -> None:
    relabel(lab, lab.cells[0], "monocyte")
    sign(lab)
    cell, model = lab.cells[0], lab.model.id
    acts: list[Callable[[Session], Any]] = [
        lambda s: changes.relabel(s, lab.anna, lab.case, {cell: 9}, "artefact"),
        lambda s: changes.confirm(s, lab.anna, lab.case, {cell: 9}),
        lambda s: changes.comment(s, lab.anna, lab.case, cell, 9, "x"),
        lambda s: changes.undo(s, lab.anna, lab.case),
        lambda s: changes.redo(s, lab.anna, lab.case),
        lambda s: cases.edit(s, lab.anna, lab.case, slide="S2"),
        lambda s: cases.add_cells(s, lab.anna, lab.case, model, []),
        lambda s: cases.add_readings(s, lab.anna, lab.case, model, {}),
        lambda s: cases.use_model(s, lab.anna, lab.case, model),
    ]
    with lab.database.read() as session:
        before = signing.content(session, cases.find(session, lab.case))
        assert changes.can(session, lab.anna, cases.find(session, lab.case)) == (False, False)
    for act in acts:
        with lab.database.begin() as session, pytest.raises(Conflict, match="signed"):
            act(session)
    with pytest.raises(Conflict, match="signed"):
        signing.sign(lab.database, lab.anna, lab.case, 3, PASSWORD)
    with lab.database.read() as session:
        assert signing.content(session, cases.find(session, lab.case)) == before
        assert changes.changes(session, lab.case, since=3) == []


def test_amendments_are_versions(lab: Lab) -> None:
    relabel(lab, lab.cells[0], "monocyte")
    first = sign(lab)
    with lab.database.begin() as session:
        with pytest.raises(InputError, match="reason"):
            signing.amend(session, lab.boris, lab.case, " ")
        case = signing.amend(session, lab.boris, lab.case, "cell 1 is a lymphocyte")
        assert (case.state, case.version) == ("open", 2)
        with pytest.raises(Conflict, match="isn't signed"):
            signing.amend(session, lab.boris, lab.case, "again")
        with pytest.raises(Conflict, match="nothing to undo"):
            changes.undo(session, lab.anna, lab.case)  # what was signed isn't undone by a key
        with pytest.raises(NotFound):
            signing.signature(session, lab.case, 2)
    relabel(lab, lab.cells[0], "lymphocyte")
    second = sign(lab, lab.boris)
    with lab.database.read() as session:
        both = signing.signatures(session, lab.case)
        assert signing.signature(session, lab.case, 1).content == first.content
        assert audit.verify(session).intact
        kinds = [act.kind for act in changes.changes(session, lab.case)]
    assert [(s.version, s.reason) for s in both] == [(1, ""), (2, "cell 1 is a lymphocyte")]
    assert second.content["signed"]["reason"] == "cell 1 is a lymphocyte"
    assert second.content["case"]["version"] == 2
    assert [s.content["differential"]["reviewer"][2]["count"] for s in both] == [5, 4]
    assert kinds == ["read", "label", "sign", "amend", "label", "sign"]


def test_signing_needs_the_password_and_counts_failures(lab: Lab) -> None:
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            sign(lab, password="wrong password")
    with pytest.raises(Unauthenticated):
        sign(lab)  # locked
    with lab.database.read() as session:
        assert session.get_one(Case, lab.case).state == "open"
        assert session.get_one(User, lab.anna.id).failures == accounts.FAILURES
        assert audit.entries(session, limit=1)[0].action == "refused password"


def test_only_reviewers_sign_and_amend(lab: Lab) -> None:
    with pytest.raises(Forbidden):
        sign(lab, lab.vera)
    sign(lab)
    with lab.database.begin() as session, pytest.raises(Forbidden):
        signing.amend(session, lab.vera, lab.case, "no reason at all")


def test_nothing_unfinished_is_signed(lab: Lab) -> None:
    with pytest.raises(Conflict, match="changed since you looked"):
        signing.sign(lab.database, lab.anna, lab.case, 0, PASSWORD)
    with lab.database.begin() as session:
        empty = cases.create(session, lab.anna, "P-002", lab.model.id)
    with pytest.raises(Conflict, match="no cells"):
        signing.sign(lab.database, lab.anna, empty.id, 0, PASSWORD)
    with lab.database.begin() as session:
        coming = upload(session, lab.case, lab.anna, "late.png", state="receiving")
    with pytest.raises(Conflict, match="1 files and 0 jobs"):
        sign(lab)
    with lab.database.begin() as session:
        session.get_one(Upload, coming.id).state = "failed"
        session.add(Job(id="j", kind="intake", case_id=lab.case, user_id=lab.anna.id, arguments={}))
    with pytest.raises(Conflict, match="0 files and 1 jobs"):
        sign(lab)
    with lab.database.begin() as session:
        session.get_one(Job, "j").state = "done"
    assert sign(lab).version == 1


def test_readings_of_a_signed_version_stay_what_they_were(lab: Lab) -> None:
    first = sign(lab)
    with lab.database.begin() as session:
        signing.amend(session, lab.anna, lab.case, "another model")
        other = register(session, "other")
        said = {cell: say("monocyte") for cell in lab.cells}
        cases.add_readings(session, lab.anna, lab.case, other.id, said)
        cases.use_model(session, lab.anna, lab.case, other.id)
    second = sign(lab)
    with lab.database.read() as session:
        assert len(session.scalars(select(Reading)).all()) == 24
        assert signing.signature(session, lab.case, 1).content == first.content
    assert first.model_id == lab.model.id
    assert second.model_id == other.id
    assert {c["predicted"] for c in second.content["cells"]} == {"monocyte"}
