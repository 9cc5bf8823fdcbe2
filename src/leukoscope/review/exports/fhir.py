"""A version of a case as a FHIR R4 bundle: report, observations, device, specimen, patient.

Plain dictionaries: what is written is ten kinds of element, which need no library in the server.
Where fhir.resources is installed `to_json` has it check every bundle before it leaves. Its R4B
models serve, because R4B changed none of the resources used here. docs/review/exports.md lists
every element.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from xml.sax.saxutils import escape

from leukoscope.errors import LeukoscopeError
from leukoscope.report.numbers import clean
from leukoscope.review import vocabulary
from leukoscope.review.exports import CAVEAT, SYNTHETIC, Content, leukocytes, status

Resource = dict[str, Any]
Specimen = Literal["blood", "bone marrow"]

LOINC, UCUM = "http://loinc.org", "http://unitsofmeasure.org"
_TERMS = "http://terminology.hl7.org/CodeSystem"
_OWN = "urn:leukoscope"  # of identifiers and codes of our own
_UUIDS = uuid.uuid5(uuid.NAMESPACE_URL, _OWN)  # the same content gives the same references


def to_json(content: Content, specimen: Specimen = "blood") -> str:
    """The bundle as JSON text, checked with fhir.resources where that is installed.

    Raises LeukoscopeError where the bundle isn't valid.
    """
    made = bundle(content, specimen)
    wrong = problems(made)
    if wrong:
        raise LeukoscopeError(f"The FHIR bundle isn't valid: {wrong[0]}", fix="Report this.")
    return json.dumps(made, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def problems(made: Resource) -> list[str]:
    """What fhir.resources (R4B models) finds wrong; nothing where it isn't installed."""
    try:
        from fhir.resources.R4B.bundle import Bundle
    except ModuleNotFoundError:
        return []
    from pydantic import ValidationError

    try:
        Bundle.model_validate(made)
    except ValidationError as found:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found.errors()]
    return []


def bundle(content: Content, specimen: Specimen = "blood") -> Resource:
    """A Bundle of type collection whose first entry is the DiagnosticReport.

    LOINC's codes are for blood: of a smear of bone marrow the classes carry their names alone.
    """
    case = content["case"]
    writer = _Writer(content, specimen)
    resources = [writer.report(), *writer.observations(), writer.patient(), writer.specimen()]
    resources += [writer.device(), *writer.practitioner()]
    signed = content["signed"] or {}
    made = {
        "resourceType": "Bundle",
        "identifier": _identifier("case-version", f"{case['id']}/{case['version']}"),
        "type": "collection",
        "timestamp": signed.get("at") or case["created"],
        "entry": [{"fullUrl": f"urn:uuid:{r['id']}", "resource": r} for r in resources],
    }
    return dict(_filled(made))


