"""What the served model says of cells: readings, and heat maps from the graph's own outputs."""

from __future__ import annotations

import math

import numpy as np

from leukoscope.bundle.inference import BATCH, Reader
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.evaluate.novelty import coordinates
from leukoscope.imaging.enhancement import GEOMETRIC
from leukoscope.imaging.pipeline import apply
from leukoscope.review.cases import NewReading

PLACE, LARGEST = np.dtype("<f2"), 60_000.0


def said(reader: Reader, prepared: list[np.ndarray]) -> list[NewReading]:
    """Readings of prepared images, each (3, h, w), in order; as many at a time as `predict`."""
    found: list[NewReading] = []
    classes = reader.contract.classes
    for start in range(0, len(prepared), BATCH):
        answers = reader.answer(np.stack(prepared[start : start + BATCH]))
        places = places_of(reader, answers.features)
        rows = zip(answers.probs, answers.sets, answers.novelty.tolist(), places, strict=True)
        for row, (probs, inside, novelty, place) in enumerate(rows):
            best = int(probs.argmax())
            found.append(
                NewReading(
                    predicted=classes[best],
                    confidence=float(probs[best]),
                    probs=dict(zip(classes, probs.tolist(), strict=True)),
                    prediction_set=[n for n, is_in in zip(classes, inside, strict=True) if is_in],
                    novelty=novelty if math.isfinite(novelty) else None,
                    flag=answers.flag(row),
                    place=place,
                )
            )
    return found


def places_of(reader: Reader, features: np.ndarray) -> list[bytes | None]:
    """Where features (n, d) lie for this model, as stored; None where that isn't known."""
    if reader.contract.novelty is None:
        return [None] * len(features)
    rows = coordinates(features, reader.contract.novelty).clip(-LARGEST, LARGEST)
    return [r.astype(PLACE).tobytes() if np.isfinite(r).all() else None for r in rows]


def distance(one: bytes, other: bytes) -> float:
    """How far two places of one model are from each other."""
    pair = [np.frombuffer(place, PLACE).astype(np.float64) for place in (one, other)]
    return float(np.linalg.norm(pair[0] - pair[1]))


def heat_map(reader: Reader, image: np.ndarray, label: str) -> np.ndarray:
    """The image, uint8 RGB (H, W, 3), under the heat map of a class, as `leukoscope explain` draws.

    Raises UnknownNameError for another class, InputError where the graph gives no heat maps.
    """
    from leukoscope.explain.gradcam import heat_map as heat_of
    from leukoscope.explain.gradcam import overlay

    classes = reader.contract.classes
    if label not in classes:
        raise UnknownNameError("class", label, classes, field="label")
    if not reader.contract.model.heat_maps:
        raise InputError(
            f"The model ({reader.contract.model.described}) gives no heat maps in this application",
            fix="Run leukoscope explain on the run that it was exported from.",
            field="label",
        )
    prepared = reader.prepare(image)[None]
    feature_map, gradient = reader.run(prepared, ("feature_map", "class_gradient"))
    moving = [step for step in reader.contract.preprocessing if step["step"] in GEOMETRIC]
    # Where the chain pads, the map is of the padded image.
    seen = image if all(step["step"] == "resize" for step in moving) else apply(image, moving)
    return overlay(seen, heat_of(feature_map[0], gradient[0, classes.index(label)]))
