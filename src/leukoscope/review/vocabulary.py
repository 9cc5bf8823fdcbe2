"""What is known of a class by its name: whether it counts among the leukocytes, and its LOINC code.

A differential is a share of leukocytes, so that erythroblasts, platelets and what is no cell are
counted beside it, not in it. A class whose name says nothing here counts as a leukocyte and has no
code. Where each code is from stands in docs/review/exports.md.

This material contains content from LOINC (http://loinc.org). LOINC is copyright © Regenstrief
Institute, Inc. and the Logical Observation Identifiers Names and Codes (LOINC) Committee and is
available at no cost under the license at http://loinc.org/license. LOINC® is a registered United
States trademark of Regenstrief Institute, Inc.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from leukoscope.data.tree import key


@dataclass(frozen=True)
class Code:
    """A LOINC code for the share of a cell type in blood, and its long common name (2.78)."""

    code: str
    display: str


PANEL = Code("69738-3", "Differential panel, method unspecified - Blood")
ERYTHROBLASTS = Code("19048-8", "Nucleated erythrocytes/100 leukocytes [Ratio] in Blood")

# By cell type: code, the name before "/100 leukocytes in Blood", and the names of classes that mean
# it, without case, spaces and punctuation. Abbreviations are those of AML-Cytomorphology_LMU.
_TYPES = (
    ("30180-4", "Basophils", "basophil bas"),
    ("26446-5", "Blasts", "blast blastcell"),
    ("26450-7", "Eosinophils", "eosinophil eos"),
    ("38518-7", "Immature granulocytes", "ig immaturegranulocyte"),
    ("35058-7", "Hairy cells", "hairycell"),
    ("34922-5", "Lymphoblasts", "lymphoblast"),
    ("26478-8", "Lymphocytes", "lymphocyte lyt typicallymphocyte lymphocytetypical"),
    ("13046-8", "Variant lymphocytes",
     "variantlymphocyte atypicallymphocyte lymphocyteatypical reactivelymphocyte lya"),
    ("30420-4", "Large granular lymphocytes", "largegranularlymphocyte lgl"),
    ("28541-1", "Metamyelocytes", "metamyelocyte mmz"),
    ("34923-3", "Monoblasts", "monoblast mob"),
    ("26485-3", "Monocytes", "monocyte mon"),
    ("30445-1", "Myeloblasts", "myeloblast myo"),
    ("26498-6", "Myelocytes", "myelocyte myb"),
    ("26511-6", "Neutrophils", "neutrophil"),
    ("26508-2", "Band form neutrophils",
     "band bandcell bandneutrophil bandformneutrophil neutrophilband ngb"),
    ("26505-8", "Segmented neutrophils",
     "segmentedneutrophil segneutrophil neutrophilsegmented ngs"),
    ("13047-6", "Plasma cells", "plasmacell"),
    ("30465-9", "Prolymphocytes", "prolymphocyte"),
    ("30466-7", "Promonocytes", "promonocyte"),
    ("26524-9", "Promyelocytes", "promyelocyte pmo"),
    ("34919-1", "Sezary cells", "sezarycell"),
    ("34992-8", "Smudge cells", "smudgecell smudge ksc"),
)  # fmt: skip
_CODES = {
    name: Code(code, f"{display}/100 leukocytes in Blood")
    for code, display, names in _TYPES
    for name in names.split()
}
# What data sets abbreviate (PBC; AML-Cytomorphology_LMU), for people to read.
_WORDS = {
    "ig": "immature granulocyte", "bas": "basophil", "ebo": "erythroblast", "eos": "eosinophil",
    "ksc": "smudge cell", "lya": "atypical lymphocyte", "lyt": "lymphocyte",
    "mmz": "metamyelocyte", "mob": "monoblast", "mon": "monocyte", "myb": "myelocyte",
    "myo": "myeloblast", "ngb": "band neutrophil", "ngs": "segmented neutrophil",
    "pmb": "bilobed promyelocyte", "pmo": "promyelocyte",
}  # fmt: skip
_ERYTHROBLAST = {"erythroblast", "normoblast", "nrbc", "nucleatedredcell", "nucleatedrbc", "ebo"}
_NO_CELL = {"artefact", "artifact", "debris", "background", "nocell", "unclassifiable"}
_NO_LEUKOCYTE = (
    _ERYTHROBLAST
    | _NO_CELL
    | {"platelet", "thrombocyte", "giantplatelet", "giantthrombocyte", "thrombocyteaggregation"}
    | {"plateletclump", "erythrocyte", "redbloodcell", "rbc", "megakaryocyte"}
)


def spelled(name: str) -> str:
    """A class as people read it: known abbreviations written out, underscores as spaces."""
    return _WORDS.get(name.lower(), name.replace("_", " "))


def is_leukocyte(name: str) -> bool:
    """Whether cells of this class belong in the denominator of a differential."""
    return _known(name, _NO_LEUKOCYTE) is None


def is_erythroblast(name: str) -> bool:
    """Whether the class is of nucleated red cells, which are given per 100 leukocytes."""
    return _known(name, _ERYTHROBLAST) is not None


def is_no_cell(name: str) -> bool:
    """Whether the class is of what is no cell, or can't be told."""
    return _known(name, _NO_CELL) is not None


def loinc(name: str) -> Code | None:
    """The code for this class's share in blood, or None where no code says just that."""
    if is_erythroblast(name):
        return ERYTHROBLASTS
    found = _known(name, _CODES)
    return _CODES[found] if found else None


def codes() -> list[Code]:
    """Every code that an export may carry."""
    return [PANEL, *dict.fromkeys(_CODES.values()), ERYTHROBLASTS]


def _known(name: str, names: Container[str]) -> str | None:
    """The class's plain name among `names`, singular or plural."""
    plain = key(name)
    return next((n for n in (plain, plain.removesuffix("s")) if n in names), None)
