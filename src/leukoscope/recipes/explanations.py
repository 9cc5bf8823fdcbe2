"""`explain`: heat maps of a run's or a bundle's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukoscope.data.derived import output_folder_apart, write_png
from leukoscope.data.tree import find_images
from leukoscope.errors import InputError, UnreadableError
from leukoscope.explain.gradcam import heat_map, overlay
from leukoscope.files import write_json
from leukoscope.imaging.read import read_image
from leukoscope.progress import track
from leukoscope.recipes.judgement import open_reader


def explain(source: Path, images: Sequence[str | Path], out: Path) -> list[dict[str, Any]]:
    """Write one Grad-CAM overlay an image, for its predicted class, and `explain.json`.

    Returns explain.json: {image, file, predicted, confidence} or {image, why} a file. Raises
    InputError where no file could be read.
    """
    paths = find_images(images)
    output_folder_apart(out, paths)
    reader = open_reader(source)
    found: list[dict[str, Any]] = []
    for number, path in enumerate(track(paths, "Heat maps")):
        try:
            image = read_image(path)
        except UnreadableError as problem:
            found.append({"image": str(path), "why": problem.message})
            continue
        logits, feature_map, gradient = reader.run(
            reader.prepare(image)[None], ("logits", "feature_map", "class_gradient")
        )
        probs = reader.calibrated(logits)[0]
        best = int(probs.argmax())
        name = f"{number:04d}-{path.stem[:60]}.png"
        picture = overlay(image, heat_map(feature_map[0], gradient[0, best]))
        write_png(out / name, picture[..., ::-1])
        found.append(
            {
                "image": str(path),
                "file": name,
                "predicted": reader.contract.classes[best],
                "confidence": float(probs[best]),
            }
        )
    write_json(out / "explain.json", found)
    if not any("file" in entry for entry in found):
        raise InputError(
            f"None of {len(paths)} files could be read: {found[0]['why']}",
            fix="Give JPEG, PNG, TIFF or BMP images.",
            field="images",
        )
    return found
