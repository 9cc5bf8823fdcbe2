"""FHIR: valid, whole, and enough to rebuild the differential without anything else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema_rs
import pytest
from contents import PBC, SIGNED, cell, content, large, small
from fhir.resources.R4B.bundle import Bundle
from statsmodels.stats.proportion import proportion_confint

from leukoscope.errors import LeukoscopeError
from leukoscope.review.exports import CAVEAT, SYNTHETIC, fhir

SCHEMA = json.loads(Path(__file__).with_name("fhir_r4.schema.json").read_text(encoding="utf-8"))

CASES = {
    "small": small(),
    "open": small(signed=None),
    "amended": small(version=2, signed=SIGNED | {"reason": "Cell 5 was looked at again"}),
    "synthetic": small(synthetic=True),
    "large": large(),
    "empty": content([]),
    "without leukocytes": content([cell(1, "platelet", "artefact"), cell(2, "erythroblast")]),
    "without slide and stain": small(slide="", stain=""),
    "odd texts": small(
        pseudonym=' <P> & "é"\t\u202e\x07 ', slide="\n", stain=" a\n b ", version=2,
        signed=SIGNED | {"by": "<b>x</b>", "reason": "a\x00b\r\n<script>"},
    ),
    "odd classes": content(
        [cell(1, " a  <b>&", "x\ty"), cell(2, "中性粒细胞", "x\ty")],
        classes=[" a  <b>&", "x\ty", "中性粒细胞"],
    ),
}  # fmt: skip


def rebuilt(text: str) -> dict[str, dict[str, dict[str, Any]]]:
    """{reviewer, model: {class: {count, leukocytes, value, unit, low, high}}} from the JSON alone.

    Written as somebody else's reader would be: the report's results are the reviewer's, each is
    derived from the model's, and what a figure means is said by its code. Nothing of the
    application is used.
    """
    resources = {e["fullUrl"]: e["resource"] for e in json.loads(text)["entry"]}
    (report,) = [r for r in resources.values() if r["resourceType"] == "DiagnosticReport"]
    found: dict[str, dict[str, dict[str, Any]]] = {"reviewer": {}, "model": {}}
    for result in report["result"]:
        observation = resources[result["reference"]]
        parts = components(observation)
        if "leukocytes" not in parts:
            continue  # the agreement
        found["reviewer"][observation["code"]["text"]] = figures(observation)
        for source in observation.get("derivedFrom", []):
            theirs = resources[source["reference"]]
            assert resources[theirs["device"]["reference"]]["resourceType"] == "Device"
            found["model"][theirs["code"]["text"]] = figures(theirs)
    return found


def components(observation: dict[str, Any]) -> dict[str, Any]:
    return {
        part["code"]["coding"][0]["code"]: part.get("valueInteger", part.get("valueQuantity"))
        for part in observation.get("component", [])
    }


def figures(observation: dict[str, Any]) -> dict[str, Any]:
    parts = components(observation)
    value = observation.get("valueQuantity", {})
    return {
        "count": parts["count"],
        "leukocytes": parts["leukocytes"],
        "value": value.get("value", observation.get("valueInteger")),
        "unit": value.get("code"),
        "low": parts.get("low", {}).get("value"),
        "high": parts.get("high", {}).get("value"),
    }


def elements(value: Any) -> Iterator[Any]:
    """Every object, list and leaf of a JSON value."""
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    for each in inner:
        yield from elements(each)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("specimen", ["blood", "bone marrow"])
def test_bundles_are_valid(name: str, specimen: fhir.Specimen) -> None:
    made = json.loads(fhir.to_json(CASES[name], specimen))
    read = Bundle.model_validate(made)  # raises where anything is wrong
    again = json.loads(read.model_dump_json().replace('Z"', '+00:00"'))  # another way to say UTC
    assert again == made, "something was lost or changed on the way through another reader"
    for element in elements(made):
        assert element not in ("", [], {}), "FHIR allows nothing empty"
        assert not isinstance(element, str) or element == element.strip()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("specimen", ["blood", "bone marrow"])
def test_bundles_keep_the_published_rules_of_r4(name: str, specimen: fhir.Specimen) -> None:
    """HL7's own schema of R4, and those of its invariants that a schema can't say."""
    made = fhir.bundle(CASES[name], specimen)
    for entry in made["entry"]:
        resource = entry["resource"]
        kind = SCHEMA["definitions"][resource["resourceType"]]
        jsonschema_rs.Draft6Validator(SCHEMA | {"oneOf": [kind]}).validate(resource)
    bare = made | {"entry": [{"fullUrl": entry["fullUrl"]} for entry in made["entry"]]}
    jsonschema_rs.Draft6Validator(SCHEMA).validate(bare)
    for element in (e for e in elements(made) if isinstance(e, dict)):
        values = [key for key in element if key.startswith("value") and key != "value"]
        assert len(values) <= 1
        assert not (values and "dataAbsentReason" in element), "obs-6"
        assert "system" in element or not {"code", "unit"} <= element.keys(), "qty-3"
        if element.get("resourceType") == "Observation":
            mine = [json.dumps(c) for c in element["code"].get("coding", [])]
            theirs = [json.dumps(c) for p in element.get("component", [])
                      for c in p["code"].get("coding", [])]  # fmt: skip
            assert not set(mine) & set(theirs), "obs-7"
        assert "contained" not in element
    assert "total" not in made, "bdl-1"
    ElementTree.fromstring(made["entry"][0]["resource"]["text"]["div"])  # txt-1: it is XHTML


@pytest.mark.parametrize("name", CASES)
def test_references_are_unique_and_lead_somewhere(name: str) -> None:
    made = fhir.bundle(CASES[name])
    urls = [entry["fullUrl"] for entry in made["entry"]]
    assert len(set(urls)) == len(urls)
    asked = [e["reference"] for e in elements(made) if isinstance(e, dict) and "reference" in e]
    assert set(asked) <= set(urls)
    # All are reached from the report: nothing lies about unmentioned.
    report, reached = urls[0], {urls[0]}
    resources = {entry["fullUrl"]: entry["resource"] for entry in made["entry"]}
    waiting = [report]
    while waiting:
        for element in elements(resources[waiting.pop()]):
            link = element.get("reference") if isinstance(element, dict) else None
            if link and link not in reached:
                reached.add(link)
                waiting.append(link)
    assert reached == set(urls)


@pytest.mark.parametrize("name", ["small", "open", "amended", "large", "empty"])
def test_a_second_reader_rebuilds_the_differential(name: str) -> None:
    found, said = rebuilt(fhir.to_json(CASES[name])), CASES[name]["differential"]
    for reader in ("reviewer", "model"):
        # The model names no artefacts: what only the reviewer calls so has no source.
        assert {k: v["count"] for k, v in found[reader].items()} == {
            share["name"]: share["count"] for share in said[reader]
        }
        for share in said[reader]:
            theirs = found[reader][share["name"]]
            if share["share"] is None:
                assert theirs["unit"] in (None, "/100{WBCs}")
                assert (theirs["low"], theirs["high"]) == (None, None)
                continue
            n, total = theirs["count"], theirs["leukocytes"]
            assert n / total == pytest.approx(share["share"], abs=1e-12)
            assert theirs["value"] == pytest.approx(100 * n / total, abs=0.005)
            assert theirs["unit"] == "%"
            interval = proportion_confint(n, total, method="wilson")
            assert (theirs["low"], theirs["high"]) == pytest.approx(
                [100 * end for end in interval], abs=0.0051
            )


def test_erythroblasts_are_given_per_100_leukocytes_and_platelets_counted() -> None:
    found = rebuilt(fhir.to_json(small()))["reviewer"]
    assert found["erythroblast"]["value"] == pytest.approx(100 / 9, abs=0.005)
    assert found["erythroblast"]["unit"] == "/100{WBCs}"
    assert (found["platelet"]["value"], found["platelet"]["unit"]) == (1, None)


def test_what_the_report_says() -> None:
    made = fhir.bundle(small())
    by_type = {entry["resource"]["resourceType"]: entry["resource"] for entry in made["entry"]}
    report = made["entry"][0]["resource"]
    assert (report["status"], report["issued"]) == ("final", SIGNED["at"])
    assert report["code"]["coding"][0] == {
        "system": "http://loinc.org",
        "code": "69738-3",
        "display": "Differential panel, method unspecified - Blood",
    }
    assert CAVEAT in report["conclusion"]
    assert CAVEAT in report["text"]["div"]
    assert {i["value"] for i in report["identifier"]} >= {SIGNED["sha256"]}
    assert {i["value"] for i in by_type["Device"]["identifier"]} == {"1e" * 32, "2f" * 32}
    assert by_type["Patient"]["identifier"][0]["value"] == "P-0042"
    assert "name" not in by_type["Patient"]
    assert by_type["Specimen"]["processing"] == [{"description": "Stain: May-Grünwald-Giemsa"}]
    assert by_type["Practitioner"]["name"] == [{"text": SIGNED["by"]}]


@pytest.mark.parametrize(
    ("name", "status"), [("small", "final"), ("open", "preliminary"), ("amended", "amended")]
)
def test_status(name: str, status: str) -> None:
    made = fhir.bundle(CASES[name])
    report = made["entry"][0]["resource"]
    assert report["status"] == status
    kinds = [entry["resource"] for entry in made["entry"]]
    of_model = {r["status"] for r in kinds if r["resourceType"] == "Observation" and "device" in r}
    assert of_model == {"preliminary"}
    if name == "open":
        assert "Not signed" in report["conclusion"]
        assert "issued" not in report
        assert "Practitioner" not in {r["resourceType"] for r in kinds}
    if name == "amended":
        assert "Cell 5 was looked at again" in report["conclusion"]


def test_a_model_of_synthetic_cells_is_called_so() -> None:
    text = fhir.to_json(CASES["synthetic"])
    assert text.count(SYNTHETIC) >= 2


def test_codes_for_blood_are_not_used_for_bone_marrow() -> None:
    assert "http://loinc.org" in fhir.to_json(small())
    assert "http://loinc.org" not in fhir.to_json(small(), "bone marrow")
    assert "Whole blood" not in fhir.to_json(small(), "bone marrow")


def test_every_class_carries_its_own_name_beside_loincs() -> None:
    made = fhir.bundle(small())
    local = {
        coding["code"]
        for entry in made["entry"]
        if entry["resource"]["resourceType"] == "Observation"
        for coding in entry["resource"]["code"]["coding"]
        if coding["system"] == "urn:leukoscope:differential"
    }
    assert local == {*PBC, "artefact", "agreement"}


def test_the_same_content_gives_the_same_text() -> None:
    assert fhir.to_json(small()) == fhir.to_json(json.loads(json.dumps(small())))


def test_an_invalid_bundle_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    made = copy.deepcopy(fhir.bundle(small()))
    made["entry"][0]["resource"]["status"] = ""
    assert fhir.problems(made)
    monkeypatch.setattr(fhir, "bundle", lambda *_: made)
    with pytest.raises(LeukoscopeError, match="isn't valid"):
        fhir.to_json(small())
