"""Contents of cases as `signing.content` gives them, made by hand for the tests of exports."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.proportion import proportion_confint

PBC = ("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil",
       "platelet")  # fmt: skip
NO_LEUKOCYTES = {"erythroblast", "platelet", "artefact", "unclassifiable"}
SIGNED = {
    "by": "Dr. A. Huber",
    "at": "2026-11-21T09:30:00+00:00",
    "reason": "",
    "sha256": "ab" * 32,
}


def picture(cell: dict[str, Any]) -> bytes:
    """A synthetic picture of its own for every cell: a disc in the cell's colour."""
    rng = np.random.default_rng(cell["id"])
    rows, columns = np.mgrid[:96, :96]
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 < rng.integers(400, 1400)
    image = np.full((96, 96, 3), 230, np.uint8)
    image[disc] = rng.integers(60, 200, 3)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def cell(number: int, predicted: str, label: str | None = None, **more: Any) -> dict[str, Any]:
    """One cell; `label` None where nobody has looked at it."""
    seen = label is not None
    return {
        "id": number, "image": f"cell_{number:03}.png", "field": None, "x": None, "y": None,
        "box_width": None, "box_height": None,
        "sha256": hashlib.sha256(str(number).encode()).hexdigest(), "predicted": predicted,
        "confidence": 0.5 + number % 50 / 100, "prediction_set": [predicted], "novelty": 0.7,
        "flag": "", "quality": [], "label": label, "comment": "",
        "changed_by": "Dr. A. Huber" if seen else None,
        "changed_at": "2026-11-21T09:10:00+00:00" if seen else None,
    } | more  # fmt: skip


def shares(labels: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The differential of labels, intervals by statsmodels."""
    found = Counter(labels)
    names = [*classes, *(name for name in ("artefact", "unclassifiable") if found[name])]
    total = sum(n for name, n in found.items() if name not in NO_LEUKOCYTES)
    made = []
    for name in names:
        of = {"share": None, "low": None, "high": None}
        if name not in NO_LEUKOCYTES and total:
            low, high = proportion_confint(found[name], total, method="wilson")
            of = {"share": found[name] / total, "low": float(low), "high": float(high)}
        made.append({"name": name, "count": found[name], **of})
    return made


def agreement(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all cells; those that nobody changed count as agreed. Kappa by scikit-learn."""
    if not cells:
        return {"n": 0, "agreed": 0, "share": None, "low": None, "high": None, "kappa": None,
                "reason": "there are no cells"}  # fmt: skip
    pairs = [(c["predicted"], c["label"] or c["predicted"]) for c in cells]
    same = sum(a == b for a, b in pairs)
    low, high = proportion_confint(same, len(pairs), method="wilson")
    one = len({name for pair in pairs for name in pair}) == 1
    kappa = None if one else float(cohen_kappa_score(*zip(*pairs, strict=True)))
    return {"n": len(pairs), "agreed": same, "share": same / len(pairs), "low": float(low),
            "high": float(high), "kappa": kappa,
            "reason": "both readers name one class only" if one else ""}  # fmt: skip


def content(
    cells: Sequence[dict[str, Any]],
    *,
    classes: Sequence[str] = PBC,
    signed: dict[str, Any] | None = SIGNED,
    synthetic: bool = False,
    **case: Any,
) -> dict[str, Any]:
    """What `signing.content` says of a case with these cells."""
    predicted = [c["predicted"] for c in cells]
    labelled = [c["label"] or c["predicted"] for c in cells]
    return {
        "format": 1,
        "case": {
            "id": "6f0c2b9ad4e84c1f", "pseudonym": "P-0042", "slide": "S-7",
            "stain": "May-Grünwald-Giemsa", "notes": "", "version": 1,
            "state": "signed" if signed else "open", "created": "2026-11-21T08:00:00+00:00",
        } | case,
        "model": {
            "name": "lightweight-cnn-mobilenetv2", "version": "1", "sha256": "1e" * 32,
            "contract_sha256": "2f" * 32, "classes": list(classes), "data": "pbc",
            "synthetic": synthetic,
        },
        "signed": signed,
        "cells": list(cells),
        "differential": {
            "model": shares(predicted, classes),
            "reviewer": shares(labelled, classes),
        },
        "agreement": agreement(cells),
    }  # fmt: skip


def small(**more: Any) -> dict[str, Any]:
    """Twelve cells of PBC's classes: nine looked at, three of them corrected."""
    made = [
        cell(1, "neutrophil", "neutrophil"),
        cell(2, "neutrophil", "neutrophil"),
        cell(3, "neutrophil", "ig", comment="Toxic granules?", flag="doubtful"),
        cell(4, "lymphocyte", "lymphocyte"),
        cell(5, "lymphocyte", "monocyte"),
        cell(6, "platelet", "platelet"),
        cell(7, "erythroblast", "erythroblast"),
        cell(8, "erythroblast", "artefact", quality=["blurred"], flag="novel"),
        cell(9, "monocyte", "monocyte"),
        cell(10, "basophil"),
        cell(11, "eosinophil", field="field_1.png", x=10, y=20, box_width=80, box_height=80),
        cell(12, "neutrophil"),
    ]
    return content(made, **more)


def large(cells: int = 300) -> dict[str, Any]:
    """Many cells with long names of classes and images, long comments, and much corrected."""
    classes = [
        "neutrophil (segmented) of an unusually long name in the laboratory's own vocabulary",
        "лимфоцит", "中性粒细胞", "monocyte", "basophil", "ig", "erythroblast", "platelet",
        *(f"class of its own number {n}" for n in range(1, 9)),
    ]  # fmt: skip
    rng = np.random.default_rng(7)
    made = []
    for number in range(1, cells + 1):
        predicted, other = (str(name) for name in rng.choice(classes, 2))
        label = [None, predicted, other][int(rng.integers(3))]
        made.append(
            cell(
                number,
                predicted,
                label,
                image=f"scan_of_a_slide_with_a_very_long_file_name_{number:05}" * 2 + ".tiff",
                comment="A long remark on this cell, its granules and its nucleus. " * 9
                if number % 5 == 0
                else "",
            )
        )
    return content(made, classes=classes, version=3, pseudonym="P" * 120, slide="S" * 120,
                   notes="Long notes of the case. " * 40,
                   signed=SIGNED | {"reason": "The smear was looked at again. " * 5})  # fmt: skip