class _Writer:
    """Makes the resources of one version of a case; they refer to each other by name."""

    def __init__(self, content: Content, specimen: Specimen) -> None:
        self.content = content
        self.case, self.model, self.signed = content["case"], content["model"], content["signed"]
        self.blood = specimen == "blood"
        self.kind = specimen

    def report(self) -> Resource:
        reviewer = self.content["differential"]["reviewer"]
        results = [self._reference(f"reviewer/{share['name']}") for share in reviewer]
        who = [self._reference("practitioner")] if self.signed else []
        identifiers = [_identifier("case-version", f"{self.case['id']}/{self.case['version']}")]
        if self.signed:
            identifiers.append(_identifier("content-sha256", self.signed["sha256"]))
        name = "Differential count of leukocytes, second reading"
        return self._resource(
            "DiagnosticReport",
            "report",
            text=self._narrative(),
            identifier=identifiers,
            status=status(self.content),
            category=[_concept("Hematology", f"{_TERMS}/v2-0074", "HM")],
            code=_loinc(name, vocabulary.PANEL) if self.blood else {"text": name},
            subject=self._reference("patient"),
            issued=(self.signed or {}).get("at"),
            performer=who,
            resultsInterpreter=who,
            specimen=[self._reference("specimen")],
            result=[*results, self._reference("agreement")],
            conclusion=self._conclusion(),
        )

    def observations(self) -> Iterator[Resource]:
        """The reviewer's of each class, each derived from the model's; then their agreement."""
        by_model = {share["name"]: share for share in self.content["differential"]["model"]}
        totals = {
            reader: leukocytes(self.content["differential"][reader])
            for reader in ("reviewer", "model")
        }
        for share in self.content["differential"]["reviewer"]:
            has = share["name"] in by_model
            source = [self._reference(f"model/{share['name']}")] if has else []
            who = [self._reference("practitioner")] if self.signed else []
            yield self._of_class(
                share,
                "reviewer",
                totals["reviewer"],
                status=status(self.content),
                performer=who,
                method={"text": "Images of cells classified by a person who sees the model's"},
                derivedFrom=source,
            )
        for share in by_model.values():
            yield self._of_class(
                share,
                "model",
                totals["model"],
                status="preliminary",  # nobody stands for it; the reviewer's says what holds
                method={"text": "Images of cells classified by the model alone"},
                device=self._reference("device"),
                note=[{"text": CAVEAT}],
            )
        yield self._agreement()

    def patient(self) -> Resource:
        pseudonym = _identifier("pseudonym", self.case["pseudonym"])
        return self._resource("Patient", "patient", identifier=[pseudonym])

    def specimen(self) -> Resource:
        text = "Peripheral blood smear" if self.blood else "Bone marrow smear"
        code = _concept("Whole blood", f"{_TERMS}/v2-0487", "BLD") if self.blood else {}
        stain = _text(self.case["stain"])
        return self._resource(
            "Specimen",
            "specimen",
            identifier=[_identifier("slide", self.case["slide"])] if self.case["slide"] else [],
            type=code | {"text": text},
            subject=self._reference("patient"),
            processing=[{"description": f"Stain: {stain}"}] if stain else [],
        )

    def device(self) -> Resource:
        notes = [f"Trained on: {self.model['data']}"]
        if self.model["synthetic"]:
            notes.append(SYNTHETIC)
        return self._resource(
            "Device",
            "device",
            identifier=[
                _identifier("model-sha256", self.model["sha256"]),
                _identifier("contract-sha256", self.model["contract_sha256"]),
            ],
            deviceName=[{"name": _text(self.model["name"]), "type": "user-friendly-name"}],
            type={"text": "Software that classifies images of blood cells"},
            version=[{"value": _text(self.model["version"])}],
            note=[{"text": _text(note)} for note in notes],
        )

    def practitioner(self) -> list[Resource]:
        if not self.signed:
            return []
        name = _text(self.signed["by"])
        return [
            self._resource(
                "Practitioner",
                "practitioner",
                identifier=[_identifier("account", name)],
                name=[{"text": name}],
            )
        ]

    def _of_class(self, share: Mapping[str, Any], reader: str, total: int, **more: Any) -> Resource:
        name = share["name"]
        code = vocabulary.loinc(name) if self.blood else None
        parts = [_count("count", "Cells of this class", share["count"])]
        parts.append(_count("leukocytes", "Leukocytes counted", total))
        for end, label in (("low", "lower"), ("high", "upper")):
            if share[end] is not None:
                text = f"95 % confidence interval (Wilson), {label} limit"
                parts.append({"code": _own(end, text), "valueQuantity": _percent(share[end])})
        return self._observation(
            f"{reader}/{name}",
            code=_loinc(_text(name), code, own=name) if code else _own(name, _text(name)),
            **_value(share, total),
            component=parts,
            **more,
        )

    def _agreement(self) -> Resource:
        found = self.content["agreement"]
        parts = [
            _count("agreed", "Cells on which model and reviewer agree", found["agreed"]),
            _count("compared", "Cells compared", found["n"]),
        ]
        for name in ("low", "high"):
            if found[name] is not None:
                limit = "lower" if name == "low" else "upper"
                text = f"95 % confidence interval (Wilson), {limit} limit"
                parts.append({"code": _own(name, text), "valueQuantity": _percent(found[name])})
        if found["kappa"] is not None:
            kappa = {"value": round(found["kappa"], 4), "system": UCUM, "code": "1"}
            parts.append({"code": _own("kappa", "Cohen's kappa"), "valueQuantity": kappa})
        value = {"dataAbsentReason": _absent("Nothing was compared")}
        if found["share"] is not None:
            value = {"valueQuantity": _percent(found["share"])}
        text = "Cells that model and reviewer give the same class; unchanged ones count as agreed"
        return self._observation(
            "agreement",
            code=_own("agreement", text),
            status=status(self.content),
            component=parts,
            **value,
        )

    def _observation(self, called: str, /, **more: Any) -> Resource:
        return self._resource(
            "Observation",
            called,
            category=[_concept("Laboratory", f"{_TERMS}/observation-category", "laboratory")],
            subject=self._reference("patient"),
            specimen=self._reference("specimen"),
            issued=(self.signed or {}).get("at"),
            **more,
        )

    def _resource(self, kind: str, called: str, /, **more: Any) -> Resource:
        return {"resourceType": kind, "id": self._uuid(called), **more}

    def _reference(self, name: str) -> dict[str, str]:
        return {"reference": f"urn:uuid:{self._uuid(name)}"}

    def _uuid(self, name: str) -> str:
        return str(uuid.uuid5(_UUIDS, f"{self.case['id']}/{self.case['version']}/{name}"))

    def _conclusion(self) -> str:
        parts = [CAVEAT]
        if not self.signed:
            parts.append("Not signed: nobody has confirmed these figures yet.")
        elif self.signed.get("reason"):
            parts.append(f"Amended: {_text(self.signed['reason'])}")
        if self.model["synthetic"]:
            parts.append(SYNTHETIC)
        return " ".join(parts)

    def _narrative(self) -> dict[str, str]:
        rows = "".join(
            f"<tr><td>{escape(_text(share['name']))}</td><td>{share['count']}</td>"
            f"<td>{_shown(share['share'])}</td></tr>"
            for share in self.content["differential"]["reviewer"]
        )
        head = "<tr><th>Class</th><th>Cells</th><th>Of leukocytes</th></tr>"
        body = f"<p>{escape(self._conclusion())}</p><table>{head}{rows}</table>"
        div = f'<div xmlns="http://www.w3.org/1999/xhtml">{body}</div>'
        return {"status": "generated", "div": div}


def _value(share: Mapping[str, Any], total: int) -> dict[str, Any]:
    """The value of a class's observation: of leukocytes in percent, of erythroblasts per 100
    leukocytes, of what else is no leukocyte the count."""
    if share["share"] is not None:
        return {"valueQuantity": _percent(share["share"])}
    if vocabulary.is_leukocyte(share["name"]) or vocabulary.is_erythroblast(share["name"]):
        if not total:
            return {"dataAbsentReason": _absent("No leukocyte was counted")}
        unit = "/100{WBCs}"
        value = round(100 * share["count"] / total, 2)
        return {"valueQuantity": {"value": value, "unit": unit, "system": UCUM, "code": unit}}
    return {"valueInteger": share["count"]}


def _percent(share: float) -> dict[str, Any]:
    return {"value": round(100 * share, 2), "unit": "%", "system": UCUM, "code": "%"}


def _shown(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _count(code: str, text: str, count: int) -> Resource:
    return {"code": _own(code, text), "valueInteger": count}


def _absent(text: str) -> Resource:
    concept = _concept("Not Applicable", f"{_TERMS}/data-absent-reason", "not-applicable")
    return concept | {"text": text}


def _concept(display: str, system: str, code: str) -> Resource:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _loinc(text: str, code: vocabulary.Code, own: str = "") -> Resource:
    made = _concept(code.display, LOINC, code.code) | {"text": text}
    if own:
        made["coding"] += _own(own, text)["coding"]
    return made


def _own(code: str, text: str) -> Resource:
    """A concept of our own code system: FHIR's codes have single spaces inside and none around."""
    plain = " ".join(clean(code).split())
    return {"coding": [{"system": f"{_OWN}:differential", "code": plain}], "text": text}


def _identifier(kind: str, value: str) -> dict[str, str]:
    return {"system": f"{_OWN}:{kind}", "value": _text(value)}


def _text(value: str) -> str:
    """Text as FHIR takes it: nothing but printable characters, no space at the ends."""
    return " ".join(clean(str(value).replace("\n", " ")).split())


def _filled(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The items of an object without what is empty: FHIR allows no empty string, list or object."""
    for name, item in value.items():
        kept = _kept(item)
        if kept not in (None, "", [], {}):
            yield name, kept


def _kept(item: Any) -> Any:
    if isinstance(item, Mapping):
        return dict(_filled(item))
    if isinstance(item, Sequence) and not isinstance(item, str):
        return [kept for part in item if (kept := _kept(part)) not in (None, "", [], {})]
    return item
